"""Nodes' health over real gRPC and on both databases: from an agent's events to verdicts that end."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio
import httpx
import pytest

from switchgear.collector.main import CollectorSettings, build
from switchgear.core import rpc
from switchgear.core.clock import ManualClock
from switchgear.core.errors import Invalid, NotFound
from switchgear.core.service import Endpoints
from switchgear.gateway.main import build_app, serve
from switchgear.store.database import Database
from switchgear.v1alpha import health_service_pb2 as pb
from switchgear.v1alpha import telemetry_service_pb2 as telemetry
from switchgear.v1alpha.health_service_pb2_grpc import HealthServiceStub
from switchgear.v1alpha.telemetry_service_pb2_grpc import TelemetryServiceStub

WITHIN_S = 15.0


@dataclass
class Plane:
    """A collector with its clock."""

    address: str
    channel: grpc.aio.Channel
    clock: ManualClock

    @property
    def health(self) -> Any:
        return HealthServiceStub(self.channel)

    async def agent(self, node: str = "gpu-01", boot: str = "boot-1", epoch: str = "epoch-1") -> Agent:
        call: Any = TelemetryServiceStub(self.channel).Stream()
        boot_id = f"{node}-{boot}.spool"
        hello = telemetry.AgentHello(node=f"nodes/{node}", boot_id=boot_id, epoch=epoch, agent_version="1")
        await call.write(telemetry.AgentMessage(hello=hello))
        return Agent(call, boot_id, self.clock)

    async def get(self, node: str = "gpu-01") -> pb.NodeHealth:
        return await self.health.GetNodeHealth(pb.GetNodeHealthRequest(name=f"nodes/{node}/health"))

    async def until(self, is_so: Callable[[pb.NodeHealth], bool], node: str = "gpu-01") -> pb.NodeHealth:
        """The health of a node, once it is as wanted."""
        async with asyncio.timeout(WITHIN_S):
            async for told in self.health.WatchNodeHealth(pb.WatchNodeHealthRequest()):
                if told.health.name == f"nodes/{node}/health" and is_so(told.health):
                    return told.health
        raise AssertionError("the watch ended")

    async def until_verdict(self, verdict: str, node: str = "gpu-01") -> pb.NodeHealth:
        return await self.until(lambda one: one.verdict == pb.NodeHealth.Verdict.Value(verdict), node)


class Agent:
    """Tells events and waits until they are stored."""

    def __init__(self, call: Any, boot_id: str, clock: ManualClock) -> None:
        self.call, self._boot_id, self._clock = call, boot_id, clock
        self._sequence = 0

    async def tell(self, kind: str, code: int | None = None, **fields: Any) -> None:
        self._sequence += 1
        event = telemetry.Event(
            boot_id=fields.pop("boot_id", self._boot_id),
            source="kernel_log",
            sequence=self._sequence,
            time_unix_ns=self._clock.unix_ns(),
            kind=kind,
            code=code,
            text=fields.pop("text", f"{kind} {code}"),
            **fields,
        )
        await self.call.write(telemetry.AgentMessage(event=event))
        async with asyncio.timeout(WITHIN_S):
            while True:
                message = await self.call.read()
                assert message is not grpc.aio.EOF
                if message.HasField("event_ack") and message.event_ack.sequence == self._sequence:
                    return


@contextlib.asynccontextmanager
async def collector(database: Database, clock: ManualClock, **settings: Any) -> AsyncIterator[Plane]:
    service, server = build(database, clock, CollectorSettings(**settings)), rpc.Server()
    service.register(server.grpc)
    address = await server.start("127.0.0.1:0", service.service_names)
    running = asyncio.create_task(service.run(Endpoints.all_at(address)))
    try:
        async with rpc.channel(address) as channel:
            yield Plane(address, channel, clock)
    finally:
        await server.stop(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_fatal_fault_stays_over_a_restart_of_the_collector_and_ends_with_a_boot(database: Database) -> None:
    clock = ManualClock()
    async with collector(database, clock) as plane:
        agent = await plane.agent()
        assert (await plane.until_verdict("HEALTHY")).conditions == []
        await agent.tell("XID", 79, gpu=3, text="Xid 79, fallen off the bus")
        failed = await plane.get()
        (open_,) = failed.conditions
        assert (failed.verdict, open_.kind, open_.code, open_.gpu) == (
            pb.NodeHealth.FAILED,
            "GPU_LOST",
            79,
            "nodes/gpu-01/gpus/3",
        )
        assert (open_.severity, open_.evidence) == (pb.Condition.FATAL, "Xid 79, fallen off the bus")
        assert "a boot of the node" in open_.ends
    clock.advance(7200)
    async with collector(database, clock) as plane:
        assert (await plane.get()) == failed
        await plane.agent(epoch="epoch-2")
        await plane.agent("gpu-02")
        await plane.until_verdict("HEALTHY", "gpu-02")
        assert (await plane.get()).verdict == pb.NodeHealth.FAILED  # the agent alone was started anew
        await plane.agent(boot="boot-2", epoch="epoch-2")
        assert "booted" in (await plane.until_verdict("HEALTHY")).change


async def test_an_application_fault_ends_by_itself(database: Database) -> None:
    async with collector(database, ManualClock()) as plane:
        agent = await plane.agent()
        await agent.tell("XID", 31, gpu=0)
        assert (await plane.get()).verdict == pb.NodeHealth.DEGRADED
        plane.clock.advance(599)
        await agent.tell("XID", 31, gpu=0)
        assert [one.count for one in (await plane.get()).conditions] == [2]
        plane.clock.advance(601)
        await plane.until_verdict("HEALTHY")


async def test_a_silent_node_is_heard_again(database: Database) -> None:
    async with collector(database, ManualClock()) as plane:
        agent = await plane.agent()
        await plane.until_verdict("HEALTHY")
        agent.call.cancel()
        await asyncio.sleep(0.2)
        plane.clock.advance(11)
        await plane.until_verdict("SILENT")
        await plane.agent()
        assert "heard again" in (await plane.until_verdict("HEALTHY")).change


async def test_an_operator_clears_one_gpu_and_is_named(database: Database) -> None:
    async with collector(database, ManualClock()) as plane:
        agent = await plane.agent()
        for gpu in (0, 1):
            await agent.tell("XID", 48, gpu=gpu)
        request = pb.ClearNodeHealthRequest(
            name="nodes/gpu-01/health", gpu=1, reason="replaced", actor="user:ann", request_id="1"
        )
        cleared = await plane.health.ClearNodeHealth(request)
        assert [one.gpu for one in cleared.conditions] == ["nodes/gpu-01/gpus/0"]
        assert cleared.change == "XID 48 on GPU 1 ended: user:ann says: replaced"
        await agent.tell("XID", 48, gpu=1)
        assert await plane.health.ClearNodeHealth(request) == cleared  # the same request does nothing again
        assert len((await plane.get()).conditions) == 2
        for wrong, error in (
            (pb.ClearNodeHealthRequest(name="nodes/gpu-01/health", reason=" "), Invalid),
            (pb.ClearNodeHealthRequest(name="nodes/nobody/health", reason="x"), NotFound),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await plane.health.ClearNodeHealth(wrong)
            assert isinstance(rpc.from_rpc_error(caught.value), error)


async def test_nodes_are_listed_by_name_in_pages_and_by_verdict(database: Database) -> None:
    async with collector(database, ManualClock()) as plane:
        nodes = [f"gpu-{number}" for number in range(5)]
        agents = [await plane.agent(node) for node in nodes]
        for agent in agents[:2]:
            await agent.tell("XID", 79, gpu=0)
        seen, token = list[str](), ""
        while not seen or token:
            page = await plane.health.ListNodeHealth(pb.ListNodeHealthRequest(page_size=2, page_token=token))
            seen += [one.name for one in page.nodes]
            token = page.next_page_token
        assert seen == [f"nodes/{node}/health" for node in nodes]
        failed = await plane.health.ListNodeHealth(pb.ListNodeHealthRequest(verdicts=["FAILED"]))
        assert [one.name for one in failed.nodes] == ["nodes/gpu-0/health", "nodes/gpu-1/health"]


async def test_watching_over_rest_goes_on_behind_the_last_event(sqlite_database: Database) -> None:
    async with (
        collector(sqlite_database, ManualClock()) as plane,
        serve(build_app(Endpoints.all_at(plane.address)), "127.0.0.1", 0) as http,
        httpx.AsyncClient(base_url=f"http://{http}/v1alpha", trust_env=False, timeout=WITHIN_S) as client,
    ):
        agent = await plane.agent()
        await plane.until_verdict("HEALTHY")
        async with client.stream("GET", "/nodeHealth:watch") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            last_id, first = await next_event(response)
        assert (first["health"]["verdict"], first["revision"]) == ("HEALTHY", last_id)
        await agent.tell("XID", 48, gpu=1)
        async with client.stream("GET", "/nodeHealth:watch", headers={"Last-Event-ID": last_id}) as response:
            _, second = await next_event(response)
        assert [one["code"] for one in second["health"]["conditions"]] == [48]
        refused = await client.get("/nodeHealth:watch", params={"revision": 1000})
        assert (refused.status_code, refused.json()["error"]["status"]) == (400, "OUT_OF_RANGE")
        cleared = await client.post("/nodes/gpu-01/health:clear", json={"reason": "reseated"})
        assert cleared.json()["verdict"] == "HEALTHY"


async def next_event(response: httpx.Response) -> tuple[str, dict[str, Any]]:
    """Id and data of the next server-sent event."""
    last_id = ""
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if name == "id":
            last_id = value
        elif name == "data":
            return last_id, json.loads(value)
    raise AssertionError("the stream ended")
