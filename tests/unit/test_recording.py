"""Files of a recording, without a collector."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from prometheus_client import CollectorRegistry

from switchgear.cli.main import main
from switchgear.collector.recording import files, samples
from switchgear.collector.recording.files import Reel
from switchgear.collector.recording.record import record_of
from switchgear.collector.recording.sample_files import OPEN_SCHEMA, batches_of, seal
from switchgear.collector.recording.samples import SampleTap
from switchgear.collector.recording.settings import Recording
from switchgear.collector.windows import NodeWindow, SeriesKey
from switchgear.core.clock import ManualClock
from switchgear.core.errors import FailedPrecondition, Invalid

POWER, FAN, TEMPERATURE = (SeriesKey(name, "W", (("gpu", "0"),)) for name in ("power", "fan", "temperature"))
NAN = float("nan")


def window(node: str, *keys: SeriesKey) -> NodeWindow:
    found = NodeWindow("epoch", node=node)
    found.define(0, keys)
    return found


def tell(tap: SampleTap, of: NodeWindow, time_unix_ns: int, *values: float) -> None:
    of.append(time_unix_ns, np.arange(len(values)), np.array(values))
    tap.row(of)


def write(reel: Reel, tap: SampleTap) -> None:
    for chunk in tap.take():
        if chunk.begins:
            reel.end()
        for batch in batches_of(chunk):
            reel.write(batch, 1_700_000_000_000_000_000)


def rows(path: Path) -> list[tuple[object, ...]]:
    table = pq.read_table(path)
    table = table.set_column(5, "time", table.column("time").cast("int64"))
    return [tuple(row.values()) for row in table.to_pylist()]


def reel(folder: Path) -> Reel:
    return Reel(folder, "samples", "run", OPEN_SCHEMA, seal)


def test_an_ended_file_has_a_row_for_each_sample_series_by_series(tmp_path: Path) -> None:
    tap, to, gpu = SampleTap("", ""), reel(tmp_path), '{"gpu": "0"}'
    first, second = window("nodes/b", POWER, FAN), window("nodes/a", POWER)
    tell(tap, first, 1, 10.0, NAN)
    tell(tap, second, 1, 5.0)
    write(to, tap)
    tell(tap, first, 2, 11.0, 0.1)
    first.define(2, [TEMPERATURE])
    tell(tap, first, 3, 12.0, 0.2, 40.0)
    write(to, tap)
    to.end()
    (path,) = tmp_path.iterdir()
    assert path.suffix == ".parquet"
    assert rows(path) == [
        ("nodes/a", "agent", "power", gpu, "W", 1, 5.0),
        ("nodes/b", "agent", "power", gpu, "W", 1, 10.0),
        ("nodes/b", "agent", "power", gpu, "W", 2, 11.0),
        ("nodes/b", "agent", "fan", gpu, "W", 1, None),
        ("nodes/b", "agent", "fan", gpu, "W", 2, 0.1),
        ("nodes/b", "agent", "power", gpu, "W", 3, 12.0),
        ("nodes/b", "agent", "fan", gpu, "W", 3, 0.2),
        ("nodes/b", "agent", "temperature", gpu, "W", 3, 40.0),
    ]


@pytest.mark.parametrize(("keep", "drop"), [("power|fan", "fan"), ("", "fan|temp.*")])
def test_only_what_is_wanted_is_recorded(tmp_path: Path, keep: str, drop: str) -> None:
    tap, to, node = SampleTap(keep, drop), reel(tmp_path), window("nodes/a", FAN, POWER, TEMPERATURE)
    tell(tap, node, 1, 1.0, 2.0, 3.0)
    tap.late(node, [TEMPERATURE, POWER], np.array([0]), np.array([[4.0, 5.0]]))
    write(to, tap)
    to.end()
    (path,) = tmp_path.iterdir()
    assert [(row[2], *row[5:]) for row in rows(path)] == [("power", 1, 2.0), ("power", 0, 5.0)]


def test_a_file_that_a_crash_cut_off_is_ended_by_the_next_collector(tmp_path: Path) -> None:
    tap, to, node = SampleTap("", ""), reel(tmp_path), window("nodes/a", POWER)
    for time_unix_ns in (1, 2):
        tell(tap, node, time_unix_ns, time_unix_ns)
        write(to, tap)
    (open_file,) = files.left_open(tmp_path, "samples")
    files.seal(open_file, seal)
    assert files.left_open(tmp_path, "samples") == [open_file], "somebody writes to it"
    data = open_file.read_bytes()
    open_file.unlink()
    open_file.write_bytes(data[:-20])
    files.seal(open_file, seal)
    (path,) = tmp_path.iterdir()
    assert [row[-1] for row in rows(path)] == [1.0]


def test_the_next_file_can_be_read_by_itself(tmp_path: Path) -> None:
    tap, to, node = SampleTap("", ""), reel(tmp_path), window("nodes/a", POWER)
    tell(tap, node, 1, 1.0)
    write(to, tap)
    tap.begin()
    tell(tap, node, 2, 2.0)
    write(to, tap)
    to.end()
    assert [[row[-1] for row in rows(path)] for path in sorted(tmp_path.iterdir())] == [[1.0], [2.0]]


def test_after_a_write_that_failed_nothing_builds_on_what_is_lost(tmp_path: Path) -> None:
    tap, to, node = SampleTap("", ""), reel(tmp_path), window("nodes/a", POWER)
    tell(tap, node, 1, 1.0)
    tap.restart()
    assert tap.lost == 1
    assert tap.begins
    tell(tap, node, 2, 2.0)
    write(to, tap)
    to.end()
    assert [[row[-1] for row in rows(path)] for path in tmp_path.iterdir()] == [[2.0]]


def test_a_disk_that_is_too_slow_costs_samples_and_no_more_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "CHUNK_SAMPLES", 2)
    tap, to, node = SampleTap("", ""), reel(tmp_path), window("nodes/a", POWER)
    for time_unix_ns in range(1, 16):
        tell(tap, node, time_unix_ns, time_unix_ns)
    write(to, tap)
    to.end()
    (path,) = tmp_path.iterdir()
    kept = [row[-1] for row in rows(path)]
    assert len(kept) + tap.lost == 15
    assert kept[: 2 * samples.CHUNKS_MAX] == list(range(1, 2 * samples.CHUNKS_MAX + 1))


def test_what_comes_just_before_the_disk_takes_all_again_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "CHUNK_SAMPLES", 2)
    tap, node, rows_max = SampleTap("", ""), window("nodes/a", POWER), 2 * samples.CHUNKS_MAX + 1
    for time_unix_ns in range(rows_max):
        tell(tap, node, time_unix_ns, 1.0)
    assert sum(chunk.used for chunk in tap.take()) == rows_max
    assert tap.lost == 0


def test_the_oldest_files_go(tmp_path: Path) -> None:
    for name in ("events-1.parquet", "samples-2.parquet", "samples-3.arrows", "events-4.parquet"):
        (tmp_path / name).write_bytes(bytes(100))
    (tmp_path / "notes.txt").write_bytes(bytes(1000))
    assert files.prune(tmp_path, 250) == 200
    assert {path.name for path in tmp_path.iterdir()} == {"samples-3.arrows", "events-4.parquet", "notes.txt"}
    assert files.prune(tmp_path, 50) == 100, "what is written to stays"


def test_without_pyarrow_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    record_of(Recording(), ManualClock(), CollectorRegistry(), 10.0)
    with pytest.raises(FailedPrecondition, match=r"pip install 'switchgear\[recording\]'"):
        record_of(Recording(folder=tmp_path), ManualClock(), CollectorRegistry(), 10.0)


def test_a_folder_that_cannot_be_made_is_named_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Invalid, match=r"cannot record to .*file: File exists; give \[recording\] another folder"):
        record_of(Recording(folder=tmp_path / "file"), ManualClock(), CollectorRegistry(), 10.0)


def test_a_file_that_was_ended_since_it_was_listed_is_read_all_the_same(tmp_path: Path) -> None:
    tap, to, node = SampleTap("", ""), reel(tmp_path), window("nodes/a", POWER)
    tell(tap, node, 1, 1.0)
    write(to, tap)
    (listed,) = tmp_path.glob("*.arrows")
    to.end()
    assert sum(batch.num_rows for batch in files.batches(listed)) == 1
    (ended,) = tmp_path.iterdir()
    ended.unlink()
    with pytest.raises(Invalid, match="is not there"):
        list(files.batches(listed))


@pytest.mark.parametrize("name", ["events-1.parquet", "other.parquet"])
def test_what_is_no_recording_is_refused(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_text("no")
    assert main(["replay", str(tmp_path), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["reason"] == "BAD_FIELD"
