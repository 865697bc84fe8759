"""The agent as a process with NVIDIA GPUs, on the double of the driver's library, and a real collector."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import grpc
import pytest
from nvml_double.fixtures import scenario_or_skip
from nvml_double.scenario import Scenario

from switchgear.collector.main import build
from switchgear.core import rpc
from switchgear.core.clock import SystemClock
from switchgear.core.service import Endpoints
from switchgear.store.database import Database, sqlite_url
from switchgear.v1 import signal_service_pb2 as signals
from switchgear.v1.signal_service_pb2_grpc import SignalServiceStub
from switchgear.v1alpha import telemetry_service_pb2 as telemetry
from switchgear.v1alpha.telemetry_service_pb2_grpc import TelemetryServiceStub

WITHIN_S = 20.0


class Node:
    """An agent with two GPUs; kernel_log: the file that it reads as the kernel's."""

    def __init__(self, scenario: Scenario, kernel_log: Path, channel: Any) -> None:
        self.scenario = scenario
        self.kernel_log = kernel_log
        self._signals = SignalServiceStub(channel)
        self._telemetry = TelemetryServiceStub(channel)

    async def signals(self, count: int) -> list[tuple[str, str]]:
        """Kind and GPU of the first signals, once there are so many."""
        watch = self._signals.WatchSignals(signals.WatchSignalsRequest(revision=0))
        found = list[tuple[str, str]]()
        async with asyncio.timeout(WITHIN_S):
            while len(found) < count:
                change = await watch.read()
                if change.HasField("signal"):
                    found.append((change.signal.kind, change.signal.gpu))
        watch.cancel()
        return found

    async def value(self, metric: str, gpu: int | None) -> float | str:
        """As the collector has it; "" before it knows the node, or the series."""
        try:
            answer = await self._telemetry.GetNodeTelemetry(
                telemetry.GetNodeTelemetryRequest(name="nodes/n1/telemetry")
            )
        except grpc.RpcError:
            return ""
        for item in answer.values:
            if item.metric == metric and item.labels.get("gpu") == (None if gpu is None else str(gpu)):
                return item.value if item.HasField("value") else str(item.unknown_reason)
        return ""

    async def until(self, metric: str, gpu: int | None, expected: object) -> None:
        async with asyncio.timeout(WITHIN_S):
            while (value := await self.value(metric, gpu)) == "" or value != expected:  # noqa: ASYNC110 - behind gRPC
                await asyncio.sleep(0.05)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    scenario = scenario_or_skip(tmp_path / "nvml", gpus=2)
    scenario.unload_driver()
    kernel_log = tmp_path / "kernel.log"
    kernel_log.touch()
    database = Database(sqlite_url(tmp_path / "state.db"))
    await database.migrate()
    collector, server = build(database, SystemClock()), rpc.Server()
    collector.register(server.grpc)
    address = await server.start("127.0.0.1:0", collector.service_names)
    running = asyncio.create_task(collector.run(Endpoints.all_at(address)))
    command = ["-m", "switchgear.agent", "--server", address, "--node", "n1", "--interval", "0.2", "--warm-kinds", "0"]
    command += ["--state-dir", str(tmp_path / "agent"), "--kernel-log", str(kernel_log)]
    agent = await asyncio.create_subprocess_exec(sys.executable, *command, env=scenario.environment)
    try:
        async with rpc.channel(address) as channel:
            yield Node(scenario, kernel_log, channel)
    finally:
        agent.kill()
        await agent.wait()
        await server.stop(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await database.close()


async def test_gpus_whose_driver_comes_late_are_read_and_a_fault_a_hang_and_a_loss_are_one_signal_each(
    node: Node,
) -> None:
    await node.until("node_load1", None, ANY)  # the agent runs, and has no GPUs yet
    node.scenario.restart_driver()
    await node.until("DCGM_FI_DEV_GPU_TEMP", 1, 46.0)
    with node.kernel_log.open("a") as log:
        log.write("[12.5] NVRM: Xid (PCI:0000:29:00): 94, pid=7, name=train, Contained: SM (0x1). RST: No, D-RST: No\n")
    node.scenario.xid(1, 94)
    node.scenario.hang(0, "nvmlDeviceGetPowerUsage")
    found = await node.signals(2)
    assert found == [("XID", "nodes/n1/gpus/1"), ("SOURCE_STALLED", "nodes/n1/gpus/0")]
    await node.until("DCGM_FI_DEV_GPU_TEMP", 0, "deadline exceeded")
    assert await node.value("DCGM_FI_DEV_GPU_TEMP", 1) == 46.0
    assert await node.value("DCGM_FI_DEV_XID_ERRORS", 1) == 94.0
    node.scenario.lose(1)
    assert (await node.signals(3))[2] == ("GPU_LOST", "nodes/n1/gpus/1")
    await node.until("DCGM_FI_DEV_XID_ERRORS", 1, 79.0)
