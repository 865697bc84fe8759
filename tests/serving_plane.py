"""The autoscaler's side of the serving protocol, as a test plays it by hand, and a model whose iterations a test lets go one by one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as Items
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from switchgear.core import rpc
from switchgear.core.errors import FailedPrecondition, Reason
from switchgear.serve.model import Sequence
from switchgear.v1alpha import serving_service_pb2 as pb
from switchgear.v1alpha.serving_service_pb2_grpc import ServingServiceServicer, add_ServingServiceServicer_to_server

NAME = "switchgear.v1alpha.ServingService"
SERVICE = "inferenceServices/chat"


def replica_name(number: int) -> str:
    return f"{SERVICE}/replicas/{number}"


@dataclass
class ServingPlane(ServingServiceServicer):
    """address: where it serves. hellos, loads: the newest of each replica. report: the newest of the router."""

    address: str = ""
    hellos: dict[str, pb.ReplicaHello] = field(default_factory=dict)
    loads: dict[str, pb.ReplicaLoad] = field(default_factory=dict)
    report: pb.RouterReport = field(default_factory=pb.RouterReport)
    ended: set[str] = field(default_factory=set)
    _table: pb.RoutingTable | None = None
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def ConnectReplica(self, reports: Any, context: Any) -> AsyncIterator[pb.ReplicaCommand]:  # noqa: N802
        hello = (await anext(reports)).hello
        if hello.replica in self.ended:
            raise FailedPrecondition(f"{hello.replica} has ended", Reason.REPLICA_ENDED)
        self.hellos[hello.replica] = hello
        yield pb.ReplicaCommand(drain=True)
        async for report in reports:
            async with self._changed:
                self.loads[hello.replica] = report.load
                self._changed.notify_all()

    async def ConnectRouter(self, reports: Any, context: Any) -> AsyncIterator[pb.RoutingTable]:  # noqa: N802
        reading = asyncio.create_task(self._read(reports))
        sent: pb.RoutingTable | None = None
        try:
            while True:
                async with self._changed:
                    while self._table is sent:
                        await self._changed.wait()
                    sent = self._table
                assert sent is not None
                yield sent
        finally:
            reading.cancel()

    async def _read(self, reports: Any) -> None:
        async for report in reports:
            async with self._changed:
                self.report = report
                self._changed.notify_all()

    async def publish(self, *routes: pb.ReplicaRoute, latency_target_s: float = 0, deleting: bool = False) -> None:
        """Sends a table with these replicas of the one service, and returns when the router has confirmed it."""
        service = pb.ServiceRoute(
            service=SERVICE, latency_target_seconds=latency_target_s, replicas=routes, deleting=deleting
        )
        await self._publish(service)

    async def publish_nothing(self) -> None:
        """Sends a table without any service."""
        await self._publish()

    async def publish_broken(self) -> None:
        """Sends a table with a service whose name is none."""
        await self._publish(pb.ServiceRoute(service="x"))

    async def _publish(self, *services: pb.ServiceRoute) -> None:
        version = self._table.version + 1 if self._table else 1
        async with self._changed:
            self._table = pb.RoutingTable(version=version, services=services)
            self._changed.notify_all()
        await self.until(lambda: self.report.table_version == version)

    async def until(self, reached: Callable[[], object]) -> None:
        """Waits until it is true of what was reported."""
        async with asyncio.timeout(90), self._changed:
            await self._changed.wait_for(reached)

    async def ready(self, number: int) -> pb.ReplicaRoute:
        """The route to a replica, once it says that it is ready."""
        name = replica_name(number)
        await self.until(lambda: name in self.loads and self.loads[name].ready)
        return pb.ReplicaRoute(replica=name, address=self.hellos[name].address)

    def demand(self) -> pb.ServiceDemand:
        """What the router reported of the service."""
        return next((demand for demand in self.report.services if demand.service == SERVICE), pb.ServiceDemand())


@asynccontextmanager
async def serving_plane(address: str = "127.0.0.1:0") -> AsyncIterator[ServingPlane]:
    plane = ServingPlane()
    server = rpc.Server()
    add_ServingServiceServicer_to_server(plane, server.grpc)
    plane.address = await server.start(address, [NAME])
    try:
        yield plane
    finally:
        await server.stop(grace_s=0)


class Alphabet:
    """Goes on with the next letter, or ends when it sees "!". Between `hold` and `go` its iterations wait."""

    end_token: int | None = 0

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.failures = 0
        self._may_run = threading.Event()
        self._may_run.set()

    def hold(self) -> None:
        self._may_run.clear()

    def go(self) -> None:
        self._may_run.set()

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Items[int]) -> str:
        return bytes(tokens).decode()

    def next_tokens(self, sequences: Items[Sequence]) -> list[int]:
        assert self._may_run.wait(30)
        self.batches.append(len(sequences))
        if self.failures:
            self.failures -= 1
            raise RuntimeError("device lost")
        last = [sequence.tokens(1)[0] for sequence in sequences]
        return [0 if token == ord("!") else token + 1 for token in last]
