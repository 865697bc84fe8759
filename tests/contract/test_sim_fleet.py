"""A simulated fleet against a real collector."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
import pytest

from switchgear.cli.compose import ENDPOINTS, PlaneSettings, running
from switchgear.cli.main import main
from switchgear.core import rpc
from switchgear.core.clock import SystemClock
from switchgear.core.errors import Invalid
from switchgear.sim.fleet.fleet import Fleet
from switchgear.sim.fleet.settings import FleetSettings
from switchgear.store.database import sqlite_url
from switchgear.v1 import signal_service_pb2 as signals
from switchgear.v1.signal_service_pb2_grpc import SignalServiceStub
from switchgear.v1alpha import telemetry_service_pb2 as pb
from switchgear.v1alpha.telemetry_service_pb2_grpc import (
    TelemetryServiceServicer,
    TelemetryServiceStub,
    add_TelemetryServiceServicer_to_server,
)

WITHIN_S = 20.0
INTERVAL_S = 0.2


@pytest.fixture
def address() -> str:
    """A port at which a collector can come, go and come again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@contextlib.asynccontextmanager
async def collecting(address: str, folder: Path) -> AsyncIterator[None]:
    settings = PlaneSettings(
        services=("collector",),
        state_dir=folder,
        database_url=sqlite_url(folder / "state.db"),
        grpc=address,
        elsewhere=dict.fromkeys(ENDPOINTS, "127.0.0.1:9"),
    )
    async with running(settings):
        yield


@contextlib.asynccontextmanager
async def a_fleet(address: str, nodes: int, script: str = "") -> AsyncIterator[Fleet]:
    fleet = Fleet(
        FleetSettings(collector=address, nodes=nodes, series=24, interval_s=INTERVAL_S, script=script), SystemClock()
    )
    task = asyncio.create_task(fleet.run())
    try:
        yield fleet
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():  # noqa: ASYNC110 - what happens on the other side of a connection
            await asyncio.sleep(0.02)


async def telemetry(address: str, node: str) -> pb.NodeTelemetry:
    async with rpc.channel(address) as channel:
        return await TelemetryServiceStub(channel).GetNodeTelemetry(
            pb.GetNodeTelemetryRequest(name=f"nodes/{node}/telemetry")
        )


async def xids(address: str) -> list[signals.Signal]:
    async with rpc.channel(address) as channel:
        listed = await SignalServiceStub(channel).ListSignals(signals.ListSignalsRequest())
    return [signal for signal in listed.signals if signal.kind == "GPU_LOST"]


async def test_each_node_streams_its_series_and_tells_its_faults_once(address: str, tmp_path: Path) -> None:
    script = "at 200ms node sim-0007 gpu 3 xid 79\nat 200ms node sim-0009 silent"
    async with collecting(address, tmp_path), a_fleet(address, 20, script) as fleet:
        await until(lambda: fleet.counts.events_acked == 1 and fleet.counts.connected == 19)
        await until(lambda: fleet.counts.blocks_sent >= 80)
        healthy = await telemetry(address, "sim-0020")
        assert {value.labels["hostname"] for value in healthy.values} == {"sim-0020"}
        assert len(healthy.values) == 24
        assert all(value.HasField("value") for value in healthy.values)
        broken = await telemetry(address, "sim-0007")
        assert {value.labels["gpu"] for value in broken.values if not value.HasField("value")} == {"3"}
        (signal,) = await xids(address)
        assert (signal.node, signal.gpu, signal.simulated) == ("nodes/sim-0007", "nodes/sim-0007/gpus/3", True)


async def test_what_a_collector_missed_comes_later_and_nothing_is_lost(address: str, tmp_path: Path) -> None:
    script = "at 1500ms node sim-0002 gpu 0 xid 79"
    async with a_fleet(address, 4, script) as fleet:
        async with collecting(address, tmp_path):
            # The first of a connection is acked at once, later ones together.
            await until(lambda: fleet.counts.blocks_acked >= 4)
        await until(lambda: fleet.counts.events_made == 1)
        made, counts = fleet.counts.blocks_made, fleet.counts
        async with collecting(address, tmp_path):
            await until(lambda: counts.events_acked == 1 and counts.blocks_acked + counts.blocks_late >= made)
            assert counts.blocks_lost == 0
            assert (await telemetry(address, "sim-0002")).blocks_lost == 0
            assert len(await xids(address)) == 1


