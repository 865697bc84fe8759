"""`/metrics` and Prometheus' discovery of a whole control plane in one process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from access_world import foreign_files
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from switchgear.access import pki
from switchgear.cli.compose import ENDPOINTS, SERVICES, Plane, PlaneSettings, running
from switchgear.core import rpc
from switchgear.core.clock import SystemClock
from switchgear.core.metrics import MetricsServer
from switchgear.core.tls import TlsFiles
from switchgear.store.database import Database, sqlite_url
from switchgear.store.holder import Candidate
from switchgear.v1 import fleet_service_pb2 as fleet_pb
from switchgear.v1alpha import node_agent_service_pb2 as agent_pb
from switchgear.v1alpha import node_agent_service_pb2_grpc as agent_grpc


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    settings = PlaneSettings(
        services=tuple(SERVICES),
        state_dir=tmp_path,
        database_url=sqlite_url(tmp_path / "state.db"),
        grpc="127.0.0.1:0",
        http="127.0.0.1:0",
    )
    async with running(settings) as plane:
        yield plane


@pytest.fixture
async def rest(plane: Plane) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://{plane.http}", trust_env=False) as client:
        yield client


async def samples(plane: Plane) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    async with httpx.AsyncClient(trust_env=False) as client:
        page = (await client.get(f"http://{plane.metrics}/metrics")).text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


async def test_requests_are_counted_by_route_and_not_by_what_they_name(plane: Plane, rest: httpx.AsyncClient) -> None:
    for path in ("/v1/jobs/a", "/v1/jobs/b", "/nothing/1", "/nothing/2"):
        assert (await rest.get(path)).status_code == 404
    assert (await rest.request("BREW", "/v1/jobs")).status_code == 405
    assert (await rest.get("/v1/nodes", headers={"host": "evil.example"})).status_code == 421
    page = await samples(plane)

    def count(method: str, route: str, code: str) -> float | None:
        labels = tuple(sorted({"method": method, "route": route, "code": code}.items()))
        return page.get(("switchgear_gateway_requests_total", labels))

    assert count("GET", "/v1/jobs/{name_0}", "404") == 2
    assert count("GET", "other", "404") == 2
    assert count("GET", "other", "421") == 1
    assert [key for key in page if ("method", "BREW") in key[1]] == []


async def test_one_page_has_all_services_of_the_process(plane: Plane) -> None:
    acts = ("switchgear_policy_mode", (("mode", "ACT"), ("policy", "recovery.restart")))
    async with asyncio.timeout(10):
        while acts not in (page := await samples(plane)):  # noqa: ASYNC110 - read a moment after the start
            await asyncio.sleep(0.05)
    components = {dict(labels)["component"] for name, labels in page if name == "switchgear_build_info"}
    assert components == set(SERVICES)
    assert page[acts] == 1
    assert page["switchgear_policy_mode", (("mode", "OBSERVE"), ("policy", "recovery.restart"))] == 0


async def test_one_that_stands_by_can_be_scraped_and_says_that_it_does(database_url: str, tmp_path: Path) -> None:
    database = Database(database_url)
    if not database.is_shared:
        pytest.skip("a SQLite file is one process's own")
    ports = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    address, metrics = (f"127.0.0.1:{port.getsockname()[1]}" for port in ports)
    for port in ports:
        port.close()
    settings = PlaneSettings(
        services=("collector",),
        state_dir=tmp_path,
        database_url=database_url,
        grpc=address,
        metrics=metrics,
        elsewhere=dict.fromkeys(ENDPOINTS, "127.0.0.1:1"),
    )

    async def serve() -> None:
        async with running(settings):
            await asyncio.Event().wait()

    async def says(line: str) -> None:
        async with asyncio.timeout(15), httpx.AsyncClient(trust_env=False) as client:
            while True:
                with contextlib.suppress(httpx.ConnectError):
                    if line in (await client.get(f"http://{metrics}/metrics")).text:
                        return
                await asyncio.sleep(0.05)

    await database.migrate()
    try:
        async with Candidate(database, SystemClock(), ["services/collector"], "another").holding():
            standby = asyncio.create_task(serve())
            await says('switchgear_lease_held{service="collector"} 0.0')
        await says('switchgear_lease_held{service="collector"} 1.0')
        standby.cancel()
        await asyncio.gather(standby, return_exceptions=True)
    finally:
        await database.close()


async def test_prometheus_finds_the_agents_that_say_where_their_metrics_are(
    plane: Plane, rest: httpx.AsyncClient
) -> None:
    async with rpc.channel(plane.endpoints.scheduler) as channel:
        stub: Any = agent_grpc.NodeAgentServiceStub(channel)
        for name, host, address in (
            ("a", "127.0.0.1", "127.0.0.1:9100"),
            ("b", "gpu-b.example", "gpu-b.example:9100"),
            ("c", "gpu-c.example", "https://127.0.0.1:9101"),
            ("elsewhere", "gpu-d.example", "database.example:5432"),
            ("silent", "127.0.0.1", ""),
        ):
            node = fleet_pb.Node(name=f"nodes/{name}", address=host, metrics_address=address)
            await stub.Connect().write(agent_pb.NodeAgentReport(hello=agent_pb.NodeAgentHello(node=node)))
        async with asyncio.timeout(10):
            while len((await rest.get("/v1/nodes")).json().get("nodes", ())) < 5:  # noqa: ASYNC110 - HTTP has no event
                await asyncio.sleep(0.02)
        targets = (await rest.get("/prometheus/targets")).json()
        assert (await rest.get("/prometheus/targets", params={"component": "replica"})).json() == []
    assert targets == [
        {
            "targets": ["127.0.0.1:9100"],
            "labels": {"component": "agent", "node": "a", "__scheme__": "http"},
        },
        {
            "targets": ["gpu-b.example:9100"],
            "labels": {"component": "agent", "node": "b", "__scheme__": "https"},
        },
        {
            "targets": ["127.0.0.1:9101"],
            "labels": {"component": "agent", "node": "c", "__scheme__": "https"},
        },
    ]


async def test_an_agent_whose_metrics_are_nowhere_is_refused(plane: Plane) -> None:
    async with rpc.channel(plane.endpoints.scheduler) as channel:
        stub: Any = agent_grpc.NodeAgentServiceStub(channel)
        stream = stub.Connect()
        node = fleet_pb.Node(name="nodes/a", address="127.0.0.1", metrics_address="nowhere")
        await stream.write(agent_pb.NodeAgentReport(hello=agent_pb.NodeAgentHello(node=node)))
        assert (await stream.code()).name == "INVALID_ARGUMENT"


def fetch(address: str, ca: Path, files: TlsFiles | None) -> int:
    context = ssl.create_default_context(cafile=str(ca))
    if files and files.certificate:
        context.load_cert_chain(files.certificate, files.key)
    with urllib.request.urlopen(f"https://{address}/metrics", context=context, timeout=10) as answer:
        return int(answer.status)


def test_over_tls_only_clients_with_a_certificate_of_ours_read_metrics(tmp_path: Path) -> None:
    pki.create(tmp_path / "pki", [], time.time_ns())
    ours = pki.Pki.find(tmp_path / "pki")
    assert ours
    server = MetricsServer.of(CollectorRegistry(), "127.0.0.1:0", ours.tls_files)
    try:
        assert fetch(server.address, ours.ca, ours.tls_files) == 200
        stranger = foreign_files(tmp_path / "other", "a", ours, time.time_ns())
        for files in (None, stranger):
            with pytest.raises(OSError):  # noqa: PT011 - the handshake breaks off, or the answer does
                fetch(server.address, ours.ca, files)
        assert fetch(server.address, ours.ca, ours.tls_files) == 200
    finally:
        server.close()
