"""Several collectors on one database, and agents that know only one of them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from switchgear.agent.outbox import Outbox
from switchgear.agent.readings import Kind, known, series
from switchgear.agent.sample_spool import SampleSpool
from switchgear.agent.sampler import Sampler
from switchgear.agent.spool import Spool
from switchgear.agent.stream import Identity, TelemetryStream
from switchgear.cli.main import main
from switchgear.collector.config import CollectorConfig
from switchgear.collector.main import CollectorService, CollectorSettings
from switchgear.collector.sharding import Sharding, owner
from switchgear.core import rpc
from switchgear.core.clock import SystemClock
from switchgear.core.errors import NotFound, Unavailable
from switchgear.core.service import Endpoints
from switchgear.store.database import Database
from switchgear.v1 import signal_service_pb2 as signals
from switchgear.v1.signal_service_pb2_grpc import SignalServiceStub
from switchgear.v1alpha import telemetry_service_pb2 as pb
from switchgear.v1alpha.telemetry_service_pb2_grpc import TelemetryServiceStub

#: Services apart share a PostgreSQL.
pytestmark = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)

WITHIN_S = 60.0
CLOCK = SystemClock()
KEY = series("temperature", "celsius", Kind.GAUGE)


class Agent:
    """A node's real stream, configured with one address."""

    def __init__(self, folder: Path, node: str, home: str) -> None:
        self.node = node
        (folder / node).mkdir()
        self.spool = Spool(folder / node / "spool", f"boot-{node}")
        samples = SampleSpool(folder / node / "samples", "epoch", bytes_max=1 << 20)
        self.outbox = Outbox(Sampler(), self.spool, samples)
        identity = Identity(f"nodes/{node}", self.spool.boot_id, "epoch", "1")
        self.stream = TelemetryStream(home, identity, self.outbox, CLOCK)

    def tick(self) -> None:
        self.outbox.put(self.outbox.sampler.tick([known(KEY, 40.0)], CLOCK.unix_ns()))

    async def event(self, text: str) -> None:
        await asyncio.to_thread(self.spool.append, "kernel_log", "XID", text, time_unix_ns=CLOCK.unix_ns(), code=79)
        self.outbox.wake_from_thread()


