"""Queries over real gRPC and REST, and what the windows tell of their memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from switchgear.cli.main import main
from switchgear.collector.config import CollectorConfig
from switchgear.collector.main import CollectorService, CollectorSettings
from switchgear.collector.memory import WindowSettings
from switchgear.collector.windows import SeriesKey, Windows
from switchgear.core import rpc
from switchgear.core.clock import ManualClock
from switchgear.core.errors import Invalid, Reason
from switchgear.core.service import Endpoints
from switchgear.gateway.main import build_app, serve
from switchgear.store.database import Database, sqlite_url
from switchgear.v1alpha import telemetry_service_pb2 as pb
from switchgear.v1alpha.telemetry_service_pb2_grpc import TelemetryServiceStub

S = 1_000_000_000


@dataclass
class Collector:
    address: str
    telemetry: Any
    http: httpx.AsyncClient
    windows: Windows
    clock: ManualClock
    registry: CollectorRegistry


@pytest.fixture
async def collector(tmp_path: Path) -> AsyncIterator[Collector]:
    """With two nodes that told three values each."""
    clock, registry = ManualClock(), CollectorRegistry()
    database = Database(sqlite_url(tmp_path / "state.db"))
    config = CollectorConfig(windows=WindowSettings(memory_gib=0.01))
    service, server = CollectorService(database, clock, CollectorSettings(), registry, config), rpc.Server()
    service.register(server.grpc)
    for node in ("a", "b"):
        window = service.windows.connect(f"nodes/{node}", "epoch")
        service.windows.define(window, 0, [SeriesKey("temp", "celsius", (("gpu", str(gpu)),)) for gpu in range(2)])
        for back in (2, 1, 0):
            window.append(clock.unix_ns() - back * S, np.arange(2), np.array([50.0 - back, np.nan]))
    address = await server.start("127.0.0.1:0", service.service_names)
    async with (
        rpc.channel(address) as channel,
        serve(build_app(Endpoints.all_at(address)), "127.0.0.1", 0) as http_address,
        httpx.AsyncClient(base_url=f"http://{http_address}", trust_env=False) as http,
    ):
        yield Collector(address, TelemetryServiceStub(channel), http, service.windows, clock, registry)
    await server.stop(0)
    await database.close()


async def test_values_of_all_nodes_come_on_one_grid_over_grpc_and_rest(collector: Collector) -> None:
    request = pb.QueryRequest(selector='temp{gpu=~"0|1", node!="b"}', reduction=pb.QueryRequest.MAX)
    answer = await collector.telemetry.Query(request)
    assert answer.start_time.ToNanoseconds() == collector.clock.unix_ns() - 120 * S
    known, unknown = answer.series
    assert (known.node, known.source, known.metric, known.unit) == ("nodes/a", "agent", "temp", "celsius")
    assert (dict(known.labels), list(known.values[-3:]), len(known.values)) == ({"gpu": "0"}, [48, 49, 50], 121)
    assert np.isnan(known.values[:-3]).all()
    assert np.isnan(unknown.values).all()
    start = answer.start_time.ToJsonString()
    shown = await collector.http.get(
        "/v1alpha/telemetry:query",
        params={"selector": 'temp{gpu="0"}', "startTime": start, "stepSeconds": 60, "reduction": "MEAN"},
    )
    assert shown.status_code == 200, shown.text
    assert [(one["node"], one["values"][-1]) for one in shown.json()["series"]] == [("nodes/a", 49), ("nodes/b", 49)]


async def test_a_selector_that_is_wrong_is_told_with_its_column_everywhere(
    collector: Collector, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Exception, match="column 5") as caught:
        await collector.telemetry.Query(pb.QueryRequest(selector="temp}"))
    error = rpc.from_rpc_error(caught.value)
    assert (type(error), error.reason, error.metadata["column"]) == (Invalid, Reason.BAD_FIELD, "5")
    shown = await collector.http.get("/v1alpha/telemetry:query", params={"selector": "temp}"})
    assert (shown.status_code, shown.json()["error"]["details"][0]["metadata"]["column"]) == (400, "5")
    assert await asyncio.to_thread(main, ["query", "temp}", "--server", collector.address]) == 2
    assert "column 5: nothing may follow" in capsys.readouterr().err


async def test_the_command_shows_each_series_with_its_shape(
    collector: Collector, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await asyncio.to_thread(main, ["query", "temp", "--server", collector.address]) == 0
    header, columns, first, second, *_ = capsys.readouterr().out.splitlines()
    assert header.endswith("each 1 s: last")
    assert columns.split() == ["NODE", "LABELS", "MIN", "MEAN", "MAX", "LAST", "UNIT", "VALUES"]
    assert first.split()[:7] == ["a", "gpu=0", "48", "49", "50", "50", "celsius"]
    assert first.endswith("·▁█")
    assert second.split()[:6] == ["a", "gpu=1", *["unknown"] * 4]
    assert await asyncio.to_thread(main, ["query", "other", "--last", "2h", "--server", collector.address]) == 0
    assert "no such series" in capsys.readouterr().out


async def test_the_windows_tell_what_they_take(collector: Collector) -> None:
    def of(name: str) -> float | None:
        return collector.registry.get_sample_value(f"switchgear_collector_window_{name}")

    assert (of("nodes"), of("series"), of("bytes_max")) == (2, 4, int(0.01 * 1024**3))
    assert of("bytes") == collector.windows.nbytes > 0
