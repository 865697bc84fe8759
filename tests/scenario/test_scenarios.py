"""Each `*.txt` here: a script above the line, the whole transcript below it. `UPDATE=1 pytest tests/scenario` writes the transcripts anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from simworld.script import LINE, play

SCENARIOS = sorted(Path(__file__).parent.glob("*.txt"))


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
    assert len(SCENARIOS) >= 8


@pytest.mark.parametrize("line", ["at noon kill rank 1", "at 3s tickle rank 1", "fleet of ships"])
def test_a_line_that_says_nothing_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=line.split(maxsplit=2)[-1]):
        play(f"fleet nodes=3 job=2x2\n{line}")
