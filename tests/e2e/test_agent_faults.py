"""Each fault that simulated hardware can have, from a script of the agent to the collector's store and its live values."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from switchgear.collector.main import build
from switchgear.collector.store import EventRow
from switchgear.core import rpc
from switchgear.core.clock import SystemClock
from switchgear.core.service import Endpoints
from switchgear.store.database import Database, sqlite_url
from switchgear.v1alpha import telemetry_service_pb2 as telemetry
from switchgear.v1alpha.telemetry_service_pb2_grpc import TelemetryServiceStub

WITHIN_S = 30.0
#: Everything begins after the agent has seen the hardware well once.
SCRIPT = """
at 1s gpu 0 xid 94
at 1s gpu 1 xid 149 link 7
at 1s gpu 2 vanish
at 1s gpu 3 hang
at 1s gpu 4 thermal-throttle
at 1s gpu 5 slow clock 600
at 1s gpu 7 nvlink-errors link 3 rate 50
at 1s nic 0 link-flap times 3 for 200ms
at 1s nvswitch 1 sxid 20034 fatal link 12
"""
#: Kind, code, GPU, PCI.
EXPECTED = {
    ("XID", 94, 0, "0000:10:00"),
    ("XID", 149, 1, "0000:11:00"),
    ("GPU_FALLEN_OFF_BUS", 79, 2, "0000:12:00"),
    ("SOURCE_STALLED", None, 3, ""),
    ("XID", 74, 7, "0000:17:00"),
    ("LINK_FLAPPING", None, None, "0000:60:00"),
    ("SXID", 20034, None, "0000:c1:00"),
}


class Plane:
    """A collector, and an agent that streams to it."""

    def __init__(self, database: Database, stub: Any) -> None:
        self._database = database
        self._stub = stub

    async def events(self) -> list[EventRow]:
        async with self._database.read() as session:
            return list((await session.execute(select(EventRow))).scalars())

    async def values(self, metric: str) -> dict[int, float | str]:
        """By GPU."""
        answer = await self._stub.GetNodeTelemetry(telemetry.GetNodeTelemetryRequest(name="nodes/n1/telemetry"))
        return {
            int(item.labels["gpu"]): item.value if item.HasField("value") else item.unknown_reason
            for item in answer.values
            if item.metric == metric
        }


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    database = Database(sqlite_url(tmp_path / "state.db"))
    await database.migrate()
    collector, server = build(database, SystemClock()), rpc.Server()
    collector.register(server.grpc)
    address = await server.start("127.0.0.1:0", collector.service_names)
    running = asyncio.create_task(collector.run(Endpoints.all_at(address)))
    script = tmp_path / "faults.txt"
    script.write_text(SCRIPT)
    command = ["-m", "switchgear.agent", "--server", address, "--node", "n1", "--state-dir", str(tmp_path / "agent")]
    command += ["--sim-gpus", "8", "--sim-script", str(script), "--interval", "0.25", "--warm-kinds", "0"]
    agent = await asyncio.create_subprocess_exec(sys.executable, *command)
    try:
        async with rpc.channel(address) as channel:
            yield Plane(database, TelemetryServiceStub(channel))
    finally:
        with contextlib.suppress(ProcessLookupError):
            agent.kill()
        await agent.wait()
        await server.stop(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await database.close()


async def test_every_fault_arrives_as_an_event_or_in_the_values_and_nowhere_else(plane: Plane) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not (found := {(e.kind, e.code, e.gpu, e.pci) for e in await plane.events()}) >= EXPECTED:  # noqa: ASYNC110 - in another process
            await asyncio.sleep(0.1)
    events = await plane.events()
    assert all(event.simulated for event in events if event.source in {"kernel_log", "simulated-network"})
    assert {e.detail.get("link") for e in events if e.code in {149, 20034, 74}} == {"7", "12", "3"}
    assert not [event.kind for event in events if event.kind.startswith("NET_LINK")], "a link is told once"
    assert len([e for e in events if e.code == 94]) == 1
    assert not {gpu for _, _, gpu, _ in found} & {4, 5}, "a fault that only counters show has no event of its own"

    async with asyncio.timeout(WITHIN_S):
        while "deadline exceeded" not in (await plane.values("DCGM_FI_DEV_SM_CLOCK")).values():  # noqa: ASYNC110 - in another process
            await asyncio.sleep(0.1)
    clocks = await plane.values("DCGM_FI_DEV_SM_CLOCK")
    assert (clocks[2], clocks[3]) == ("GPU is lost", "deadline exceeded")
    assert _numbers(clocks)[5] <= 600 < _numbers(clocks)[4] < 1200 < _numbers(clocks)[0]
    assert await plane.values("DCGM_FI_DEV_XID_ERRORS") == {0: 94, 1: 149, 2: 79, 3: 0, 4: 0, 5: 0, 6: 0, 7: 74}
    reasons = _numbers(await plane.values("DCGM_FI_DEV_CLOCKS_EVENT_REASONS"))
    assert int(reasons[4]) & 0x40
    assert not int(reasons[5]) & 0x40
    assert _numbers(await plane.values("DCGM_FI_DEV_GPU_TEMP"))[4] >= 87


def _numbers(values: dict[int, float | str]) -> dict[int, float]:
    return {gpu: value for gpu, value in values.items() if isinstance(value, float)}
