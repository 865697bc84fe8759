"""Each `serving/*.txt`: a script above the line, the whole transcript below. `UPDATE=1 pytest tests/scenario` writes them anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from simworld.serving import LINE, play

SCENARIOS = sorted((Path(__file__).parent / "serving").glob("*.txt"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    script, line, expected = path.read_text().partition(f"{LINE}\n")
    transcript = play(script)
    if os.environ.get("UPDATE") == "1":
        path.write_text("\n".join([script.rstrip(), LINE, *transcript]) + "\n")
    else:
        assert line, f"{path.name} has no transcript; write it with UPDATE=1 and read it"
        assert transcript == expected.splitlines()


def test_there_are_scenarios() -> None:
    assert len(SCENARIOS) >= 3


@pytest.mark.parametrize("line", ["at 3s tickle replica 1", "fleet of ships"])
def test_a_line_that_says_nothing_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=line.split(maxsplit=2)[-1]):
        play(f"service min=0 max=2 capacity=40 delay=30 start=8 batch=4\n{line}")
