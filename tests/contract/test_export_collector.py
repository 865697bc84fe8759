"""From an agent's stream through the collector to a store, as its configuration file says."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import numpy as np
from export_world import Sink

from switchgear.collector import config
from switchgear.collector.main import build
from switchgear.core import rpc
from switchgear.core.clock import ManualClock
from switchgear.core.service import Endpoints
from switchgear.store.database import Database
from switchgear.v1alpha import telemetry_service_pb2 as pb
from switchgear.v1alpha.telemetry_service_pb2_grpc import TelemetryServiceStub


def series(number: int, metric: str) -> pb.Series:
    return pb.Series(id=number, metric=metric, labels={"gpu": "0"})


async def test_live_samples_and_those_of_an_outage_go_to_the_store(sqlite_database: Database, tmp_path: Path) -> None:
    sink, file = Sink(), tmp_path / "collector.toml"
    file.write_text(f'[[remote_write]]\nurl = "{sink.url}"\ninterval_s = 0\nexternal_labels = {{cluster = "a"}}\n')
    clock = ManualClock()
    service, server = build(sqlite_database, clock, config=config.load(file)), rpc.Server()
    service.register(server.grpc)
    address = await server.start("127.0.0.1:0", service.service_names)
    running = asyncio.create_task(service.run(Endpoints.all_at(address)))
    now_ns = clock.unix_ns()
    hello = pb.AgentHello(
        node="nodes/n1", boot_id="b", epoch="e", features=[pb.AgentHello.DELTAS, pb.AgentHello.BACKLOG]
    )
    dictionary = pb.Dictionary(series=[series(0, "power"), series(1, "clock")])

    def block(sequence: int, second: int, *values: float) -> pb.Block:
        return pb.Block(
            time_unix_ns=now_ns + second * 10**9,
            sequence=sequence,
            keyframe=True,
            values_f64=np.array(values, "<f8").tobytes(),
        )

    backlog = pb.Backlog(
        epoch="before", dictionary=dictionary, blocks=[block(1, -30, 3, 4)], fresh_from=1, number=1, last=True
    )
    async with rpc.channel(address) as channel:
        call = TelemetryServiceStub(channel).Stream()
        for message in (
            {"hello": hello},
            {"dictionary": dictionary},
            {"block": block(1, 0, 1, 2)},
            {"backlog": backlog},
        ):
            await call.write(pb.AgentMessage(**message))
        async with asyncio.timeout(30):
            while (await call.read()).WhichOneof("kind") != "backlog_ack":
                pass
            while len(sink.samples) < 4:
                clock.advance(0.5)
                await asyncio.sleep(0.02)
        call.cancel()
    await server.stop(0)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    sink.close()
    found = [
        (dict(labels)["__name__"], dict(labels)["cluster"], ms - now_ns // 10**6, value)
        for labels, ms, value, _ in sink.samples
    ]
    assert found == [("power", "a", 0, 1), ("clock", "a", 0, 2), ("power", "a", -30_000, 3), ("clock", "a", -30_000, 4)]
