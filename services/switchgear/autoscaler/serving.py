"""The gRPC edge towards replicas and routers: their reports go to the meter, drains and routing tables come back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc.aio

from switchgear.autoscaler.meter import Meter
from switchgear.autoscaler.model import Load, ReplicaRecord, ReplicaState, RouterReport
from switchgear.autoscaler.repository import Snapshot
from switchgear.autoscaler.translate import hello_from_proto, load_from_proto, router_report_from_proto, routing_table
from switchgear.core import identity
from switchgear.core.clock import Clock
from switchgear.core.errors import FailedPrecondition, Invalid, Reason, ResourceExhausted, Unavailable
from switchgear.core.identity import Kind
from switchgear.v1alpha import serving_service_pb2 as wire
from switchgear.v1alpha import serving_service_pb2_grpc as rpc

log = logging.getLogger(__name__)

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

#: Each gets every routing table whole, and each pass looks at all of their reports.
ROUTERS_MAX = 100


class _Stream:
    """A connected replica or router. The handler sleeps until `wake`; `over` ends it."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.over = False
        self.ended = False
        self.draining = False

    def end(self) -> None:
        self.over = True
        self.wake.set()


class ServingServicer(rpc.ServingServiceServicer):
    """Serves `ServingService`.

    find: the stored replica of that name, None when there is none. changed: called when a pass should not wait.
    """

    def __init__(
        self,
        clock: Clock,
        meter: Meter,
        find: Callable[[str], Awaitable[ReplicaRecord | None]],
        changed: Callable[[], None],
    ) -> None:
        self._clock, self._meter, self._find, self._changed = clock, meter, find, changed
        self._replicas: dict[str, _Stream] = {}
        self._routers: dict[str, _Stream] = {}
        self._services: frozenset[str] = frozenset()
        #: None until it is known what is stored: an empty table would send requests away.
        self._table: wire.RoutingTable | None = None

    def show(self, snapshot: Snapshot) -> None:
        """What is stored now: routers get its table, replicas hear what has become of them."""
        self._services = frozenset(service.name for service in snapshot.services)
        table = routing_table(snapshot.services, snapshot.replicas, snapshot.revision)
        # A drain waits for routers that know its revision, also when the table already said so: the service was being deleted.
        drains = max((replica.drain_revision for replica in snapshot.replicas if not replica.ended), default=0)
        if self._table is None or self._table.services != table.services or self._table.version < drains:
            self._table = table
            for router in self._routers.values():
                router.wake.set()
        live = {replica.name: replica for replica in snapshot.replicas if not replica.ended}
        for name, stream in self._replicas.items():
            replica = live.get(name)
            stream.ended = replica is None
            stream.draining = replica is not None and replica.state is ReplicaState.DRAINING
            stream.wake.set()

    def end_all(self) -> None:
        """Ends all streams: replicas and routers connect again to whoever runs then, and serve on meanwhile."""
        self._table = None
        for stream in (*self._replicas.values(), *self._routers.values()):
            stream.end()

    async def ConnectReplica(  # noqa: N802
        self,
        request_iterator: AsyncIterator[wire.ReplicaReport],
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[wire.ReplicaCommand]:
        reports = aiter(request_iterator)
        first = await anext(reports, None)
        if first is None:
            return
        name, load = first.hello.replica, hello_from_proto(first)
        record = await self._find(name)
        if record is None or record.ended:
            raise _ended(name)
        _require_its_node(record)
        stream = self._enter(self._replicas, name)
        stream.draining = record.state is ReplicaState.DRAINING
        service = name.rsplit("/", 2)[0]
        # Nothing is known of it before its first load report: one that only connects anew is not to lose its requests.
        reader = asyncio.create_task(self._read_replica(stream, service, name, load, reports))
        reader.add_done_callback(lambda _: stream.wake.set())
        told = False
        try:
            while not reader.done() and not stream.over:
                stream.wake.clear()
                if stream.ended:
                    raise _ended(name)
                if stream.draining and not told:
                    told = True
                    yield wire.ReplicaCommand(drain=True)
                await stream.wake.wait()
        finally:
            await _ended_reader(reader)
            if self._leave(self._replicas, name, stream):
                self._meter.replica_gone(name)
                self._changed()

    async def ConnectRouter(  # noqa: N802
        self,
        request_iterator: AsyncIterator[wire.RouterReport],
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[wire.RoutingTable]:
        reports = aiter(request_iterator)
        first = await anext(reports, None)
        if first is None:
            return
        instance = first.instance_id
        if not 1 <= len(instance) <= 128:
            raise Invalid(
                "instance_id must have 1 to 128 characters; take a random one for each process", Reason.STREAM_PROTOCOL
            )
        if instance not in self._routers and len(self._routers) >= ROUTERS_MAX:
            raise ResourceExhausted(
                f"{ROUTERS_MAX} routers are connected, which is the limit; stop some", Reason.LIMIT_EXCEEDED
            )
        stream = self._enter(self._routers, instance)
        self._take(instance, first)
        log.info("router connected", extra={"router": instance})
        reader = asyncio.create_task(self._read_router(stream, instance, reports))
        reader.add_done_callback(lambda _: stream.wake.set())
        sent: wire.RoutingTable | None = None
        try:
            while not reader.done() and not stream.over:
                stream.wake.clear()
                if self._table is not None and self._table is not sent:
                    sent = self._table
                    yield sent
                    continue
                await stream.wake.wait()
        finally:
            await _ended_reader(reader)
            if self._leave(self._routers, instance, stream):
                self._meter.router_gone(instance, self._clock.monotonic_s())
                log.info("router disconnected", extra={"router": instance})

    async def _read_replica(
        self, stream: _Stream, service: str, name: str, load: Load, reports: AsyncIterator[wire.ReplicaReport]
    ) -> None:
        async for report in reports:
            if stream.over:
                return  # it has connected anew: what comes here is older
            if report.WhichOneof("kind") != "load":
                continue
            before, load = load, load_from_proto(report.load, load)
            self._meter.replica(service, name, load)
            if load.ready != before.ready:
                self._changed()

    async def _read_router(self, stream: _Stream, instance: str, reports: AsyncIterator[wire.RouterReport]) -> None:
        async for report in reports:
            if stream.over:
                return
            self._take(instance, report)

    def _take(self, instance: str, message: wire.RouterReport) -> None:
        if self._table is None:
            return  # which services there are is not known yet; what it counts until then is no arrival of later
        report = router_report_from_proto(message, self._services)
        self._meter.router(instance, report, self._clock.monotonic_s())
        if _holds_for_nobody(report):
            self._changed()

    @staticmethod
    def _enter(streams: dict[str, _Stream], key: str) -> _Stream:
        if older := streams.get(key):
            older.end()
        streams[key] = stream = _Stream()
        return stream

    @staticmethod
    def _leave(streams: dict[str, _Stream], key: str, stream: _Stream) -> bool:
        """Whether the stream was still the one that speaks."""
        if streams.get(key) is not stream:
            return False
        del streams[key]
        return True


def _holds_for_nobody(report: RouterReport) -> bool:
    """Requests are held and none is in any replica: somebody waits for the first one."""
    return any(one.held_requests and not one.in_flight for one in report.services.values())


def _require_its_node(replica: ReplicaRecord) -> None:
    """Raises PermissionDenied when the caller's certificate is of a node on which this replica does not run."""
    if not replica.node and identity.current().kind is Kind.NODE:
        raise Unavailable(
            f"{replica.name} is not known to be placed yet; connect again in a moment",
            Reason.NOT_FOUND,
            name=replica.name,
        )
    identity.require_node(replica.node)


def _ended(name: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"{name} is no replica that should run (any more); end the process", Reason.REPLICA_ENDED, name=name[:200]
    )


async def _ended_reader(reader: asyncio.Task[None]) -> None:
    """The reader has ended; what went wrong in the stream is gRPC's to tell."""
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