async def test_a_partition_ends_and_what_was_sampled_meanwhile_comes_later(address: str, tmp_path: Path) -> None:
    script = "at 500ms node sim-0001 partition for 600ms"
    async with collecting(address, tmp_path), a_fleet(address, 2, script) as fleet:
        await until(lambda: fleet.counts.blocks_late >= 2)
        assert fleet.counts.reconnects == 0


async def test_a_node_that_is_cut_off_before_it_has_a_connection_gets_none(address: str, tmp_path: Path) -> None:
    async with collecting(address, tmp_path), a_fleet(address, 1, "at 0s node sim-0001 partition for 1s") as fleet:
        await until(lambda: fleet.counts.connected == 1)
        assert fleet.counts.blocks_made >= 0.8 / INTERVAL_S


async def test_a_name_that_no_host_can_have_is_told_and_tried_again() -> None:
    async with a_fleet("a..b:7070", 1) as fleet:
        await until(lambda: "cannot connect to a..b:7070: " in fleet.counts.last_error)
        fleet.counts.last_error = ""
        await until(lambda: fleet.counts.last_error != "")


class Elsewhere(TelemetryServiceServicer):
    """A collector that sends everybody on to the other one."""

    def __init__(self) -> None:
        self.other = ""
        self.asked_s = list[float]()

    async def Stream(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.CollectorMessage]:  # type: ignore[override]  # noqa: N802
        self.asked_s.append(time.monotonic())
        yield pb.CollectorMessage(redirect=pb.Redirect(address=self.other))


async def test_collectors_that_send_a_node_to_each_other_are_asked_less_and_less_often() -> None:
    first, second = (grpc.aio.server(), Elsewhere()), (grpc.aio.server(), Elsewhere())
    for (server, _), (_, other) in ((first, second), (second, first)):
        other.other = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    for server, elsewhere in (first, second):
        add_TelemetryServiceServicer_to_server(elsewhere, server)
        await server.start()
    asked = lambda: sorted(first[1].asked_s + second[1].asked_s)  # noqa: E731
    async with a_fleet(first[1].other, 1):
        await until(lambda: len(asked()) >= 5)
        # Half of 0.1, 0.2, 0.4 and 0.8 s at least.
        assert asked()[4] - asked()[0] >= 0.75
    for server, _ in (first, second):
        await server.stop(0)


async def test_a_process_of_the_fleet_that_dies_ends_it_with_an_error() -> None:
    command = [sys.executable, "-m", "switchgear.cli.main", "sim", "fleet", "--collector", "127.0.0.1:9"]
    process = await asyncio.create_subprocess_exec(
        *command, "--nodes", "2", "--series", "24", "--processes", "2", stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    await asyncio.wait_for(process.stderr.readline(), 60)
    drivers = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    drivers[0].kill()
    said = await asyncio.wait_for(process.stderr.read(), 60)
    assert await process.wait() != 0
    assert b"a process of the fleet died, and its nodes with it (exit code -9" in said


async def test_a_flood_ends_when_all_is_acked_and_tells_what_it_took(address: str, tmp_path: Path) -> None:
    async with collecting(address, tmp_path):
        command = [sys.executable, "-m", "switchgear.cli.main", "sim", "fleet", "--collector", address]
        flags = ["--nodes", "3", "--series", "24", "--flood", "65", "--processes", "2", "--json"]
        process = await asyncio.create_subprocess_exec(
            *command, *flags, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        told = json.loads((await asyncio.wait_for(process.communicate(), 60))[0])
        assert (told["blocks_acked"], told["connected"], process.returncode) == (195, 3, 0)
        assert len((await telemetry(address, "sim-0003")).values) == 24


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"nodes": 0}, "--nodes must be 1 to"),
        ({"interval_s": 0.001}, "--interval must be 0.1 to 60"),
        ({"collector": "nowhere"}, "write HOST:PORT"),
        ({"series": 1}, "choose --series in between"),
        ({"script": "at 1s node sim-0002 silent"}, "line 1: there is no node sim-0002"),
    ],
)
def test_wrong_settings_are_told_with_what_to_write(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(Invalid, match=told):
        FleetSettings(**({"collector": "127.0.0.1:1", "nodes": 1} | wrong))  # type: ignore[arg-type]


def test_a_certificate_without_a_ca_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "fleet", "--tls-certificate", "x.crt", "--tls-key", "x.key"]) == 2
    assert "need --tls-ca" in capsys.readouterr().err
