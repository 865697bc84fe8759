"""The collector over real gRPC and on both databases, spoken to as an agent would, and as a broken agent would."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest

from switchgear.collector.config import CollectorConfig
from switchgear.collector.ingest_settings import IngestSettings
from switchgear.collector.main import CollectorSettings, build
from switchgear.collector.session import BURST_BLOCKS_MAX, DEBT_BLOCKS_MAX
from switchgear.core import rpc
from switchgear.core.clock import ManualClock
from switchgear.core.errors import Aborted, AlreadyExists, Invalid, NotFound, OutOfRange, Reason, ResourceExhausted
from switchgear.core.service import Endpoints
from switchgear.store.database import Database, sqlite_url
from switchgear.v1 import signal_service_pb2 as signals
from switchgear.v1.signal_service_pb2_grpc import SignalServiceStub
from switchgear.v1alpha import telemetry_service_pb2 as pb
from switchgear.v1alpha.telemetry_service_pb2_grpc import TelemetryServiceStub

WITHIN_S = 10.0
#: On the clock of agents that have the right time.
NOW = ManualClock().unix_ns()


@dataclass
class Collector:
    telemetry: Any
    signals: Any
    clock: ManualClock

    def stream(self) -> Agent:
        return Agent(self.telemetry.Stream())

    async def latest(self, node: str = "nodes/n1") -> pb.NodeTelemetry:
        return await self.telemetry.GetNodeTelemetry(pb.GetNodeTelemetryRequest(name=f"{node}/telemetry"))

    async def listed(self, **request: Any) -> signals.ListSignalsResponse:
        return await self.signals.ListSignals(signals.ListSignalsRequest(**request))


class Agent:
    """One stream, spoken by hand."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def say(self, **message: Any) -> None:
        await self.call.write(pb.AgentMessage(**message))

    async def hello(self, node: str = "nodes/n1", epoch: str = "epoch-1") -> None:
        await self.say(hello=pb.AgentHello(node=node, boot_id="boot", epoch=epoch, agent_version="1"))

    async def dictionary(self, *metrics: str) -> None:
        await self.say(
            dictionary=pb.Dictionary(
                series=[
                    pb.Series(id=number, metric=metric, unit="watts", kind=pb.Series.GAUGE, labels={"gpu": "0"})
                    for number, metric in enumerate(metrics)
                ]
            )
        )

    async def keyframe(self, sequence: int, *values: float) -> None:
        packed = np.array(values, "<f8").tobytes()
        await self.say(block=pb.Block(time_unix_ns=NOW + sequence, sequence=sequence, keyframe=True, values_f64=packed))

    async def delta(self, sequence: int) -> None:
        await self.say(block=pb.Block(time_unix_ns=NOW + sequence, sequence=sequence))

    async def event(self, sequence: int, code: int = 79, **fields: Any) -> None:
        defaults: dict[str, Any] = {
            "boot_id": "boot", "source": "kernel_log", "time_unix_ns": 5, "kind": "XID", "gpu": 3,
            "text": f"Xid {code}", "simulated": True,
        }  # fmt: skip
        await self.say(event=pb.Event(sequence=sequence, code=code, **(defaults | fields)))

    async def answer(self, kind: str) -> Any:
        """The next message of that kind."""
        while True:
            message = await asyncio.wait_for(self.call.read(), WITHIN_S)
            assert message is not grpc.aio.EOF
            if message.WhichOneof("kind") == kind:
                return getattr(message, kind)

    async def refusal(self) -> Exception:
        """What the collector ended the stream with."""
        try:
            async with asyncio.timeout(WITHIN_S):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
        except grpc.aio.AioRpcError as error:
            return rpc.from_rpc_error(error)
        raise AssertionError("the stream ended without an error")


