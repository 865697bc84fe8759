"""When the recorder begins and ends its files."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from prometheus_client import CollectorRegistry

from switchgear.collector.detectors import Detection, Moment, silence_signal
from switchgear.collector.model import Event
from switchgear.collector.recording import files, recorder, samples
from switchgear.collector.recording.happenings import read
from switchgear.collector.recording.record import Record, record_of
from switchgear.collector.recording.settings import Recording
from switchgear.collector.replay import Replay
from switchgear.collector.windows import NodeWindow, SeriesKey
from switchgear.core.clock import ManualClock

SILENCE_S = 10.0


@contextlib.asynccontextmanager
async def recording(folder: Path, clock: ManualClock, registry: CollectorRegistry) -> AsyncIterator[Record]:
    record = record_of(Recording(folder=folder, file_minutes=1), clock, registry, SILENCE_S)
    running = asyncio.create_task(record.run())
    await asyncio.sleep(0)
    yield record
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def now(clock: ManualClock) -> Moment:
    return Moment(clock.unix_ns(), clock.monotonic_s())


def xid(sequence: int) -> Event:
    return Event("nodes/a", "b", "kernel_log", sequence, 1, "XID", 3, 79, "Xid 79", False)


async def test_each_file_can_be_replayed_without_those_before(tmp_path: Path) -> None:
    clock, registry = ManualClock(), CollectorRegistry()
    async with recording(tmp_path, clock, registry) as record:
        record.connected("nodes/a", "b", "e")
        record.connected("nodes/b", "b", "e")
        record.looked(now(clock))
        await record.written()
        clock.advance(55)
        record.gone("nodes/a", clock.monotonic_s())
        record.looked(now(clock))
        await record.written()
        clock.advance(10.5)
        record.looked(now(clock))
        await record.written()
    first, second = sorted(tmp_path.glob("events-*.parquet"))
    for paths in ([first, second], [second]):
        outcomes = Replay().run(one for path in paths for one in read(path))
        assert [(one.raised.node, one.raised.kind) for one in outcomes if one.raised] == [("nodes/a", "NODE_SILENT")]


async def test_a_file_begins_with_what_was_before_what_is_in_it(tmp_path: Path) -> None:
    clock = ManualClock()
    async with recording(tmp_path, clock, CollectorRegistry()) as record:
        record.connected("nodes/a", "b", "e")
        record.gone("nodes/a", clock.monotonic_s())
        await record.written()
        clock.advance(61)
        record.looked(now(clock))
        record.connected("nodes/a", "b", "e")  # before its silence is stored
        record.raised(silence_signal("nodes/a", 61, clock.unix_ns()))
        await record.written()
        clock.advance(61)
        record.looked(now(clock))
        await record.written()
    first, second, third = sorted(tmp_path.glob("events-*.parquet"))
    assert [one.what for one in read(second)] == ["STARTED", "GONE", "LOOKED", "CONNECTED", "RAISED"]
    assert [one.what for one in read(third)] == ["STARTED", "CONNECTED", "LOOKED"]
    outcomes = Replay().run(one for path in (first, second, third) for one in read(path))
    assert len([one for one in outcomes if one.raised]) == 1


async def test_a_disk_that_is_full_for_long_leaves_no_files_and_one_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_stream: object, _batch: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with recording(tmp_path, ManualClock(), CollectorRegistry()) as record:
        with monkeypatch.context() as broken:
            broken.setattr(files.Journal, "write", full)
            for sequence in range(3):
                record.told([(xid(sequence), [])])
                await record.written()
            assert list(tmp_path.iterdir()) == []
        record.told([(xid(9), [])])
        await record.written()
    assert [one.levelname for one in caplog.records] == ["ERROR", "WARNING"]
    (path,) = tmp_path.iterdir()
    assert [one.event.sequence for one in read(path) if one.event] == [9]


async def test_a_folder_that_cannot_even_be_listed_costs_the_record_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(_folder: Path, _kind: str) -> list[Path]:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(files, "left_open", stale)
    async with recording(tmp_path, ManualClock(), CollectorRegistry()) as record:
        await asyncio.sleep(0.05)
        record.told([(xid(1), [])])
        await record.written()
    (path,) = tmp_path.iterdir()
    assert path.suffix == ".parquet", "it ran until it was ended"


async def test_what_is_there_is_written_when_the_collector_ends(tmp_path: Path) -> None:
    clock, registry, window = ManualClock(), CollectorRegistry(), NodeWindow("epoch", node="nodes/a")
    window.define(0, [SeriesKey("power", "W", ())])
    async with recording(tmp_path, clock, registry) as record:
        window.append(1, np.array([0]), np.array([300.0]))
        for tap in record.taps:
            tap.row(window)
    (path,) = tmp_path.glob("samples-*")
    assert pq.read_table(path).column("value").to_pylist() == [300.0]
    assert registry.get_sample_value("switchgear_recording_samples_total") == 1
    assert registry.get_sample_value("switchgear_recording_bytes") is not None


async def test_events_that_are_tried_again_are_written_once(tmp_path: Path) -> None:
    clock, detection = ManualClock(), Detection(SILENCE_S)
    async with recording(tmp_path, clock, CollectorRegistry()) as record:
        for sequences in ((1, 2), (1, 2), (1,), (1, 2, 3)):
            record.told([(xid(sequence), detection.told(xid(sequence))) for sequence in sequences])
            await record.written()
    (path,) = tmp_path.glob("events-*")
    assert [one.event.sequence for one in read(path) if one.event] == [1, 2, 3]


async def test_a_folder_that_cannot_be_written_costs_the_record_alone(tmp_path: Path) -> None:
    clock, registry, folder = ManualClock(), CollectorRegistry(), tmp_path / "recording"
    async with recording(folder, clock, registry) as record:
        shutil.rmtree(folder)
        record.told([(xid(1), [])])
        await record.written()
        assert registry.get_sample_value("switchgear_recording_lost_total", {"what": "events"}) == 1
        folder.mkdir()
        record.told([(xid(2), [])])
        await record.written()
    (path,) = folder.glob("events-*")
    assert [one.event.sequence for one in read(path) if one.event] == [2]


async def test_samples_that_are_lost_are_counted_while_the_disk_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "CHUNK_SAMPLES", 1)
    monkeypatch.setattr(recorder, "_TICK_S", 0.01)
    registry, hangs, window = CollectorRegistry(), threading.Event(), NodeWindow("epoch", node="nodes/a")
    window.define(0, [SeriesKey("power", "W", ())])
    async with recording(tmp_path, ManualClock(), registry) as record:
        assert isinstance(record, recorder.Recorder)
        record._of_samples.submit(hangs.wait)
        try:
            async with asyncio.timeout(10):
                while not registry.get_sample_value("switchgear_recording_lost_total", {"what": "samples"}):
                    window.append(1, np.array([0]), np.array([300.0]))
                    record.taps[0].row(window)
                    await asyncio.sleep(0.01)
        finally:
            hangs.set()


async def test_events_wait_no_longer_than_they_may_for_a_disk_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, registry, hangs = ManualClock(), CollectorRegistry(), threading.Event()
    async with recording(tmp_path, clock, registry) as record:
        assert isinstance(record, recorder.Recorder)
        record.told([(xid(1), [])])
        await record.written()
        monkeypatch.setattr(recorder, "WRITE_S_MAX", 0.01)
        record._of_events.submit(hangs.wait)
        for sequence in (2, 3):
            record.told([(xid(sequence), [])])
            await record.written()
        hangs.set()
    assert registry.get_sample_value("switchgear_recording_lost_total", {"what": "events"}) == 1
    found = [one.event.sequence for path in sorted(tmp_path.glob("events-*")) for one in read(path) if one.event]
    assert found == [1, 2]
