"""Nodes without an agent of ours: real exporters and senders over real HTTP and gRPC, on both databases."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import access_world
import grpc.aio
import numpy as np
import pytest
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import MetricsServiceStub
from opentelemetry.proto.metrics.v1 import metrics_pb2 as otlp
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, Gauge

from switchgear.access.guard import guard
from switchgear.collector.config import CollectorConfig
from switchgear.collector.imports.store import baselines
from switchgear.collector.main import CollectorService, CollectorSettings
from switchgear.collector.sharding import owner
from switchgear.core import rpc
from switchgear.core.clock import Clock, ManualClock, SystemClock
from switchgear.core.identity import Role
from switchgear.core.metrics import MetricsServer
from switchgear.core.service import Endpoints
from switchgear.store.database import Database, sqlite_url
from switchgear.v1 import signal_service_pb2 as signals
from switchgear.v1.signal_service_pb2_grpc import SignalServiceStub
from switchgear.v1alpha import health_service_pb2 as health_pb
from switchgear.v1alpha import telemetry_service_pb2 as pb
from switchgear.v1alpha.health_service_pb2_grpc import HealthServiceStub
from switchgear.v1alpha.telemetry_service_pb2_grpc import TelemetryServiceStub

WITHIN_S = 20.0
SECOND = 1_000_000_000
XID = 'DCGM_FI_DEV_XID_ERRORS{{gpu="3",UUID="GPU-3",pci_bus_id="00000000:3B:00.0",Hostname="GPU-01"}} {}\n'


class Collector:
    def __init__(self, service: CollectorService, address: str, channel: Any, registry: CollectorRegistry) -> None:
        self._service, self.address, self._registry = service, address, registry
        self.telemetry: Any = TelemetryServiceStub(channel)
        self.metrics: Any = MetricsServiceStub(channel)
        self.health: Any = HealthServiceStub(channel)
        self._signals: Any = SignalServiceStub(channel)

    def newest(self, node: str, source: str) -> dict[str, float]:
        """By metric and labels."""
        (window,) = [window for window in self._service.windows.of(node) if window.source == source] or [None]
        if window is None:
            return {}
        names = [f"{key.metric}{dict(key.labels)}" if key.labels else key.metric for key in window.series]
        return dict(zip(names, window.latest().tolist(), strict=True))

    def times(self, node: str) -> list[int]:
        (window,) = self._service.windows.of(node)
        return window.history()[0].tolist()

    def counted(self, name: str, **labels: str) -> float:
        return self._registry.get_sample_value(name, labels) or 0.0

    async def told(self) -> list[tuple[str, str, str]]:
        """Node, kind and severity of all signals, oldest first."""
        listed = (await self._signals.ListSignals(signals.ListSignalsRequest())).signals
        return [(one.gpu or one.node, one.kind, signals.Signal.Severity.Name(one.severity)) for one in reversed(listed)]


@contextlib.asynccontextmanager
async def serving(database: Database, clock: Clock, config: dict[str, Any]) -> AsyncIterator[Collector]:
    registry = CollectorRegistry()
    service = CollectorService(database, clock, CollectorSettings(), registry, CollectorConfig.model_validate(config))
    server = rpc.Server([guard(database, clock, None).interceptor])
    service.register(server.grpc)
    address = await server.start("127.0.0.1:0", service.service_names)
    running = asyncio.create_task(service.run(Endpoints.all_at(address)))
    try:
        async with rpc.channel(address) as channel:
            yield Collector(service, address, channel, registry)
    finally:
        await server.stop(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[Database]:
    """For what is the same on each database."""
    database = Database(sqlite_url(tmp_path / "state.db"))
    await database.migrate()
    yield database
    await database.close()


class Exporter(ThreadingHTTPServer):
    """Answers with `answer`; None: hangs up."""

    daemon_threads = True

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], None]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with contextlib.suppress(OSError):
                    answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/metrics"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Page:
    def __init__(self, text: str = "") -> None:
        self.text: str | None = text

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        if self.text is None:
            return
        request.send_response(200)
        request.send_header("Content-Length", str(len(self.text.encode())))
        request.end_headers()
        request.wfile.write(self.text.encode())


@pytest.fixture
def exporters() -> Iterator[Callable[[Callable[[BaseHTTPRequestHandler], None]], Exporter]]:
    running = list[Exporter]()

    def start(answer: Callable[[BaseHTTPRequestHandler], None]) -> Exporter:
        running.append(Exporter(answer))
        return running[-1]

    yield start
    for exporter in running:
        exporter.close()


async def until(holds: Callable[[], Any]) -> None:
    """Polls: what comes does so over sockets and through a database. `holds` may be async."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            found = holds()
            if await found if asyncio.iscoroutine(found) else found:
                return
            await asyncio.sleep(0.02)


