"""A collector that records, its end by SIGKILL, and what a replay makes of its files."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest

from switchgear.cli.main import main
from switchgear.core import rpc
from switchgear.store.database import Database, sqlite_url
from switchgear.v1 import signal_service_pb2 as signals
from switchgear.v1.signal_service_pb2_grpc import SignalServiceStub
from switchgear.v1alpha import telemetry_service_pb2 as pb
from switchgear.v1alpha.telemetry_service_pb2_grpc import TelemetryServiceStub

WITHIN_S = 60.0
RUN = """
import asyncio, sys
from pathlib import Path
from switchgear.collector import config
from switchgear.collector.main import CollectorSettings, build
from switchgear.core import rpc
from switchgear.store.database import Database, sqlite_url
from switchgear.core.clock import SystemClock
from switchgear.core.service import Endpoints
from switchgear.store.database import Database

async def run(url, file, address):
    service = build(Database(url), SystemClock(), CollectorSettings(silence_s=0.3), config=config.load(Path(file)))
    server = rpc.Server()
    service.register(server.grpc)
    await service.run(Endpoints.all_at(await server.start(address, service.service_names)))

asyncio.run(run(*sys.argv[1:]))
"""


class Collector:
    """A process of its own, so that it can be killed."""

    def __init__(self, folder: Path, url: str) -> None:
        self.recording = folder / "recording"
        self._url, self._file = url, folder / "collector.toml"
        self._file.write_text(f'[recording]\nfolder = "{self.recording}"\n')
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", RUN, self._url, str(self._file), self.address])

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    async def told(self, count: int) -> list[tuple[str, ...]]:
        """All signals as soon as there are so many."""
        async with rpc.channel(self.address) as channel, asyncio.timeout(WITHIN_S):
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    found = (await SignalServiceStub(channel).ListSignals(signals.ListSignalsRequest())).signals
                    if len(found) >= count:
                        return [_listed(one) for one in found]
                await asyncio.sleep(0.02)

    @contextlib.asynccontextmanager
    async def agent(self, node: str, *, xids: dict[int, int] | None = None, rows: int = 3) -> Any:
        """Streams a few rows and these faults, by sequence; all are acked when the block begins."""
        xids = xids or {}
        async with rpc.channel(self.address) as channel:
            call = await self._connected(channel, node)
            key = [
                pb.Series(id=at, metric=name, unit="W", labels={"gpu": "0"}) for at, name in enumerate(("power", "fan"))
            ]
            await call.write(pb.AgentMessage(dictionary=pb.Dictionary(series=key)))
            for row in range(1, rows + 1):
                values = np.array([row, np.nan], "<f8").tobytes()
                block = pb.Block(time_unix_ns=time.time_ns(), sequence=row, keyframe=True, values_f64=values)
                await call.write(pb.AgentMessage(block=block))
            for sequence, code in xids.items():
                event = pb.Event(
                    kind="XID",
                    code=code,
                    gpu=3,
                    text=f"Xid {code}",
                    source="kernel_log",
                    boot_id=f"b-{node}",
                    sequence=sequence,
                )
                await call.write(pb.AgentMessage(event=event))
            acked = set[int]()
            async with asyncio.timeout(WITHIN_S):
                while not acked >= xids.keys():
                    message = await call.read()
                    if message.WhichOneof("kind") == "event_ack":
                        acked.add(message.event_ack.sequence)
            yield
            call.cancel()

    async def _connected(self, channel: Any, node: str) -> Any:
        async with asyncio.timeout(WITHIN_S):
            while True:
                call = TelemetryServiceStub(channel).Stream()
                with contextlib.suppress(grpc.aio.AioRpcError):
                    hello = pb.AgentHello(node=node, boot_id=f"b-{node}", epoch="e", features=[pb.AgentHello.DELTAS])
                    await call.write(pb.AgentMessage(hello=hello))
                    if await call.read() is not grpc.aio.EOF:
                        return call
                assert self._process is not None
                assert self._process.poll() is None, "the collector ended by itself"
                await asyncio.sleep(0.05)


def _listed(one: signals.Signal) -> tuple[str, ...]:
    at = one.time.ToDatetime()
    severity = signals.Signal.Severity.Name(one.severity)
    gpu = f"gpu {one.gpu.rpartition('/')[2]}" if one.gpu else ""
    stamp = f"{at:%Y-%m-%dT%H:%M:%S}.{one.time.nanos:09}Z"
    return stamp, one.node, gpu, one.kind, severity, one.action, one.evidence, one.name.rpartition("/")[2]


def replayed(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[dict[str, Any]]]:
    capsys.readouterr()
    code = main(["replay", *map(str, arguments), "--json"])
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def raised(lines: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    names = ("time", "node", "gpu", "kind", "severity", "action", "evidence", "signal_id")
    return sorted(tuple(line[name] or "" for name in names) for line in lines if line["what"] == "signal")


async def same_as_recorded(capsys: pytest.CaptureFixture[str], recording: Path) -> None:
    async with asyncio.timeout(WITHIN_S):
        while replayed(capsys, recording, "--compare") != (0, []):  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.05)


async def test_after_sigkill_a_replay_raises_the_same_signals(
    tmp_path: Path, sqlite_database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    collector = Collector(tmp_path, sqlite_url(tmp_path / "state.db"))
    try:
        collector.start()
        async with collector.agent("nodes/a", xids={1: 79, 2: 13}):
            pass
        await collector.told(3)  # its silence too
        async with collector.agent("nodes/b", xids={1: 48}):
            told = await collector.told(4)
            collector.kill()
        _, lines = replayed(capsys, collector.recording)
        assert raised(lines) == sorted(told)
        assert [(line["node"], line["verdict"]) for line in lines if line["what"] == "verdict"] == [
            ("nodes/a", "HEALTHY -> FAILED"),
            ("nodes/b", "HEALTHY -> FAILED"),
        ]
        collector.start()
        async with collector.agent("nodes/a", xids={1: 79, 3: 74}):  # one that was told before
            told = await collector.told(6)  # and the silence of b, which did not come back
            await same_as_recorded(capsys, collector.recording)  # a silence is recorded just after it is stored
        collector.kill()
    finally:
        collector.kill()
    assert raised(replayed(capsys, collector.recording)[1]) == sorted(told)
    assert replayed(capsys, collector.recording, "--compare") == (0, [])
    code, lines = replayed(capsys, collector.recording, "--compare", "--silence-s", "60")
    assert (code, {(line["what"], line["kind"]) for line in lines}) == (1, {("missing", "NODE_SILENT")})
    assert [path.suffix for path in sorted(collector.recording.glob("events-*"))] == [".parquet", ".arrows"]
