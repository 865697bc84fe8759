"""What the collector does with agents that are quick, late, wrong about the time or no agents at all, over real gRPC."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from switchgear.collector.config import CollectorConfig
from switchgear.collector.ingest_settings import IngestSettings
from switchgear.collector.main import build
from switchgear.collector.messages import BLOCKS_MAX
from switchgear.collector.outgoing import ACK_BLOCKS_MAX
from switchgear.collector.session import BURST_EVENTS_MAX
from switchgear.core import rpc
from switchgear.core.clock import ManualClock
from switchgear.core.service import Endpoints
from switchgear.store.database import Database, sqlite_url
from switchgear.v1 import signal_service_pb2 as signals
from switchgear.v1.signal_service_pb2_grpc import SignalServiceStub
from switchgear.v1alpha import telemetry_service_pb2 as pb

WITHIN_S = 20.0
SECOND = 1_000_000_000


class World:
    def __init__(self, channel: grpc.aio.Channel, clock: ManualClock, registry: CollectorRegistry) -> None:
        self.clock = clock
        self._channel: Any = channel
        self._registry = registry

    def raw(self) -> Any:
        """A stream of serialized messages."""
        return self._channel.stream_stream("/switchgear.v1alpha.TelemetryService/Stream")()

    async def agent(self, node: str = "nodes/n1") -> Any:
        call = self.raw()
        hello = pb.AgentHello(node=node, boot_id="boot", epoch="epoch", features=[pb.AgentHello.DELTAS])
        await say(call, hello=hello)
        await say(call, dictionary=pb.Dictionary(series=[pb.Series(metric="power")]))
        assert (await heard(call)).HasField("welcome")
        return call

    def metric(self, name: str, **labels: str) -> float:
        return self._registry.get_sample_value(name, labels) or 0.0

    async def signals(self) -> list[signals.Signal]:
        stub: Any = SignalServiceStub(self._channel)
        return list((await stub.ListSignals(signals.ListSignalsRequest())).signals)

    async def telemetry(self) -> pb.NodeTelemetry:
        method = "/switchgear.v1alpha.TelemetryService/GetNodeTelemetry"
        call = self._channel.unary_unary(method, response_deserializer=pb.NodeTelemetry.FromString)
        found: pb.NodeTelemetry = await call(pb.GetNodeTelemetryRequest(name="nodes/n1/telemetry").SerializeToString())
        return found


async def say(call: Any, **message: Any) -> None:
    await call.write(pb.AgentMessage(**message).SerializeToString())


async def heard(call: Any) -> pb.CollectorMessage:
    return pb.CollectorMessage.FromString(await asyncio.wait_for(call.read(), WITHIN_S))


async def block(call: Any, sequence: int, time_unix_ns: int) -> None:
    values = np.array([sequence], "<f8").tobytes()
    await say(call, block=pb.Block(time_unix_ns=time_unix_ns, sequence=sequence, keyframe=True, values_f64=values))


@contextlib.asynccontextmanager
async def collector(folder: Path, **settings: float) -> AsyncIterator[World]:
    database, clock, registry = Database(sqlite_url(folder / "state.db")), ManualClock(), CollectorRegistry()
    await database.migrate()
    config = CollectorConfig(ingest=IngestSettings(**settings))
    service, server = build(database, clock, registry=registry, config=config), rpc.Server()
    service.register(server.grpc)
    address = await server.start("127.0.0.1:0", service.service_names)
    running = asyncio.create_task(service.run(Endpoints.all_at(address)))
    try:
        async with grpc.aio.insecure_channel(address, [("grpc.max_send_message_length", 16 << 20)]) as channel:
            yield World(channel, clock, registry)
    finally:
        await server.stop(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await database.close()


async def test_blocks_are_acked_many_at_a_time_but_the_first_at_once(tmp_path: Path) -> None:
    async with collector(tmp_path) as world:
        agent = await world.agent()
        now = world.clock.unix_ns()
        await block(agent, 1, now)
        assert (await heard(agent)).block_ack.sequence == 1
        for sequence in range(2, 2 + ACK_BLOCKS_MAX):
            await block(agent, sequence, now)
        assert (await heard(agent)).block_ack.sequence == 1 + ACK_BLOCKS_MAX
        assert world.metric("switchgear_collector_blocks_total", outcome="applied") == 1 + ACK_BLOCKS_MAX
        assert world.metric("switchgear_collector_samples_total") == 1 + ACK_BLOCKS_MAX
        assert world.metric("switchgear_collector_block_delay_seconds_count") == 1 + ACK_BLOCKS_MAX


async def test_blocks_that_waited_come_together_and_are_rows_each(tmp_path: Path) -> None:
    async with collector(tmp_path, ack_seconds_max=0) as world:
        agent = await world.agent()
        now = world.clock.unix_ns()
        power = [np.array([watts], "<f8").tobytes() for watts in range(BLOCKS_MAX + 1)]
        blocks = [
            pb.Block(time_unix_ns=now + sequence, sequence=sequence, keyframe=True, values_f64=value)
            for sequence, value in enumerate(power, start=1)
        ]
        await say(agent, blocks=pb.Blocks(blocks=blocks[:3]))
        assert (await heard(agent)).block_ack.sequence == 3
        assert (await world.telemetry()).values[0].value == 2
        assert world.metric("switchgear_collector_blocks_total", outcome="applied") == 3
        await say(agent, blocks=pb.Blocks(blocks=blocks))
        assert await agent.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_node_whose_clock_is_off_is_told_and_its_times_are_corrected(tmp_path: Path) -> None:
    async with collector(tmp_path, ack_seconds_max=0) as world:
        agent = await world.agent()
        now = world.clock.unix_ns()
        for sequence in (1, 2):
            await block(agent, sequence, now + 3600 * SECOND)
            await heard(agent)
        assert abs((await world.telemetry()).time.ToNanoseconds() - now) < SECOND
        async with asyncio.timeout(WITHIN_S):
            while not (found := await world.signals()):  # noqa: ASYNC110 - the signals are behind gRPC
                await asyncio.sleep(0.02)
        assert [(signal.kind, signal.node) for signal in found] == [("CLOCK_SKEW", "nodes/n1")]
        assert "3600.0 s ahead" in found[0].evidence


@pytest.mark.parametrize("time_unix_ns", [-(2**63), 2**63 - 1, 0])
async def test_no_time_is_so_absurd_that_a_row_has_it(tmp_path: Path, time_unix_ns: int) -> None:
    async with collector(tmp_path, ack_seconds_max=0) as world:
        agent = await world.agent()
        await block(agent, 1, time_unix_ns)
        await heard(agent)
        assert abs((await world.telemetry()).time.ToNanoseconds() - world.clock.unix_ns()) < SECOND


async def test_events_beyond_the_rate_wait_and_none_is_lost(tmp_path: Path) -> None:
    more = 40
    async with collector(tmp_path, events_per_second_max=400) as world:
        agent = await world.agent()
        for sequence in range(1, BURST_EVENTS_MAX + more + 1):
            event = pb.Event(boot_id="b", source="s", sequence=sequence, kind="NOBODY_KNOWS")
            await say(agent, event=event)
        while (await heard(agent)).event_ack.sequence < BURST_EVENTS_MAX + more:
            pass
        assert world.metric("switchgear_collector_events_total") == BURST_EVENTS_MAX + more
        assert world.metric("switchgear_collector_events_delayed_total") == more


async def test_agents_are_asked_for_less_while_half_of_all_blocks_are_late(tmp_path: Path) -> None:
    async with collector(tmp_path, delay_seconds_max=0.4) as world:
        agent = await world.agent()
        sequence = 0

        async def told() -> float:
            nonlocal sequence
            for _ in range(2 * ACK_BLOCKS_MAX):
                sequence += 1
                await block(agent, sequence, world.clock.unix_ns() - 1_500_000_000)
            world.clock.advance(6)
            await asyncio.sleep(0.5)
            return world.metric("switchgear_collector_interval_asked_seconds")

        async with asyncio.timeout(WITHIN_S):
            while not await told():
                pass
            world.clock.advance(6)
            await block(agent, sequence + 1, world.clock.unix_ns())
            while not (message := await heard(agent)).HasField("throttle"):
                pass
        assert message.throttle.interval_seconds_min == 2
        late = await world.agent("nodes/n2")
        assert (await heard(late)).throttle.interval_seconds_min == 2, "one that comes now is told at once"


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT), (bytes(5 << 20), grpc.StatusCode.RESOURCE_EXHAUSTED)],
)
async def test_bytes_that_are_no_message_end_the_stream_with_a_clear_code(
    tmp_path: Path, data: bytes, code: grpc.StatusCode
) -> None:
    async with collector(tmp_path) as world:
        for call in (world.raw(), await world.agent()):
            await call.write(data)
            assert await asyncio.wait_for(call.code(), WITHIN_S) is code