def points(
    *values: float,
    metric: str = "power",
    at: int,
    node: str = "n1",
    gpu: str = "0",
    kind: str = "gauge",
) -> otlp.ResourceMetrics:
    """One sample a second from `at` on, in ns."""
    found = [
        otlp.NumberDataPoint(time_unix_nano=at + number * SECOND, as_double=value)
        for number, value in enumerate(values)
    ]
    for point in found:
        point.attributes.add(key="gpu").value.string_value = gpu
    made = otlp.Metric(name=metric, unit="W")
    if kind == "gauge":
        made.gauge.data_points.extend(found)
    else:
        made.sum.data_points.extend(found)
        made.sum.is_monotonic = True
        made.sum.aggregation_temporality = otlp.AggregationTemporality.Value(f"AGGREGATION_TEMPORALITY_{kind}")
    resource = otlp.ResourceMetrics(scope_metrics=[otlp.ScopeMetrics(metrics=[made])])
    if node:
        resource.resource.attributes.add(key="host.name").value.string_value = node
    return resource


async def export(collector: Collector, *resources: otlp.ResourceMetrics) -> tuple[int, str]:
    request = ExportMetricsServiceRequest(resource_metrics=resources)
    answer = (await collector.metrics.Export(request, timeout=WITHIN_S)).partial_success
    return answer.rejected_data_points, answer.error_message


OTLP: dict[str, Any] = {"otlp_import": {"enabled": True}}


async def test_metrics_of_the_opentelemetry_sdk_come_into_the_window_of_their_host(sqlite: Database) -> None:
    async with serving(sqlite, SystemClock(), OTLP) as collector:
        exporter = OTLPMetricExporter(endpoint=collector.address, insecure=True)
        reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
        resource = Resource({"host.name": "GPU-07", "service.name": "trainer"})
        provider = MeterProvider([reader], resource, shutdown_on_exit=False)
        meter = provider.get_meter("test")
        meter.create_gauge("gpu.power", "W").set(317.5, {"gpu": "0"})
        steps = meter.create_counter("steps")
        steps.add(3)
        meter.create_histogram("latency").record(0.1)
        assert await asyncio.to_thread(provider.force_flush)
        steps.add(4)
        assert await asyncio.to_thread(provider.force_flush)
        service = {"service_name": "trainer"}
        expected = {f"gpu_power{ {'gpu': '0', **service} }": 317.5, f"steps{service}": 7.0}
        await until(lambda: collector.newest("nodes/gpu-07", "otlp") == expected)
        assert collector.counted("switchgear_import_rejected_total", reason="histogram") == 2
        await asyncio.to_thread(provider.shutdown)


async def test_sums_add_up_and_points_are_taken_in_order_and_once(sqlite: Database) -> None:
    clock = ManualClock()
    async with serving(sqlite, clock, OTLP) as collector:
        now = clock.unix_ns()
        deltas = points(1, 2, 3, metric="d", at=now, kind="DELTA")
        assert await export(collector, points(5, 6, at=now), deltas) == (0, "")
        assert collector.newest("nodes/n1", "otlp") == {"power{'gpu': '0'}": 6, "d{'gpu': '0'}": 6}
        rejected, why = await export(collector, deltas, points(9, at=now), points(7, at=now + 3 * SECOND))
        assert (rejected, "4 out_of_order" in why) == (4, True)
        assert collector.newest("nodes/n1", "otlp") == {"power{'gpu': '0'}": 7, "d{'gpu': '0'}": 6}
        assert collector.times("nodes/n1") == [now + number * SECOND for number in range(4)]


