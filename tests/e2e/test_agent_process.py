"""The agent as a process, between a real collector and a scheduler's end of its control stream."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from switchgear.collector.main import build
from switchgear.core import rpc
from switchgear.core.clock import SystemClock
from switchgear.core.service import Endpoints
from switchgear.sim.inject import inject_xid
from switchgear.store.database import Database, sqlite_url
from switchgear.v1 import signal_service_pb2 as signals
from switchgear.v1.signal_service_pb2_grpc import SignalServiceStub
from switchgear.v1alpha import node_agent_service_pb2 as control
from switchgear.v1alpha import node_agent_service_pb2_grpc as control_grpc
from switchgear.v1alpha import telemetry_service_pb2 as telemetry
from switchgear.v1alpha.telemetry_service_pb2_grpc import TelemetryServiceStub

WITHIN_S = 20.0


class SchedulerEnd(control_grpc.NodeAgentServiceServicer):
    """Notes what agents report."""

    def __init__(self) -> None:
        self.hellos: list[control.NodeAgentHello] = []
        self.heartbeats = 0

    async def Connect(  # noqa: N802 - the contract names it
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[control.NodeAgentCommand]:
        async for report in request_iterator:
            if report.HasField("hello"):
                self.hellos.append(report.hello)
            self.heartbeats += report.HasField("heartbeat")
        return
        yield


class World:
    def __init__(self, folder: Path, address: str, scheduler: SchedulerEnd, channel: Any) -> None:
        self.state_dir = folder / "agent"
        self.address = address
        self.scheduler = scheduler
        self.telemetry = TelemetryServiceStub(channel)
        self.signals = SignalServiceStub(channel)

    @contextlib.asynccontextmanager
    async def agent(self, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
        command = ["-m", "switchgear.agent", "--server", self.address, "--node", "n1"]
        command += ["--state-dir", str(self.state_dir), "--sim-gpus", "4", "--interval", "0.1", *arguments]
        process = await asyncio.create_subprocess_exec(sys.executable, *command, stderr=asyncio.subprocess.PIPE)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()

    async def signal_after(self, revision: int) -> tuple[int, signals.Signal]:
        watch = self.signals.WatchSignals(signals.WatchSignalsRequest(revision=revision))
        async with asyncio.timeout(WITHIN_S):
            while not (change := await watch.read()).HasField("signal"):
                pass
        watch.cancel()
        return change.revision, change.signal

    async def gpu_values(self, gpu: int) -> dict[str, float | str]:
        request = telemetry.GetNodeTelemetryRequest(name="nodes/n1/telemetry")
        answer = await self.telemetry.GetNodeTelemetry(request)
        return {
            item.metric: item.value if item.HasField("value") else item.unknown_reason
            for item in answer.values
            if item.labels.get("gpu") == str(gpu)
        }

    async def value(self, metric: str, gpu: int) -> float:
        """Waits until the series has a value."""
        async with asyncio.timeout(WITHIN_S):
            while not isinstance(value := (await self.gpu_values(gpu)).get(metric), float):  # noqa: ASYNC110 - behind gRPC
                await asyncio.sleep(0.05)
        return value


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    database = Database(sqlite_url(tmp_path / "state.db"))
    await database.migrate()
    collector, scheduler, server = build(database, SystemClock()), SchedulerEnd(), rpc.Server()
    collector.register(server.grpc)
    control_grpc.add_NodeAgentServiceServicer_to_server(scheduler, server.grpc)
    address = await server.start("127.0.0.1:0", collector.service_names)
    running = asyncio.create_task(collector.run(Endpoints.all_at(address)))
    try:
        async with rpc.channel(address) as channel:
            yield World(tmp_path, address, scheduler, channel)
    finally:
        await server.stop(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await database.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():  # noqa: ASYNC110 - the condition is in another process
            await asyncio.sleep(0.02)


async def test_a_lost_gpu_is_seen_told_and_remembered_over_kill_and_restart(world: World) -> None:
    async with world.agent() as agent:
        await until(lambda: world.scheduler.heartbeats > 0)
        (hello,) = world.scheduler.hellos
        assert [(gpu.index, gpu.simulated, "Simulated" in gpu.model) for gpu in hello.node.gpus] == [
            (index, True, True) for index in range(4)
        ]
        inject_xid(world.state_dir, 3, 79)
        revision, signal_ = await world.signal_after(0)
        assert (signal_.kind, signal_.gpu, signal_.simulated) == ("GPU_LOST", "nodes/n1/gpus/3", True)
        agent.kill()
        await agent.wait()
    inject_xid(world.state_dir, 1, 48)  # while no agent is there
    async with world.agent() as agent:
        revision, signal_ = await world.signal_after(revision)
        assert (revision, signal_.kind, signal_.gpu) == (2, "XID", "nodes/n1/gpus/1")
        await until(lambda: len(world.scheduler.hellos) == 2)
        await world.value("DCGM_FI_DEV_POWER_USAGE", 0)
        values = await world.gpu_values(3)
        assert values.pop("DCGM_FI_DEV_XID_ERRORS") == 0, "none since the agent started"
        assert set(values.values()) == {"GPU is lost"}
        agent.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(agent.wait(), WITHIN_S) == 0
    assert len((await world.signals.ListSignals(signals.ListSignalsRequest())).signals) == 2


async def test_the_agent_shows_its_node_to_prometheus(world: World) -> None:
    file = world.state_dir / "metrics-address"
    async with world.agent():
        await until(lambda: world.scheduler.heartbeats > 0)
        page = await asyncio.to_thread(_get, f"http://{file.read_text()}/metrics")
    assert 'DCGM_FI_DEV_GPU_TEMP{gpu="0"' in page
    assert 'modelName="Simulated NVIDIA H100 80GB HBM3"' in page
    assert "node_load1 " in page
    assert "switchgear_agent_blocks_sent_total" in page


async def test_who_uses_a_gpu_is_told_to_the_collector_and_shown_to_prometheus(world: World, tmp_path: Path) -> None:
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    (jobs / "2").write_text("4711\n")
    request = telemetry.GetNodeTelemetryRequest(name="nodes/n1/telemetry")

    async def told() -> list[tuple[int, str]]:
        with contextlib.suppress(grpc.aio.AioRpcError):  # the collector does not know the node yet
            answer = await world.telemetry.GetNodeTelemetry(request)
            return [(one.gpu, one.hpc_job) for one in answer.associations]
        return []

    async with world.agent("--hpc-job-mapping-dir", str(jobs)):
        async with asyncio.timeout(WITHIN_S):
            while await told() != [(2, "4711")]:  # noqa: ASYNC110 - another process has no event for us
                await asyncio.sleep(0.05)
        page = await asyncio.to_thread(_get, f"http://{(world.state_dir / 'metrics-address').read_text()}/metrics")
    (line,) = (line for line in page.splitlines() if line.startswith('DCGM_FI_DEV_GPU_TEMP{gpu="2"'))
    assert 'hpc_job="4711"' in line
    (user,) = (line for line in page.splitlines() if line.startswith("switchgear_gpu_user_info{"))
    assert 'gpu="2"' in user
    assert 'hpc_job="4711"' in user


async def test_a_second_agent_on_the_same_state_is_refused_with_the_remedy(world: World) -> None:
    async with world.agent():
        await until(lambda: world.scheduler.heartbeats > 0)
        async with world.agent() as second:
            _, error = await asyncio.wait_for(second.communicate(), WITHIN_S)
    assert second.returncode == 1
    assert b"another agent uses" in error


async def test_the_kernels_own_ring_can_be_read_where_it_is_allowed() -> None:
    if not os.access("/dev/kmsg", os.R_OK):
        pytest.skip("/dev/kmsg is not readable here; run as root on a machine of your own")
    from switchgear.agent.sources.log_reader import KernelRing

    try:
        ring = KernelRing("boot", "boot:-1")
    except PermissionError:
        pytest.skip("/dev/kmsg is not readable here; run as root on a machine of your own")
    lines = list(ring.read())
    ring.close()
    cursors = [int(cursor.partition(":")[2]) for _, cursor in lines]
    assert cursors == sorted(cursors)  # a message of several lines is one record


def _get(url: str) -> str:
    with urllib.request.urlopen(url) as response:  # noqa: S310 - an address of the test itself
        body: bytes = response.read()
    return body.decode()