@contextlib.asynccontextmanager
async def serving(database: Database, clock: ManualClock, **settings: Any) -> AsyncIterator[Collector]:
    # Each block is acked by itself: nobody moves the clock to let acks wait.
    config = CollectorConfig(ingest=IngestSettings(ack_seconds_max=0))
    service, server = build(database, clock, CollectorSettings(**settings), config=config), rpc.Server()
    service.register(server.grpc)
    address = await server.start("127.0.0.1:0", service.service_names)
    running = asyncio.create_task(service.run(Endpoints.all_at(address)))
    try:
        async with rpc.channel(address) as channel:
            yield Collector(TelemetryServiceStub(channel), SignalServiceStub(channel), clock)
    finally:
        await server.stop(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
async def collector(database: Database) -> AsyncIterator[Collector]:
    """On each database: for what is stored."""
    async with serving(database, ManualClock()) as collector:
        yield collector


@pytest.fixture
async def collector_sqlite(tmp_path: Path) -> AsyncIterator[Collector]:
    """On SQLite alone: for what never reaches the database."""
    database = Database(sqlite_url(tmp_path / "state.db"))
    await database.migrate()
    async with serving(database, ManualClock()) as collector:
        yield collector
    await database.close()


async def test_samples_are_acked_and_readable_with_unknown_kept_unknown(collector_sqlite: Collector) -> None:
    agent = collector_sqlite.stream()
    await agent.hello()
    await agent.dictionary("power", "clock")
    await agent.keyframe(1, 250.5, 1980)
    await agent.say(
        block=pb.Block(sequence=2, time_unix_ns=NOW + 7, unknown=[pb.UnknownSeries(id=1, reason="GPU is lost")])
    )
    while (await agent.answer("block_ack")).sequence < 2:
        pass
    power, clock = (await collector_sqlite.latest()).values
    assert (power.metric, power.unit, dict(power.labels), power.value) == ("power", "watts", {"gpu": "0"}, 250.5)
    assert (clock.HasField("value"), clock.unknown_reason) == (False, "GPU is lost")


async def test_a_gap_is_answered_with_a_resync_and_counted(collector_sqlite: Collector) -> None:
    agent = collector_sqlite.stream()
    await agent.hello()
    await agent.dictionary("power")
    await agent.keyframe(1, 1)
    await agent.delta(3)
    assert "before 3" in (await agent.answer("resync")).reason
    await agent.keyframe(4, 2)
    while (await agent.answer("block_ack")).sequence < 4:
        pass
    latest = await collector_sqlite.latest()
    assert (latest.blocks_lost, latest.values[0].value) == (2, 2)


async def test_a_collector_that_knows_nothing_of_an_epoch_asks_for_a_keyframe(collector_sqlite: Collector) -> None:
    agent = collector_sqlite.stream()
    await agent.hello()
    await agent.dictionary("power")
    await agent.delta(17)
    await agent.answer("resync")


async def test_an_event_is_acked_when_stored_and_raises_its_signal_once(collector: Collector) -> None:
    for _ in range(2):  # delivered again after a lost ack
        agent = collector.stream()
        await agent.hello()
        await agent.event(1)
        await agent.event(1)
        ack = await agent.answer("event_ack")
        assert (ack.boot_id, ack.source, ack.sequence) == ("boot", "kernel_log", 1)
        agent.call.cancel()
    (signal,) = (await collector.listed()).signals
    assert (signal.node, signal.gpu, signal.kind) == ("nodes/n1", "nodes/n1/gpus/3", "GPU_LOST")
    assert (signal.severity, signal.action, signal.evidence) == (signals.Signal.FATAL, "RESTART_BM", "Xid 79")
    assert signal.simulated


async def test_many_events_are_acked_up_to_the_last_and_listed_newest_first_in_pages(collector: Collector) -> None:
    agent = collector.stream()
    await agent.hello()
    for sequence in range(1, 26):
        await agent.event(sequence, code=31, text=f"line {sequence}")
    while (await agent.answer("event_ack")).sequence < 25:
        pass
    first = await collector.listed(page_size=20, node="nodes/n1")
    second = await collector.listed(page_size=20, node="nodes/n1", page_token=first.next_page_token)
    assert [signal.evidence for signal in [*first.signals, *second.signals]] == [f"line {n}" for n in range(25, 0, -1)]
    assert (second.next_page_token, first.revision) == ("", 25)
    assert not (await collector.listed(node="nodes/other")).signals


async def test_a_watcher_gets_old_signals_and_then_new_ones_at_once(collector: Collector) -> None:
    agent = collector.stream()
    await agent.hello()
    await agent.event(1, text="old")
    await agent.answer("event_ack")
    watch = collector.signals.WatchSignals(signals.WatchSignalsRequest(revision=0))
    seen = [(await watch.read()).signal.evidence]
    await agent.event(2, text="new")
    while len(seen) < 2:
        change = await asyncio.wait_for(watch.read(), WITHIN_S)
        if change.HasField("signal"):
            seen.append(change.signal.evidence)
    assert (seen, change.revision) == (["old", "new"], 2)


async def test_a_watch_from_a_revision_to_come_is_out_of_range(collector_sqlite: Collector) -> None:
    watch = collector_sqlite.signals.WatchSignals(signals.WatchSignalsRequest(revision=99))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watch.read()
    assert isinstance(rpc.from_rpc_error(caught.value), OutOfRange)


async def test_text_that_no_database_takes_is_stored_all_the_same(collector: Collector) -> None:
    agent = collector.stream()
    await agent.hello()
    await agent.event(1, text="a\0b" + "é" * 5000)
    await agent.answer("event_ack")
    (signal,) = (await collector.listed()).signals
    assert signal.evidence.startswith("a\N{REPLACEMENT CHARACTER}b")
    assert len(signal.evidence.encode()) <= 2050


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not await condition():  # noqa: ASYNC110 - the condition is behind gRPC
            await asyncio.sleep(0.05)


async def test_a_silent_node_is_told_once_and_again_only_after_it_came_back(collector: Collector) -> None:
    async def told(times: int) -> bool:
        return sum(signal.kind == "NODE_SILENT" for signal in (await collector.listed()).signals) == times

    async def come_and_go() -> None:
        agent = collector.stream()
        await agent.hello()
        await agent.dictionary("power")
        await agent.keyframe(1, 1)
        await agent.answer("block_ack")
        agent.call.cancel()
        await asyncio.sleep(0.1)  # the server notices on its own time
        collector.clock.advance(11)

    await come_and_go()
    await until(lambda: told(1))
    collector.clock.advance(100)
    await asyncio.sleep(0.6)
    assert await told(1)
    await come_and_go()
    await until(lambda: told(2))


async def test_a_node_that_dies_while_the_collector_is_down_is_missed_afterwards(database: Database) -> None:
    clock = ManualClock()
    async with serving(database, clock) as collector:
        agent = collector.stream()
        await agent.hello()
        await agent.event(1, kind="SOMETHING_NEW")
        await agent.answer("event_ack")
    async with serving(database, clock) as again:

        async def told() -> bool:
            clock.advance(1)
            found = (await again.listed()).signals
            return [(signal.kind, signal.node) for signal in found] == [("NODE_SILENT", "nodes/n1")]

        await until(told)


async def test_a_newer_stream_of_a_node_replaces_the_older_one(collector_sqlite: Collector) -> None:
    older, newer = collector_sqlite.stream(), collector_sqlite.stream()
    await older.hello()
    await older.event(1)
    await older.answer("event_ack")
    await newer.hello()
    assert isinstance(await older.refusal(), Aborted)
    await newer.event(2)
    await newer.answer("event_ack")


async def test_a_second_agent_of_a_name_is_refused_until_the_first_is_silent(collector_sqlite: Collector) -> None:
    first, second, third = (collector_sqlite.stream() for _ in range(3))
    await first.hello()
    await first.event(1)
    await first.answer("event_ack")
    await second.hello(epoch="epoch-2")
    error = await second.refusal()
    assert isinstance(error, AlreadyExists)
    assert "--node" in error.message
    await first.event(2)
    await first.answer("event_ack")
    collector_sqlite.clock.advance(11)
    await third.hello(epoch="epoch-3")
    await third.event(1, boot_id="another")
    await third.answer("event_ack")
    assert isinstance(await first.refusal(), Aborted)


async def test_an_agent_that_is_too_fast_is_told_to_slow_down_and_then_cut_off(collector_sqlite: Collector) -> None:
    agent = collector_sqlite.stream()
    await agent.hello()
    for sequence in range(1, BURST_BLOCKS_MAX + 10):
        await agent.delta(sequence)
    assert (await agent.answer("throttle")).interval_seconds_min == 1.0
    # Not one more: gRPC replaces the server's answer when a write meets a stream that has ended.
    for sequence in range(DEBT_BLOCKS_MAX - 8):
        await agent.delta(1000 + sequence)
    error = await agent.refusal()
    assert isinstance(error, ResourceExhausted)
    assert error.reason is Reason.LIMIT_EXCEEDED


HELLO = {"hello": pb.AgentHello(node="nodes/n1", epoch="e")}
FRAMES = pb.Backlog(epoch="x", blocks=[pb.Block(sequence=n + 1, keyframe=True) for n in range(64)])
VIOLATIONS: list[list[dict[str, Any]]] = [
    [{"block": pb.Block(sequence=1)}],
    [{"hello": pb.AgentHello(node="nodes/UPPER", epoch="e")}],
    [{"hello": pb.AgentHello(node="nodes/n1")}],
    [HELLO, HELLO],
    [HELLO, {}],
    [HELLO, {"dictionary": pb.Dictionary(series=[pb.Series(id=0, metric="a"), pb.Series(id=2, metric="b")])}],
    [HELLO, {"dictionary": pb.Dictionary(series=[pb.Series()])}],
    [HELLO, {"dictionary": pb.Dictionary(packed=b"rubbish")}],
    [HELLO, {"dictionary": pb.Dictionary(packed=zlib.compress(b"rubbish"))}],
    [HELLO, {"dictionary": pb.Dictionary(packed=zlib.compress(bytes(5 << 20)))}],
    [HELLO, {"block": pb.Block(sequence=1, keyframe=True, classes=b"\x03")}],
    [HELLO, {"backlog": pb.Backlog(epoch="x", blocks=[pb.Block(sequence=3)])}],
    [HELLO, {"backlog": pb.Backlog(epoch="x", blocks=[pb.Block(sequence=3)] * 65)}],
    [HELLO, {"backlog": FRAMES}, {"backlog": FRAMES}],
    [HELLO, {"associations": pb.Associations(associations=[pb.Association(gpu=-1)])}],
    [HELLO, {"block": pb.Block(sequence=1, values_f64=b"123")}],
    [HELLO, {"event": pb.Event(sequence=1)}],
    [HELLO, {"event": pb.Event(boot_id="b", source="s", kind="k", sequence=2**63)}],
]


async def test_whoever_breaks_the_protocol_is_told_how(collector_sqlite: Collector) -> None:
    for messages in VIOLATIONS:
        agent = collector_sqlite.stream()
        for message in messages:
            await agent.say(**message)
        error = await agent.refusal()
        assert isinstance(error, Invalid), messages
        assert error.reason in {Reason.STREAM_PROTOCOL, Reason.BAD_NAME}, messages


async def test_a_node_without_an_agent_is_not_found(collector_sqlite: Collector) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collector_sqlite.latest("nodes/nobody")
    error = rpc.from_rpc_error(caught.value)
    assert isinstance(error, NotFound)
    assert "nodes/nobody" in error.message
