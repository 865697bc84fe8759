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
        (b"[[remote_wirte]]\n", "remote_wirte: there is no such setting here; take it away or correct its name"),
        (b"[[remote_write]]\n", "remote_write.0.url: must be given"),
        (b"[remote_write]\n", r"remote_write: there may be several; begin each with \[\[remote_write\]\]"),
        (b'[sharding]\ncollectors = "a:1"\n', "sharding.collectors: must be a list"),
        (b'[[remote_write]]\nurl = "tsdb"\n', "remote_write.0.url: must begin with http://HOST"),
        (b"[windows]\nmemory_gib = 1e-12\n", "windows.memory_gib: Input should be greater than or equal to 0.01"),
        (b'[[scrape]]\nname = "x"\nurl = "http://a:99999/m"\n', "must read http://HOST:PORT/metrics"),
        (b'[[scrape]]\nname = "x"\nurl = "http://a b/m"\n', "must read http://HOST:PORT/metrics"),
        (b'[sharding]\ncollectors = ["a:1", "b:1"]\n', "sharding: own must say which of the collectors this one is"),
        (b'[sharding]\ncollectors = ["a:1", "b:1"]\nown = "c:1"\n', "sharding: own = 'c:1' is none of the collectors"),
        (b'[sharding]\ncollectors = ["a:0", "b:1"]\nown = "a:0"\n', "a:0: agents cannot dial port 0"),
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
