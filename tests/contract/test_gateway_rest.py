"""REST over real HTTP, in front of the real scheduler over real gRPC."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from switchgear.core import rpc
from switchgear.core.clock import SystemClock
from switchgear.core.errors import FailedPrecondition, Reason, Unauthenticated
from switchgear.core.service import Endpoints
from switchgear.gateway.main import build_app, serve
from switchgear.scheduler.main import SchedulerSettings, build
from switchgear.store.database import Database, sqlite_url
from switchgear.v1 import fleet_service_pb2 as fleet_pb
from switchgear.v1alpha import node_agent_service_pb2 as agent_pb
from switchgear.v1alpha import node_agent_service_pb2_grpc as agent_grpc

JOB = {"spec": {"argv": ["train.py"], "workingDirectory": "/w", "nnodes": 1, "nprocPerNode": 2}}


@asynccontextmanager
async def _scheduler(folder: Path, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    database = Database(sqlite_url(folder / "state.db"))
    await database.migrate()
    service = build(database, SystemClock(), SchedulerSettings(folder))
    server = rpc.Server()
    service.register(server.grpc)
    address = await server.start(address, service.service_names)
    task = asyncio.create_task(service.run(Endpoints.all_at(address)))
    try:
        yield address
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await server.stop(0)
        await database.close()


@asynccontextmanager
async def _agent(address: str) -> AsyncIterator[None]:
    async with rpc.channel(address) as channel:
        stub: Any = agent_grpc.NodeAgentServiceStub(channel)
        stream = stub.Connect()
        node = fleet_pb.Node(name="nodes/a", address="127.0.0.1", gpus=[fleet_pb.Gpu(index=i) for i in range(2)])
        await stream.write(agent_pb.NodeAgentReport(hello=agent_pb.NodeAgentHello(node=node)))
        yield
        stream.cancel()


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        _scheduler(tmp_path) as address,
        _agent(address),
        serve(build_app(Endpoints.all_at(address)), "127.0.0.1", 0) as http_address,
        httpx.AsyncClient(base_url=f"http://{http_address}", trust_env=False) as client,
    ):
        async with asyncio.timeout(10):
            while not (await client.get("/v1/nodes")).json().get("nodes"):  # noqa: ASYNC110 - HTTP has no event
                await asyncio.sleep(0.01)
        yield client


def _error(response: httpx.Response) -> tuple[int, str, str]:
    error = response.json()["error"]
    assert error["code"] == response.status_code
    detail = error["details"][0]
    assert detail["domain"] == "switchgear.dev"
    return response.status_code, error["status"], detail["reason"]


async def test_a_job_is_created_read_listed_and_cancelled(client: httpx.AsyncClient) -> None:
    created = await client.post("/v1/jobs", params={"jobId": "llama", "requestId": "r"}, json=JOB)
    assert created.status_code == 200
    assert (created.json()["name"], created.json()["state"]) == ("jobs/llama", "PENDING")
    again = await client.post("/v1/jobs", params={"jobId": "llama", "requestId": "r"}, json=JOB)
    assert again.json() == created.json()
    job = (await client.get("/v1/jobs/llama")).json()
    assert job["spec"]["nprocPerNode"] == 2
    assert job["createTime"].endswith("Z")
    listed = (await client.get("/v1/jobs", params={"page_size": 5})).json()
    assert [job["name"] for job in listed["jobs"]] == ["jobs/llama"]
    assert int(listed["revision"]) > 0
    cancelled = await client.post("/v1/jobs/llama:cancel", json={})
    assert cancelled.json()["state"] == "CANCELLED"


async def test_a_node_is_read_cordoned_and_uncordoned(client: httpx.AsyncClient) -> None:
    node = (await client.get("/v1/nodes/a")).json()
    assert (node["state"], len(node["gpus"])) == ("HEALTHY", 2)
    cordoned = await client.post("/v1/nodes/a:cordon", json={"reason": "fan", "actor": "user:eve"})
    assert (cordoned.json()["state"], cordoned.json()["reason"]) == ("CORDONED", "fan")
    stale = await client.post("/v1/nodes/a:cordon", json={"reason": "fan", "etag": node["etag"]})
    assert _error(stale) == (409, "ABORTED", "ETAG_MISMATCH")
    assert (await client.post("/v1/nodes/a:uncordon", json={})).json()["state"] == "HEALTHY"


async def test_queues_reservations_and_why_a_job_waits_are_asked_over_rest(client: httpx.AsyncClient) -> None:
    queue = {"name": "queues/lab", "guaranteedGpus": 1, "limitGpus": 1}
    made = await client.post("/v1alpha/queues", params={"requestId": "r"}, json=queue)
    assert (made.status_code, made.json()["weight"]) == (200, 1.0)
    changed = await client.put("/v1alpha/queues/lab", json={"guaranteedGpus": 0, "limitGpus": 0})
    assert changed.json()["limitGpus"] == 0
    held = await client.post("/v1/jobs", params={"jobId": "held"}, json={"spec": {**JOB["spec"], "hold": True}})
    assert held.json()["held"] == "by its user"
    why = (await client.get("/v1alpha/jobs/held:explain")).json()
    assert (why["job"], why["causes"][0]["cause"]) == ("jobs/held", "HELD")
    answer = await client.post("/v1alpha/planner:whatif", json={"changes": [why["changes"][0]["change"]]})
    assert answer.json()["starts"] == ["jobs/held"]
    assert (await client.get("/v1alpha/planner/snapshot")).json()["jsonZlib"]
    kept = {
        "name": "reservations/fan",
        "nodes": ["nodes/a"],
        "startTime": "2026-01-01T00:00:00Z",
        "endTime": "2036-01-01T00:00:00Z",
    }
    assert (await client.post("/v1alpha/reservations", json=kept)).json()["nodes"] == ["nodes/a"]
    assert (await client.delete("/v1alpha/reservations/fan")).status_code == 200
    assert _error(await client.delete("/v1alpha/queues/none")) == (404, "NOT_FOUND", "NOT_FOUND")


async def test_errors_of_the_services_keep_their_reason(client: httpx.AsyncClient) -> None:
    assert _error(await client.get("/v1/jobs/none")) == (404, "NOT_FOUND", "NOT_FOUND")
    assert _error(await client.get("/v1/jobs/NONE")) == (400, "INVALID_ARGUMENT", "BAD_NAME")
    assert _error(await client.get("/v1/nodes", params={"pageToken": "x"}))[2] == "BAD_PAGE_TOKEN"
    large = {"spec": {**JOB["spec"], "nnodes": 9}}
    response = await client.post("/v1/jobs", json=large)
    assert _error(response) == (400, "FAILED_PRECONDITION", "JOB_TOO_LARGE")
    assert response.json()["error"]["details"][0]["metadata"]["largest_node_gpus"] == "2"
    # No recovery answers here: the server has no such service.
    assert _error(await client.get("/v1/incidents"))[:2] == (501, "UNIMPLEMENTED")


async def test_errors_of_the_request_say_what_to_mend(client: httpx.AsyncClient) -> None:
    unknown = await client.post("/v1/jobs", json={"spec": {"nprocs": 1}})
    assert _error(unknown) == (400, "INVALID_ARGUMENT", "BODY_INVALID")
    assert "nprocs" in unknown.json()["error"]["message"]
    assert _error(await client.get("/v1/nothing"))[:2] == (404, "NOT_FOUND")
    assert _error(await client.delete("/v1/jobs/llama"))[:2] == (405, "UNIMPLEMENTED")
    large = await client.post(
        "/v1/jobs", content=b" " * (1024 * 1024 + 1), headers={"content-type": "application/json"}
    )
    assert _error(large) == (413, "INVALID_ARGUMENT", "LIMIT_EXCEEDED")


async def test_pages_of_other_sites_can_neither_write_nor_read(client: httpx.AsyncClient) -> None:
    form = await client.post("/v1/nodes/a:cordon", content=b'{"reason": "x"}', headers={"content-type": "text/plain"})
    assert _error(form)[2] == "BODY_INVALID"
    assert _error(await client.post("/v1/nodes/a:uncordon"))[2] == "BODY_INVALID"
    rebound = await client.get("/v1/nodes", headers={"host": "evil.example"})
    assert _error(rebound)[::2] == (421, "INSECURE_BIND")


async def test_the_surface_describes_itself(client: httpx.AsyncClient) -> None:
    description = (await client.get("/openapi.json")).json()
    assert "/v1/nodes/{name_0}:cordon" in description["paths"]
    assert (await client.get("/healthz")).text == "ok"


async def test_a_service_that_is_away_is_unavailable_and_found_again(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    async with (
        serve(build_app(Endpoints.all_at(address)), "127.0.0.1", 0) as http_address,
        httpx.AsyncClient(base_url=f"http://{http_address}", trust_env=False) as client,
    ):
        assert _error(await client.get("/v1/nodes")) == (503, "UNAVAILABLE", "SERVER_UNREACHABLE")
        async with _scheduler(tmp_path, address), asyncio.timeout(10):
            while (await client.get("/v1/nodes")).status_code != 200:  # noqa: ASYNC110 - HTTP has no event
                await asyncio.sleep(0.05)


async def test_it_listens_on_loopback_only_and_never_shares_a_port() -> None:
    app = build_app(Endpoints.all_at("127.0.0.1:1"))
    with pytest.raises(FailedPrecondition, match="loopback"):
        async with serve(app, "0.0.0.0", 0):
            pass
    async with serve(app, "127.0.0.1", 0) as address:
        with pytest.raises(FailedPrecondition, match="another port"):
            async with serve(build_app(Endpoints.all_at("127.0.0.1:1")), "127.0.0.1", int(address.rpartition(":")[2])):
                pass


@asynccontextmanager
async def _refusing(asked: list[tuple[str, str, str]]) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway that lets nobody in and notes who asked for what: host, route and path."""

    async def admit(_: str | None, host: str, route: str, path: str) -> None:
        asked.append((host, route, path))
        raise Unauthenticated("there is no token", Reason.UNAUTHENTICATED)

    async with (
        serve(build_app(Endpoints.all_at("127.0.0.1:1"), admit), "127.0.0.1", 0) as address,
        httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as client,
    ):
        yield client


async def test_what_a_stranger_asks_for_is_told_by_its_route() -> None:
    asked = list[tuple[str, str, str]]()
    async with _refusing(asked) as client:
        for verb, path in (
            ("GET", "/v1/jobs/a"),
            ("GET", "/v1/jobs/b"),
            ("POST", "/v1/jobs/b:cancel"),
            ("GET", "/v1/x%1b%5b2J%0aGET"),
            ("BREW", "/v1/jobs/a"),
        ):
            assert (await client.request(verb, path)).status_code == 401
    read, nothing = "GET /v1/jobs/{name_0}", "a path that does not exist"
    assert [route for _, route, _ in asked] == [read, read, "POST /v1/jobs/{name_0}:cancel", nothing, nothing]
    assert [path for _, _, path in asked][:2] == ["/v1/jobs/a", "/v1/jobs/b"]


async def test_a_header_does_not_say_whence_a_call_comes() -> None:
    asked = list[tuple[str, str, str]]()
    async with _refusing(asked) as client:
        await client.get("/v1/jobs", headers={"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"})
    assert [host for host, _, _ in asked] == ["127.0.0.1"]
