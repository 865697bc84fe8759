"""What a gRPC server of ours counts, and how a Prometheus reads it."""

from __future__ import annotations

import asyncio
import logging
import socket
import urllib.request
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from switchgear.core import metrics, rpc
from switchgear.core.errors import FailedPrecondition, NotFound
from switchgear.core.observation import Observation
from switchgear.v1 import fleet_service_pb2 as pb
from switchgear.v1 import fleet_service_pb2_grpc as pb_grpc

SERVICE = "switchgear.v1.FleetService"


class Fleet(pb_grpc.FleetServiceServicer):
    """The node's name says what becomes of the call."""

    async def GetNode(self, request: pb.GetNodeRequest, context: Any) -> pb.Node:  # noqa: N802
        if request.name == "missing":
            raise NotFound("nodes/missing")
        if request.name == "broken":
            raise ValueError("nobody foresaw this")
        if request.name == "slow":
            await asyncio.Event().wait()
        return pb.Node(name=request.name)

    async def CordonNode(self, request: pb.CordonNodeRequest, context: Any) -> pb.Node:  # noqa: N802
        return pb.Node(name=request.name)

    async def WatchNodes(self, request: pb.WatchNodesRequest, context: Any) -> AsyncIterator[pb.WatchNodesResponse]:  # noqa: N802
        yield pb.WatchNodesResponse()
        await asyncio.Event().wait()


class Served:
    """A server that counts, and what it has counted."""

    def __init__(self, stub: Any, registry: CollectorRegistry) -> None:
        self.stub, self._registry = stub, registry

    def handled(self, method: str, code: str, service: str = SERVICE) -> float | None:
        labels = {"grpc_service": service, "grpc_method": method, "grpc_code": code}
        return self._registry.get_sample_value("grpc_server_handled_total", labels)

    def value(self, name: str, method: str) -> float | None:
        return self._registry.get_sample_value(name, {"grpc_service": SERVICE, "grpc_method": method})

    async def eventually(self, method: str, code: str) -> None:
        async with asyncio.timeout(5):
            while self.handled(method, code) != 1:  # noqa: ASYNC110 - the server notices a cancellation when it does
                await asyncio.sleep(0.01)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    registry = CollectorRegistry()
    server = rpc.Server(outermost=[Observation(registry)])
    pb_grpc.add_FleetServiceServicer_to_server(Fleet(), server.grpc)
    address = await server.start("127.0.0.1:0", [SERVICE])
    async with rpc.channel(address) as channel:
        yield Served(pb_grpc.FleetServiceStub(channel), registry)
    await server.stop(0)


async def test_a_call_is_counted_by_the_code_that_its_client_gets(served: Served) -> None:
    await served.stub.GetNode(pb.GetNodeRequest(name="nodes/a"))
    for name in ("missing", "broken"):
        with pytest.raises(grpc.aio.AioRpcError):
            await served.stub.GetNode(pb.GetNodeRequest(name=name))
    for code in ("OK", "NOT_FOUND", "INTERNAL"):
        await served.eventually("GetNode", code)
    assert served.value("grpc_server_handling_seconds_count", "GetNode") == 3


async def test_a_call_that_nobody_waits_for_any_more_is_counted_too(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await served.stub.GetNode(pb.GetNodeRequest(name="slow"), timeout=0.05)
    async with asyncio.timeout(5):
        while not (served.handled("GetNode", "CANCELLED") or served.handled("GetNode", "DEADLINE_EXCEEDED")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_an_open_stream_is_started_and_not_handled_and_has_no_latency(served: Served) -> None:
    stream = served.stub.WatchNodes(pb.WatchNodesRequest())
    await stream.read()
    assert (served.value("grpc_server_started_total", "WatchNodes"), served.handled("WatchNodes", "CANCELLED")) == (
        1,
        None,
    )
    stream.cancel()
    await served.eventually("WatchNodes", "CANCELLED")
    assert served.value("grpc_server_handling_seconds_count", "WatchNodes") is None


async def test_a_method_that_the_server_is_too_old_for_is_counted(served: Served) -> None:
    for method in ("ListNodes", "UncordonNode"):
        with pytest.raises(grpc.aio.AioRpcError):
            await getattr(served.stub, method)(getattr(pb, f"{method}Request")())
        await served.eventually(method, "UNIMPLEMENTED")


async def test_a_method_that_nobody_registered_is_counted_as_unknown() -> None:
    registry = CollectorRegistry()
    server = rpc.Server(outermost=[Observation(registry)])
    address = await server.start("127.0.0.1:0", [])
    async with rpc.channel(address) as channel:
        for name in ("/a.Service/One", "/a.Service/Two"):
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary(name)(b"")
    await server.stop(0)
    labels = {"grpc_service": "unknown", "grpc_method": "unknown", "grpc_code": "UNIMPLEMENTED"}
    assert registry.get_sample_value("grpc_server_handled_total", labels) == 2


async def test_a_change_is_one_line_and_a_read_is_none(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "switchgear.core.observation")
    await served.stub.GetNode(pb.GetNodeRequest(name="nodes/a"))
    await served.stub.CordonNode(pb.CordonNodeRequest(name="nodes/a"))
    (record,) = caplog.records
    assert (vars(record)["method"], vars(record)["code"]) == (f"{SERVICE}/CordonNode", "OK")
    assert vars(record)["duration_ms"] > 0


@pytest.fixture
def exporter() -> Iterator[metrics.MetricsServer]:
    exporter = metrics.MetricsServer.of(metrics.new_registry("scheduler", "recovery"), "127.0.0.1:0")
    yield exporter
    exporter.close()


def test_the_page_says_what_runs_here(exporter: metrics.MetricsServer) -> None:
    with urllib.request.urlopen(f"http://{exporter.address}/metrics") as answer:
        families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
    components = {sample.labels["component"] for sample in families["switchgear_build_info"].samples}
    assert components == {"scheduler", "recovery"}
    assert "process_resident_memory_bytes" in families


def test_clients_that_say_nothing_do_not_keep_a_scrape_out(exporter: metrics.MetricsServer) -> None:
    host, port = rpc.split_address(exporter.address)
    silent = [socket.create_connection((host, port)) for _ in range(metrics.SCRAPES_MAX - 1)]
    try:
        with urllib.request.urlopen(f"http://{exporter.address}/metrics", timeout=5) as answer:
            assert answer.status == 200
    finally:
        for one in silent:
            one.close()


def test_beyond_loopback_metrics_need_tls() -> None:
    with pytest.raises(FailedPrecondition, match="loopback"):
        metrics.MetricsServer.of(CollectorRegistry(), "0.0.0.0:0")