async def test_what_cannot_be_taken_is_told_with_its_reason(sqlite: Database) -> None:
    clock = ManualClock()
    async with serving(sqlite, clock, {"otlp_import": {"enabled": True, "nodes_max": 1}}) as collector:
        now = clock.unix_ns()
        assert await export(collector, points(1, at=now)) == (0, "")
        bad = [
            points(1, at=now, node=""),
            points(1, 2, at=now, node="n2"),
            points(1, at=now + 3600 * SECOND),
            points(1, at=2**63 + 5),
            points(1, at=1),
            points(1, at=now, gpu="x" * 300),
        ]
        rejected, why = await export(collector, *bad)
        assert rejected == 7
        assert {"3 time", "2 nodes", "1 no_node", "1 labels"} <= set(
            why.partition(": ")[2].partition(";")[0].split(", ")
        )
        assert collector.newest("nodes/n1", "otlp") == {"power{'gpu': '0'}": 1}


async def test_series_that_keep_changing_neither_fill_the_window_nor_grow_it(sqlite: Database) -> None:
    clock = ManualClock()
    async with serving(sqlite, clock, OTLP) as collector:
        for export_number in range(5):
            clock.advance(100)
            await export(
                collector,
                points(export_number, at=clock.unix_ns()),
                *(
                    points(1, at=clock.unix_ns(), metric="churn", gpu=f"{export_number}-{number}")
                    for number in range(1500)
                ),
            )
            newest = collector.newest("nodes/n1", "otlp")
            assert newest["power{'gpu': '0'}"] == export_number
            assert len(newest) <= 4096
        assert collector.counted("switchgear_import_epochs_total") >= 1


async def test_a_fault_in_exported_series_is_told_once_over_a_restart(database: Database) -> None:
    clock = ManualClock()

    def xid(value: float, at_s: float = 0) -> otlp.ResourceMetrics:
        return points(value, metric="DCGM_FI_DEV_XID_ERRORS", at=clock.unix_ns() + round(at_s * SECOND), gpu="3")

    told = [("nodes/n1/gpus/3", "GPU_LOST", "FATAL")]
    async with serving(database, clock, OTLP) as collector:
        await export(collector, xid(0))
        await export(collector, xid(79, 10))
        await until(lambda: _is(collector.told(), told))
        await until(lambda: _stored(database, 79))
    clock.advance(60)
    async with serving(database, clock, OTLP) as collector:
        await export(collector, xid(79))
        clock.advance(100)
        # Of the time in which there was no collector, too: a change is a change.
        await export(collector, xid(48))
        told += [("nodes/n1/gpus/3", "XID", "FATAL")]
        await until(lambda: _is(collector.told(), told))


async def test_an_agent_beside_an_exporter_is_the_one_that_tells(sqlite: Database) -> None:
    clock = ManualClock()
    async with serving(sqlite, clock, OTLP) as collector:
        stream = collector.telemetry.Stream()
        await stream.write(pb.AgentMessage(hello=pb.AgentHello(node="nodes/n1", boot_id="b", epoch="e")))
        block = pb.Block(time_unix_ns=clock.unix_ns(), sequence=1, keyframe=True)
        await stream.write(pb.AgentMessage(block=block))
        assert (await asyncio.wait_for(stream.read(), WITHIN_S)).block_ack.sequence == 1
        for number, value in enumerate((0, 79)):
            at = clock.unix_ns() + number * SECOND
            await export(collector, points(value, metric="DCGM_FI_DEV_XID_ERRORS", at=at))
            await export(collector, points(value, metric="DCGM_FI_DEV_XID_ERRORS", at=at, node="n2"))
        await until(lambda: _is(collector.told(), [("nodes/n2/gpus/0", "GPU_LOST", "FATAL")]))
        stream.cancel()


