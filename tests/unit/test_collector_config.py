from __future__ import annotations

from pathlib import Path

import pytest

from switchgear.collector import config
from switchgear.core.errors import Invalid


def test_an_empty_file_is_a_collector_of_agents_only(tmp_path: Path) -> None:
    file = tmp_path / "collector.toml"
    file.write_text("# nothing yet\n")
    assert config.load(file) == config.CollectorConfig()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[[remote_wirte]]\n", "remote_wirte: Extra inputs are not permitted"),
        (b"a =", "is no TOML"),
        (b"\xff", "is no TOML"),
        (b"#" * (config.BYTES_MAX + 1), "more than"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(tmp_path: Path, data: bytes, said: str) -> None:
    file = tmp_path / "collector.toml"
    file.write_bytes(data)
    with pytest.raises(Invalid, match=said) as caught:
        config.load(file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="No such file"):
        config.load(tmp_path / "none.toml")
