"""The agent's stream against the real collector, which comes and goes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from switchgear.agent.events import Events, Finding
from switchgear.agent.metrics import AgentMetrics
from switchgear.agent.outbox import LIVE_MAX, Outbox
from switchgear.agent.readings import Kind, Reading, known, series, unknown
from switchgear.agent.sample_spool import SampleSpool
from switchgear.agent.sampler import Sampler
from switchgear.agent.spool import Spool
from switchgear.agent.stream import Identity, TelemetryStream
from switchgear.agent.ticker import Ticker
from switchgear.agent.worker import Worker
from switchgear.collector.config import CollectorConfig
from switchgear.collector.ingest_settings import IngestSettings
from switchgear.collector.main import CollectorService, CollectorSettings
from switchgear.collector.windows import Windows
from switchgear.core import rpc
from switchgear.core.clock import ManualClock, SystemClock
from switchgear.core.service import Endpoints
from switchgear.store.database import Database, sqlite_url
from switchgear.v1 import signal_service_pb2 as signals
from switchgear.v1.signal_service_pb2_grpc import SignalServiceStub
from switchgear.v1alpha import telemetry_service_pb2 as pb
from switchgear.v1alpha.telemetry_service_pb2_grpc import (
    TelemetryServiceServicer,
    TelemetryServiceStub,
    add_TelemetryServiceServicer_to_server,
)

WITHIN_S = 15.0
#: Ticks here are counted from 1970 on, and are to stay as they are.
_ANY_CLOCK_S = 1e10


class World:
    """An agent's stream, and a collector on one address that can be killed and started again with the same database."""

    def __init__(self, folder: Path, *, epoch: str = "epoch", samples_bytes_max: int = 1 << 20) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.spool = Spool(folder / "spool", "boot")
        self.samples = SampleSpool(folder / "samples", epoch, bytes_max=samples_bytes_max)
        self.outbox = Outbox(Sampler(), self.spool, self.samples)
        self.stream = TelemetryStream(
            self.address, Identity("nodes/n1", self.spool.boot_id, epoch, "1"), self.outbox, SystemClock()
        )
        self.keys = [series(f"metric_{number}", "", Kind.GAUGE) for number in range(5)]
        self.time = 0
        #: Of the collector that runs now.
        self.windows: Windows | None = None

    @contextlib.asynccontextmanager
    async def collector(self) -> AsyncIterator[None]:
        database = Database(sqlite_url(self.folder / "state.db"))
        await database.migrate()
        config = CollectorConfig(ingest=IngestSettings(clock_offset_seconds_max=_ANY_CLOCK_S))
        service = CollectorService(database, SystemClock(), CollectorSettings(), CollectorRegistry(), config)
        server, self.windows = rpc.Server(), service.windows
        service.register(server.grpc)
        await server.start(self.address, service.service_names)
        running = asyncio.create_task(service.run(Endpoints.all_at(self.address)))
        try:
            yield
        finally:
            await server.stop(0)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await database.close()

    @contextlib.asynccontextmanager
    async def streaming(self) -> AsyncIterator[None]:
        running = asyncio.create_task(self.stream.run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    def tick(self, *values: float | None) -> None:
        self.time += 1
        readings = [unknown(k, "why") if v is None else known(k, v) for k, v in zip(self.keys, values, strict=False)]
        self.outbox.put(self.outbox.sampler.tick(readings, self.time))

    def history(self) -> tuple[list[int], list[list[float]]]:
        """Times and rows in the collector's window."""
        window = self.windows.get("nodes/n1") if self.windows is not None else None
        if window is None:
            return [], []
        times, rows = window.history()
        return times.tolist(), rows.tolist()

    async def event(self, text: str) -> None:
        await asyncio.to_thread(self.spool.append, "kernel_log", "XID", text, time_unix_ns=1, code=79)
        self.outbox.wake_from_thread()

    async def telemetry(self) -> pb.NodeTelemetry:
        async with rpc.channel(self.address) as channel:
            request = pb.GetNodeTelemetryRequest(name="nodes/n1/telemetry")
            return await TelemetryServiceStub(channel).GetNodeTelemetry(request)

    async def shown(self) -> list[float | None]:
        return [item.value if item.HasField("value") else None for item in (await self.telemetry()).values]

    async def signals(self) -> list[str]:
        async with rpc.channel(self.address) as channel:
            response = await SignalServiceStub(channel).ListSignals(signals.ListSignalsRequest(page_size=1000))
        return [signal.evidence for signal in reversed(response.signals)]

    async def settled(self) -> None:
        await until(self._nothing_waits)

    async def _nothing_waits(self) -> bool:
        blocks = await self.outbox.disk.call(
            lambda: self.samples.blocks_waiting
        )  # behind the blocks that are being written
        return not blocks and not self.samples.lost_untold and not self.spool.pending(0, 1)


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while True:
            answer = condition()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.02)


