"""Metrics to receivers of OpenTelemetry, over gRPC and HTTP."""

from __future__ import annotations

import gzip
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from export_world import START_NS, Exporting, Sink, exporting, key, window
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as otlp
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    MetricsServiceServicer,
    add_MetricsServiceServicer_to_server,
)

from switchgear.collector.export.settings import OtlpExport
from switchgear.collector.series import Kind

KEYS = [key("power", ("gpu", "0"), unit="W"), key("errors", ("gpu", "0"), kind=Kind.COUNTER)]


class Receiver(MetricsServiceServicer):
    """A receiver of another's making, with what it gets; fails so often first, and rejects so many points of each request."""

    def __init__(self) -> None:
        self.requests: list[otlp.ExportMetricsServiceRequest] = []
        self.metadata: dict[str, str] = {}
        self.failures = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED]
        self.rejected = 0
        self.address = self.address_v6 = ""

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the contract's name
        if self.failures:
            await context.abort(self.failures.pop(), "not yet")
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata())
        partial = otlp.ExportMetricsPartialSuccess(rejected_data_points=self.rejected, error_message="too old")
        return otlp.ExportMetricsServiceResponse(partial_success=partial)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver, server = Receiver(), grpc.aio.server()
    add_MetricsServiceServicer_to_server(receiver, server)
    receiver.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    if socket.has_ipv6:
        receiver.address_v6 = f"http://[::1]:{server.add_insecure_port('[::1]:0')}"
    await server.start()
    yield receiver
    await server.stop(0)


def points(request: Any) -> dict[tuple[str, str, int], float]:
    """By node, metric and time in s after START_NS."""
    found = {}
    for resource in request.resource_metrics:
        node = {item.key: item.value.string_value for item in resource.resource.attributes}["host.name"]
        for metric in resource.scope_metrics[0].metrics:
            for point in getattr(metric, metric.WhichOneof("data")).data_points:
                found[node, metric.name, (point.time_unix_nano - START_NS) // 10**9] = point.as_double
    return found


EXPECTED = {("n", "power", 0): 1.5, ("n", "errors", 0): 7.0, ("n", "power", 1): 2.5, ("n", "errors", 1): 8.0}


def fates(world: Exporting) -> dict[str, float]:
    return {fate: world.counted("otlp_export_samples_total", outcome=fate) for fate in ("sent", "failed", "dropped")}


def tick(world: Exporting) -> None:
    node = window("n", *KEYS)
    world.tick(node, 0, 1.5, 7)
    world.tick(node, 1, 2.5, 8)


@pytest.mark.parametrize("compression", ["none", "gzip"])
async def test_a_grpc_receiver_gets_all_points_after_it_failed(receiver: Receiver, compression: Any) -> None:
    target = OtlpExport(
        url=receiver.address, name="sink", interval_s=0, headers={"X-Team": "a"}, compression=compression
    )
    async with exporting(target) as world:
        tick(world)
        await world.until(lambda: receiver.requests)
    assert points(receiver.requests[0]) == EXPECTED
    assert receiver.metadata["x-team"] == "a"
    assert fates(world) == {"sent": 4, "failed": 0, "dropped": 0}
    assert world.counted("otlp_export_requests_total", code="UNAVAILABLE") == 1


async def test_points_that_a_receiver_rejects_are_counted(receiver: Receiver) -> None:
    for rejected, sent in ((3, 1), (10**18, 0)):
        receiver.failures, receiver.rejected = [], rejected
        receiver.requests.clear()
        async with exporting(OtlpExport(url=receiver.address, name="sink", interval_s=0)) as world:
            tick(world)
            await world.until(lambda: receiver.requests)
        assert fates(world) == {"sent": sent, "failed": 4 - sent, "dropped": 0}
        assert world.counted("otlp_export_samples_lost_total", reason="too_old") == 4 - sent


async def test_a_receiver_may_be_an_ipv6_address(receiver: Receiver) -> None:
    if not receiver.address_v6:
        pytest.skip("no IPv6 here")
    receiver.failures = []
    async with exporting(OtlpExport(url=receiver.address_v6, name="sink", interval_s=0)) as world:
        tick(world)
        await world.until(lambda: receiver.requests)
    assert fates(world) == {"sent": 4, "failed": 0, "dropped": 0}


async def test_a_request_that_is_too_large_for_the_receiver_goes_in_parts(receiver: Receiver) -> None:
    receiver.failures = []
    keys = [key("m", ("text", f"{at:0200}")) for at in range(190)]
    async with exporting(OtlpExport(url=receiver.address, name="sink", interval_s=0, samples_max=50_000)) as world:
        node = window("n", *keys)
        for second in range(100):
            world.tick(node, second, *range(190))
    assert fates(world) == {"sent": 19_000, "failed": 0, "dropped": 0}
    assert len(receiver.requests) == 2
    assert world.counted("otlp_export_requests_total", code="RESOURCE_EXHAUSTED") == 1


@pytest.mark.parametrize("compression", ["none", "gzip"])
async def test_an_http_receiver_gets_the_same(compression: Any) -> None:
    sink = Sink(lambda _: (200, {}, ""))
    url = sink.url.replace("/api/v1/write", "/v1/metrics")
    try:
        async with exporting(
            OtlpExport(url=url, name="sink", protocol="http", interval_s=0, compression=compression)
        ) as world:
            tick(world)
    finally:
        sink.close()
    (body,) = sink.bodies
    body = gzip.decompress(body) if compression == "gzip" else body
    assert points(otlp.ExportMetricsServiceRequest.FromString(body)) == EXPECTED
    assert sink.headers[0]["content-type"] == "application/x-protobuf"
    assert fates(world) == {"sent": 4, "failed": 0, "dropped": 0}