class Collector:
    def __init__(self, url: str, own: str, ring: tuple[str, ...]) -> None:
        self.own = own
        self._database = Database(url)
        config = CollectorConfig(sharding=Sharding(collectors=ring, own=own))
        self.service = CollectorService(
            self._database, CLOCK, CollectorSettings(silence_s=2.0), CollectorRegistry(), config
        )
        self._server = rpc.Server()
        self.service.register(self._server.grpc)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self._server.start(self.own, self.service.service_names)
        task = asyncio.create_task(self.service.run(Endpoints.all_at(self.own)))
        try:
            yield
        finally:
            await self._server.stop(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._database.close()

    def has(self, node: str) -> bool:
        return self.service.streams(f"nodes/{node}")


class Ring:
    """Collectors that come and go."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stacks: dict[str, contextlib.AsyncExitStack] = {}
        self.collectors: dict[str, Collector] = {}

    async def start(self, own: str, ring: tuple[str, ...]) -> None:
        collector = Collector(self._url, own, ring)
        self._stacks[own] = contextlib.AsyncExitStack()
        await self._stacks[own].enter_async_context(collector.running())
        self.collectors[own] = collector

    async def stop(self, own: str) -> None:
        del self.collectors[own]
        await self._stacks.pop(own).aclose()

    def values(self, node: str) -> bool:
        """Whether some collector has a value of the node."""
        windows = [collector.service.windows.get(f"nodes/{node}") for collector in self.collectors.values()]
        return any(window is not None and len(window.history()[0]) for window in windows)

    def where(self, node: str) -> list[str]:
        return [own for own, collector in self.collectors.items() if collector.has(node)]


@pytest.fixture
async def ring(database_url: str) -> AsyncIterator[Ring]:
    made = Ring(database_url)
    database = Database(database_url)
    await database.migrate()
    await database.close()
    yield made
    for own in list(made.collectors):
        await made.stop(own)


@contextlib.contextmanager
def addresses(count: int) -> Iterator[tuple[str, ...]]:
    """Free ones. They differ from run to run, and so does who has which node."""
    with contextlib.ExitStack() as probes:
        found = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in found:
            probe.bind(("127.0.0.1", 0))
        taken = tuple(f"127.0.0.1:{probe.getsockname()[1]}" for probe in found)
    yield taken


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():  # noqa: ASYNC110 - of several processes' worth of state, none of which tells
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def streaming(agents: list[Agent]) -> AsyncIterator[None]:
    async def ticking() -> None:
        while True:
            for agent in agents:
                agent.tick()
            await asyncio.sleep(0.2)

    tasks = [asyncio.create_task(agent.stream.run()) for agent in agents] + [asyncio.create_task(ticking())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for agent in agents:
            agent.outbox.close()


async def told(address: str) -> list[tuple[str, str]]:
    """Kind and evidence of all signals, as any collector has them."""
    async with rpc.channel(address) as channel:
        stub: Any = SignalServiceStub(channel)
        response = await stub.ListSignals(signals.ListSignalsRequest(page_size=1000))
    return sorted((signal.kind, signal.evidence) for signal in response.signals)


async def test_a_fourth_collector_takes_its_nodes_while_events_go_on_and_nobody_is_called_silent(
    tmp_path: Path, ring: Ring
) -> None:
    with addresses(4) as all_of_them:
        before = all_of_them[:3]
    nodes = [f"n{number}" for number in range(12)]
    for own in before:
        await ring.start(own, before)
    agents = [Agent(tmp_path, node, before[number % 3]) for number, node in enumerate(nodes)]
    async with streaming(agents):
        await until(lambda: all(ring.where(node) == [owner(f"nodes/{node}", before)] for node in nodes))
        for agent in agents:
            await agent.event(f"{agent.node} before")
        await ring.start(all_of_them[3], all_of_them)
        for own in before:
            await ring.stop(own)
            for agent in agents:
                await agent.event(f"{agent.node} while {before.index(own)} is away")
            await ring.start(own, all_of_them)
        await until(lambda: all(ring.where(node) == [owner(f"nodes/{node}", all_of_them)] for node in nodes))
        await until(lambda: not any(agent.spool.pending(0, 1) for agent in agents))
        await asyncio.sleep(2.5)  # longer than an agent may be silent
    texts = ["before", *(f"while {number} is away" for number in range(3))]
    expected = sorted(("GPU_LOST", f"{node} {text}") for node in nodes for text in texts)
    assert await told(all_of_them[3]) == expected
    assert await told(before[0]) == expected


async def test_any_collector_answers_for_the_nodes_of_all(
    tmp_path: Path, ring: Ring, capsys: pytest.CaptureFixture[str]
) -> None:
    with addresses(3) as collectors:
        pass
    for own in collectors:
        await ring.start(own, collectors)
    nodes = [f"n{number}" for number in range(6)]
    gone = owner("nodes/n0", collectors)
    asked = next(own for own in collectors if own != gone)
    async with streaming([Agent(tmp_path, node, collectors[0]) for node in nodes]), rpc.channel(asked) as channel:
        await until(lambda: all(ring.values(node) for node in nodes))
        stub: Any = TelemetryServiceStub(channel)
        found = await stub.Query(pb.QueryRequest(selector="temperature"))
        assert [one.node for one in found.series] == [f"nodes/{node}" for node in nodes]
        assert not found.unanswered
        here = await stub.Query(pb.QueryRequest(selector="temperature", only_here=True))
        assert [one.node for one in here.series] == [f"nodes/{node}" for node in nodes if ring.where(node) == [asked]]
        request = pb.GetNodeTelemetryRequest(name="nodes/n0/telemetry")
        assert (await stub.GetNodeTelemetry(request)).values[0].value == 40.0
        request.only_here = True
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetNodeTelemetry(request)
        assert isinstance(rpc.from_rpc_error(refused.value), NotFound)

        await ring.stop(gone)
        assert (await stub.Query(pb.QueryRequest(selector="temperature"))).unanswered == [gone]
        assert await asyncio.to_thread(main, ["query", "temperature", "--json", "--server", asked]) == 0
        assert f"without the nodes of {gone}, which did not answer" in capsys.readouterr().err
        request.only_here = False
        with pytest.raises(grpc.aio.AioRpcError) as away:
            await stub.GetNodeTelemetry(request)
        error = rpc.from_rpc_error(away.value)
        assert isinstance(error, Unavailable)
        assert gone in error.message


async def test_an_agent_that_cannot_be_sent_on_is_taken_in_where_it_comes(ring: Ring) -> None:
    with addresses(2) as collectors:
        pass
    await ring.start(collectors[0], collectors)
    node = next(f"n{number}" for number in range(100) if owner(f"nodes/n{number}", collectors) == collectors[1])
    async with rpc.channel(collectors[0]) as channel:
        stub: Any = TelemetryServiceStub(channel)
        old = stub.Stream()
        await old.write(pb.AgentMessage(hello=pb.AgentHello(node=f"nodes/{node}", boot_id="b", epoch="e")))
        await until(lambda: ring.where(node) == [collectors[0]])
        old.cancel()
        new = stub.Stream()
        hello = pb.AgentHello(node=f"nodes/{node}", boot_id="b", epoch="e", features=[pb.AgentHello.REDIRECT])
        await new.write(pb.AgentMessage(hello=hello))
        assert [message.redirect.address async for message in new] == [collectors[1]]