async def test_over_tls_a_node_exports_for_itself_and_an_operator_for_all(sqlite: Database, tmp_path: Path) -> None:
    clock = SystemClock()  # certificates are of today
    service = CollectorService(
        sqlite, clock, CollectorSettings(), CollectorRegistry(), CollectorConfig.model_validate(OTLP)
    )
    async with access_world.serving(sqlite, tmp_path / "pki", [service], clock) as world:
        running = asyncio.create_task(service.run(Endpoints.all_at(world.people)))

        async def outcome(node: str, channel: Any) -> str:
            request = ExportMetricsServiceRequest(resource_metrics=[points(1, at=clock.unix_ns(), node=node)])
            async with channel:
                try:
                    await MetricsServiceStub(channel).Export(request, timeout=WITHIN_S)
                except grpc.aio.AioRpcError as error:
                    return error.code().name
            return "OK"

        files = await world.node("n1", tmp_path)
        operator, viewer = [await world.token("ann", role) for role in (Role.OPERATOR, Role.VIEWER)]
        assert [
            await outcome("n1", world.channel(files=files)),
            await outcome("n2", world.channel(files=files)),
            await outcome("n2", world.channel(operator)),
            await outcome("n2", world.channel(viewer)),
            await outcome("n2", world.channel()),
        ] == ["OK", "PERMISSION_DENIED", "OK", "PERMISSION_DENIED", "UNAUTHENTICATED"]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_node_of_another_collector_is_not_taken_in(sqlite: Database, exporters: Any) -> None:
    sharding = {"collectors": ["a:1", "b:1"], "own": "a:1"}
    theirs, ours = sorted(
        (f"n{number}" for number in range(20)), key=lambda node: owner(f"nodes/{node}", ["a:1", "b:1"])
    )[::-19]
    scrape = {"name": "x", "url": exporters(Page("a 1\n")).url, "interval_s": 0.2, "timeout_s": 0.2}
    scrapes = [{**scrape, "name": node, "node": node} for node in (ours, theirs)]
    clock = SystemClock()
    async with serving(sqlite, clock, {**OTLP, "sharding": sharding, "scrape": scrapes}) as collector:
        rejected, why = await export(collector, *(points(1, at=clock.unix_ns(), node=node) for node in (ours, theirs)))
        assert (rejected, "1 elsewhere" in why) == (1, True)
        await until(lambda: collector.newest(f"nodes/{ours}", f"scrape/{ours}").get("a"))
        assert (
            collector.newest(f"nodes/{theirs}", "otlp") == collector.newest(f"nodes/{theirs}", f"scrape/{theirs}") == {}
        )


async def _stored(database: Database, value: float) -> bool:
    async with database.read() as session:
        return any(value in baseline.values.values() for baseline in (await baselines(session)).values())


async def _is(found: Any, expected: object) -> bool:
    return bool(await found == expected)


async def test_a_scraped_node_is_judged_and_its_silence_told(sqlite: Database, exporters: Any) -> None:
    clock, page = ManualClock(), Page(XID.format(0) + "go_threads 5\n")
    exporter = exporters(page)
    scrape = {"name": "dcgm", "url": exporter.url, "node_label": "Hostname", "interval_s": 0.2, "timeout_s": 0.2}
    up = f"switchgear_import_up{ {'target': exporter.url} }"

    def newest() -> tuple[Any, ...]:
        found = collector.newest("nodes/gpu-01", "scrape/dcgm")
        xids = [value for name, value in found.items() if name.startswith("DCGM")]
        return xids[:1], found.get("go_threads"), found.get(up)

    async with serving(sqlite, clock, {"scrape": [scrape]}) as collector:
        await until(lambda: newest() == ([0], 5, 1))
        clock.advance(5)
        page.text = XID.format(79)
        await until(lambda: _is(collector.told(), [("nodes/gpu-01/gpus/3", "GPU_LOST", "FATAL")]))
        assert newest()[0] == [79]
        assert np.isnan(newest()[1])
        page.text = None
        clock.advance(5)
        await until(lambda: newest()[2] == 0)
        assert np.isnan(newest()[0]).all()
        clock.advance(20)
        silent = [("nodes/gpu-01/gpus/3", "GPU_LOST", "FATAL"), ("nodes/gpu-01", "NODE_SILENT", "WARNING")]
        await until(lambda: _is(collector.told(), silent))


