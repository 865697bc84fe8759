"""A collector over real gRPC, its health service, and agents that tell events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio
from prometheus_client import CollectorRegistry

from switchgear.collector.config import CollectorConfig
from switchgear.collector.main import build
from switchgear.core import rpc
from switchgear.core.clock import ManualClock, SystemClock
from switchgear.core.service import Endpoints
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
    clock: ManualClock | SystemClock
    registry: CollectorRegistry

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

    def __init__(self, call: Any, boot_id: str, clock: ManualClock | SystemClock) -> None:
        self.call, self._boot_id, self._clock = call, boot_id, clock
        self._sequence = 0

    async def tell(self, kind: str, code: int | None = None, **fields: Any) -> None:
        self._sequence += 1
        event = telemetry.Event(
            boot_id=self._boot_id,
            source=fields.pop("source", "kernel_log"),
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
async def collector(
    database: Database,
    clock: ManualClock | SystemClock,
    config: CollectorConfig | None = None,
    address: str = "127.0.0.1:0",
) -> AsyncIterator[Plane]:
    registry = CollectorRegistry()
    service, server = build(database, clock, registry=registry, config=config), rpc.Server()
    service.register(server.grpc)
    address = await server.start(address, service.service_names)
    running = asyncio.create_task(service.run(Endpoints.all_at(address)))
    try:
        async with rpc.channel(address) as channel:
            yield Plane(address, channel, clock, registry)
    finally:
        await server.stop(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