async def test_samples_and_events_arrive_and_are_let_go_when_acked(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.collector(), world.streaming():
        world.tick(1, 2)
        world.tick(1, None, 3)  # a new series in the second tick
        await world.event("a")
        await world.settled()
        assert await world.shown() == [1, None, 3]
        assert await world.signals() == ["a"]


async def test_an_ack_that_makes_the_spool_rewrite_its_file_does_not_hold_up_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    for _ in range(150):
        await world.event("x" * 500)
    threads: list[int] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (threads.append(threading.get_ident()), sync(fd)))
    async with world.collector(), world.streaming():
        await world.settled()
        await until(lambda: bool(threads))
    assert threading.get_ident() not in threads


async def test_what_happens_while_the_collector_is_away_is_told_when_it_is_back(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.streaming():
        async with world.collector():
            world.tick(1, 2, 3)
            await world.event("before")
            await world.settled()
        world.tick(4, 2, 3)
        await world.event("during")
        async with world.collector():  # it has forgotten every window
            world.tick(4, 5, 3)
            await world.event("after")
            await world.settled()
            assert await world.shown() == [4, 5, 3]
            assert await world.signals() == ["before", "during", "after"]
            world.tick(4, 5, 6)
            await world.settled()
            assert await world.shown() == [4, 5, 6]


async def test_events_are_stored_once_and_in_order_through_ten_restarts_of_the_collector(tmp_path: Path) -> None:
    """Seeded: the moments differ from run to run, what must hold does not."""
    world, told = World(tmp_path), []
    pause = random.Random(7)
    async with world.streaming():
        for number in range(10):
            async with world.collector():
                for part in range(20):
                    told.append(f"event {number}.{part}")
                    await world.event(told[-1])
                    world.tick(number, part)
                await asyncio.sleep(pause.uniform(0, 0.05))
        async with world.collector():
            await world.settled()
            assert await world.signals() == told
            await until(lambda: shows(world, [9, 19]))


async def shows(world: World, values: list[float]) -> bool:
    return await world.shown() == values


async def tells(world: World, texts: list[str]) -> bool:
    return await world.signals() == texts


async def test_a_long_outage_loses_the_oldest_samples_counts_them_and_keeps_every_event(tmp_path: Path) -> None:
    world = World(tmp_path, samples_bytes_max=32 * 1024)
    for number in range(1000):
        world.tick(number)
        if number % 50 == 0:  # as fast as the disk takes them
            await world.outbox.disk.call(int)
    await world.event("in the outage")
    kept = await world.outbox.disk.call(lambda: world.samples.blocks_waiting)
    assert world.samples.nbytes <= 40 * 1024
    assert 100 < kept == 1000 - world.samples.lost
    async with world.collector(), world.streaming():
        await world.settled()
        assert await world.shown() == [999]
        assert (await world.telemetry()).blocks_lost == 1000 - kept
        assert await world.signals() == ["in the outage"]


class Scripted:
    """A source that answers until its gate is closed."""

    def __init__(self, name: str) -> None:
        self.name, self.period_s = name, 0.0
        self.gate = threading.Event()
        self.gate.set()

    def sample(self) -> list[Reading]:
        self.gate.wait(30)
        return [known(series(self.name, "", Kind.GAUGE), 1)]


async def test_a_hanging_gpu_becomes_a_signal_and_unknown_while_the_others_go_on(tmp_path: Path) -> None:
    world = World(tmp_path)
    hanging, healthy = Scripted("gpu-3"), Scripted("host")
    workers = [Worker("gpu-3", [hanging], deadline_s=5.0, gpu=3), Worker("host", [healthy], deadline_s=5.0)]
    events = Events(world.spool, {}, ManualClock(), world.outbox.wake.set, simulated=False)
    metrics = AgentMetrics(CollectorRegistry(), world.outbox, world.stream, int)
    clock = ManualClock()
    ticker = Ticker(workers, world.outbox, world.stream, metrics=metrics, events=events, clock=clock, interval_s=1)
    async with world.collector(), world.streaming():
        await ticker.tick()
        await world.settled()
        assert await world.shown() == [1, 1]
        hanging.gate.clear()
        for _ in range(3):
            await ticker.tick()
            clock.advance(2.5)
        await world.settled()
        assert await world.shown() == [None, 1]
        assert await world.signals() == ["gpu-3 did not answer within 5.0 s"]
    hanging.gate.set()
    ticker.close()


async def test_after_an_outage_the_newest_tick_comes_first_and_the_rest_finds_its_place(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.streaming():
        async with world.collector():
            world.tick(1, 1)
            await world.settled()
        for number in range(100):
            world.tick(number, 2 * number)
        async with world.collector():
            await until(lambda: bool(world.history()[0]))
            assert world.history()[0][-1] == 101
            world.tick(200, 7)
            await world.settled()
            times, rows = world.history()
            assert times == list(range(2, 103))
            assert rows == [[number, 2 * number] for number in range(100)] + [[200, 7]]
            assert (await world.telemetry()).blocks_lost == 0
            assert await world.shown() == [200, 7]


async def test_samples_of_an_agent_that_was_killed_are_sent_by_the_next_one(tmp_path: Path) -> None:
    killed = World(tmp_path)
    for number in range(30):
        killed.tick(number, number + 0.5)
    await killed.outbox.disk.call(int)
    killed.spool.close()
    world = World(tmp_path, epoch="another")
    world.time = 1000
    world.keys.reverse()  # ids have other meanings in another epoch
    async with world.collector(), world.streaming():
        world.tick(*[5] * 5)
        await world.settled()
        world.tick(*[6] * 5)
        await world.settled()
        times, rows = world.history()
        assert times == [*range(1, 31), 1001, 1002]
        # Columns are those of the new epoch; the first agent knew metric_0 and metric_1 alone.
        assert [row[3:] for row in rows[:30]] == [[number + 0.5, number] for number in range(30)]
        assert await world.shown() == [6] * 5


async def test_who_uses_the_gpus_is_shown_and_replaced_whole(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.collector(), world.streaming():
        world.tick(1)
        for jobs in (["jobs/a", "jobs/b"], ["jobs/c"], []):
            world.outbox.associations = pb.Associations(
                associations=[pb.Association(gpu=number, job=job, pids=[7]) for number, job in enumerate(jobs)]
            )
            await world.settled()
            await until(lambda: shows_jobs(world, jobs))  # noqa: B023 - awaited in this round


async def shows_jobs(world: World, jobs: list[str]) -> bool:
    return [item.job for item in (await world.telemetry()).associations] == jobs


class OlderCollector(TelemetryServiceServicer):
    """The release before: it welcomes nobody, and knows plain blocks alone."""

    def __init__(self) -> None:
        self.blocks: list[pb.Block] = []
        self.others: list[str] = []

    async def Stream(  # noqa: N802 - the contract names it
        self, request_iterator: AsyncIterator[pb.AgentMessage], context: Any
    ) -> AsyncIterator[pb.CollectorMessage]:
        del context
        async for message in request_iterator:
            self.others.append(str(message.WhichOneof("kind")))
            if message.HasField("block"):
                self.blocks.append(message.block)
                yield pb.CollectorMessage(block_ack=pb.BlockAck(sequence=message.block.sequence))


async def test_a_collector_of_the_release_before_gets_what_it_understands(tmp_path: Path) -> None:
    world, older, server = World(tmp_path), OlderCollector(), rpc.Server()
    add_TelemetryServiceServicer_to_server(older, server.grpc)
    await server.start(world.address, ["switchgear.v1alpha.TelemetryService"])
    world.outbox.associations = pb.Associations(associations=[pb.Association(gpu=0, job="jobs/a", pids=[7])])
    async with stopping(server), world.streaming():
        await until(lambda: "hello" in older.others)
        for number in range(1, 4):
            world.tick(number, 0.1)
            await until(lambda: bool(older.blocks) and older.blocks[-1].sequence == number)  # noqa: B023 - awaited in this round
        assert [np.frombuffer(block.values_f64).tolist() for block in older.blocks] == [[n, 0.1] for n in (1, 2, 3)]
        assert all(block.keyframe and not block.changed for block in older.blocks)
        assert older.others[:3] == ["hello", "dictionary", "block"]
        assert set(older.others) == {"hello", "dictionary", "block"}
        await world.settled()


@contextlib.asynccontextmanager
async def stopping(server: rpc.Server) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await server.stop(0)


async def test_while_the_disk_of_the_spool_hangs_events_and_samples_are_still_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, released = World(tmp_path), threading.Event()
    async with world.collector(), world.streaming():
        world.tick(1)
        await world.settled()
        with monkeypatch.context() as hanging:
            hanging.setattr(os, "fdatasync", lambda _: released.wait(2 * WITHIN_S))
            telling = asyncio.create_task(world.event("nvme0: I/O timeout"))
            try:
                await until(lambda: world.spool.newest == 1)
                world.tick(2)
                await until(lambda: shows(world, [2]))
                await until(lambda: tells(world, ["nvme0: I/O timeout"]))
            finally:
                released.set()
            await telling
        await world.settled()


async def test_what_a_slow_connection_left_to_the_disk_comes_behind_and_so_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, begun = World(tmp_path), list[int]()
    begin = world.samples.begin_reading
    monkeypatch.setattr(world.samples, "begin_reading", lambda: (begun.append(world.time), begin()))
    async with world.collector(), world.streaming():
        await until(lambda: world.stream.connected and bool(begun))
        for _ in range(2):
            begun.clear()
            for number in range(
                2 * LIVE_MAX + 5
            ):  # no turn of the loop between them, as behind a line that stands still
                world.tick(number)
            await until(lambda: world.history()[0] == list(range(1, world.time + 1)))
            await until(lambda: bool(begun))  # the collector was told that nothing more waits


async def test_texts_longer_than_the_wire_takes_are_cut_and_cost_the_node_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.keys[1] = series("free", "bytes", Kind.GAUGE, ("mountpoint", "/" + 300 * "x"))
    events = Events(world.spool, {}, ManualClock(), world.outbox.wake_from_thread, simulated=False)
    finding = Finding("MOUNT_HANGS", "hangs", detail={"mountpoint": "/" + 300 * "y"} | {str(n): "" for n in range(20)})
    async with world.collector(), world.streaming():
        world.tick(1, 2)
        await asyncio.to_thread(events.tell, "filesystem", finding)
        await world.settled()
        assert await world.signals() == ["hangs"]
        labels = [dict(value.labels) for value in (await world.telemetry()).values]
        assert labels == [{}, {"mountpoint": "/" + 255 * "x"}]