async def test_a_node_whose_agent_is_gone_for_good_is_heard_through_its_exporter(
    sqlite: Database, exporters: Any
) -> None:
    clock = ManualClock()
    scrape = {"name": "x", "url": exporters(Page("a 1\n")).url, "node": "n1", "interval_s": 0.2, "timeout_s": 0.2}

    async def is_now(verdict: str) -> bool:
        listed = await collector.health.ListNodeHealth(health_pb.ListNodeHealthRequest())
        return [health_pb.NodeHealth.Verdict.Name(one.verdict) for one in listed.nodes] == [verdict]

    async with serving(sqlite, clock, {"scrape": [scrape]}) as collector:
        stream = collector.telemetry.Stream()
        await stream.write(pb.AgentMessage(hello=pb.AgentHello(node="nodes/n1", boot_id="b", epoch="e")))
        await until(lambda: collector.counted("switchgear_collector_streams") == 1)
        before = collector.counted("switchgear_import_scrapes_total", scrape="x", outcome="ok")
        await until(lambda: collector.counted("switchgear_import_scrapes_total", scrape="x", outcome="ok") > before + 1)
        stream.cancel()
        await until(lambda: collector.counted("switchgear_collector_streams") == 0)
        clock.advance(11)
        await until(lambda: is_now("SILENT"))
        clock.advance(600)
        await until(lambda: is_now("HEALTHY"))


async def test_exporters_that_fail_in_every_way_cost_their_own_series_alone(
    sqlite: Database, exporters: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def answers(status: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
        def answer(request: BaseHTTPRequestHandler) -> None:
            request.send_response(status)
            for name, value in headers.items():
                request.send_header(name, value)
            request.end_headers()
            request.wfile.write(b"a 1\n")

        return answer

    def endless(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        for _ in range(30):
            request.wfile.write(b"a 1\n")
            time.sleep(0.1)

    def huge(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        for _ in range(17):
            request.wfile.write(b"# " + b"x" * 1024 * 1024 + b"\n")

    (tmp_path / "token").write_text("s3cret\n")

    def secret(request: BaseHTTPRequestHandler) -> None:
        answers(200 if request.headers["Authorization"] == "Bearer s3cret" else 401)(request)

    registry = CollectorRegistry()
    Gauge("ours", "as prometheus_client shows it", registry=registry).set(4)
    real = MetricsServer.of(registry, "127.0.0.1:0")
    ways = {
        "status": answers(500),
        "redirect": answers(302, Location="http://127.0.0.1:1/"),
        "timeout": endless,
        "too_large": huge,
        "garbage": Page("<html>no metrics</html>\n"),
        "unreachable": Page(),
        "settings": Page(),
        "broken": Page(),
        "ok": secret,
    }
    scrapes: list[dict[str, Any]] = [
        {"name": way.replace("_", "-"), "url": exporters(answer).url, "node": "n1", "interval_s": 0.5, "timeout_s": 0.5}
        for way, answer in ways.items()
    ]
    by_name = {scrape["name"]: scrape for scrape in scrapes}
    by_name["unreachable"]["url"] = "http://127.0.0.1:1/metrics"
    by_name["settings"]["bearer_token_file"] = tmp_path / "none"
    (tmp_path / "broken").write_text("top\nsecret")
    by_name["broken"]["bearer_token_file"] = tmp_path / "broken"
    by_name["ok"]["bearer_token_file"] = tmp_path / "token"
    scrapes.append(
        {"name": "real", "url": f"http://{real.address}/metrics", "node": "n2", "interval_s": 1, "timeout_s": 1}
    )
    try:
        async with serving(sqlite, SystemClock(), {"scrape": scrapes}) as collector:
            for way in ways:
                labels = {"scrape": way.replace("_", "-"), "outcome": "settings" if way == "broken" else way}
                await until(lambda labels=labels: collector.counted("switchgear_import_scrapes_total", **labels))
            await until(lambda: collector.newest("nodes/n2", "scrape/real").get("ours") == 4)
            assert collector.newest("nodes/n1", "scrape/ok")["a"] == 1
            assert collector.counted("switchgear_import_scrapes_total", scrape="ok", outcome="status") == 0
            assert "top" not in caplog.text
    finally:
        real.close()
