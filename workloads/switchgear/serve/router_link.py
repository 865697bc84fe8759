"""The router's line to the autoscaler: demand up, the table of replicas down."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Any

import grpc.aio

from switchgear.core import rpc
from switchgear.core.clock import Clock
from switchgear.core.reconnect import keep_connected
from switchgear.core.tls import TlsFiles
from switchgear.serve.promise import Promise
from switchgear.serve.proxy import Proxy
from switchgear.serve.switchboard import Route, Service, ServiceRoutes
from switchgear.v1alpha import serving_service_pb2 as pb
from switchgear.v1alpha.serving_service_pb2_grpc import ServingServiceStub

log = logging.getLogger(__name__)

REPORT_INTERVAL_S = 0.5
#: News in between are told at once, but not more often than this.
NEWS_INTERVAL_S = 0.05
#: A fault comes again most likely, and each fills the log.
FAULT_DELAY_S = 10.0


class RouterLink:
    """Keeps the connection. Without it the router goes on by its last table."""

    def __init__(self, autoscaler: str, tls: TlsFiles | None, proxy: Proxy, clock: Clock) -> None:
        self._autoscaler = autoscaler
        self._tls = tls
        self._proxy = proxy
        self._clock = clock
        self._instance_id = uuid.uuid4().hex
        self._version = 0

    async def run(self) -> None:
        """Connects and reconnects until cancelled."""
        async with rpc.channel(self._autoscaler, self._tls) as channel:
            stub = ServingServiceStub(channel)
            await keep_connected("connection to the autoscaler", lambda: self._connect_or_wait(stub), self._clock)

    async def _connect_or_wait(self, stub: ServingServiceStub) -> None:
        """What is no failure of the connection is a fault of ours or of a table; by the last one requests can still go."""
        try:
            await self._connect(stub)
        except* grpc.aio.AioRpcError:
            raise
        except* Exception:
            log.exception("the line to the autoscaler failed; the next try is in %g s", FAULT_DELAY_S)
            await asyncio.sleep(FAULT_DELAY_S)

    async def _connect(self, stub: ServingServiceStub) -> None:
        # An autoscaler that was started anew may count from the beginning: a number of its predecessor would confirm a table
        # that has not come.
        self._version = 0
        begin: Any = stub.ConnectRouter  # the stubs know only the form that is given an iterator
        call: grpc.aio.StreamStreamCall[pb.RouterReport, pb.RoutingTable] = begin()
        try:
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(self._send(call))
                async for table in call:
                    # From here on requests go by this table; those that went by older ones are in the same report as in flight.
                    self._proxy.apply({service.service: _routes(service) for service in table.services})
                    self._version = table.version
                    self._proxy.connected(True)
                sending.cancel()
        finally:
            self._proxy.connected(False)
            call.cancel()

    async def _send(self, call: grpc.aio.StreamStreamCall[pb.RouterReport, pb.RoutingTable]) -> None:
        changed = self._proxy.changed
        try:
            while True:
                changed.clear()
                await call.write(self._report())
                await asyncio.sleep(NEWS_INTERVAL_S)
                try:
                    async with asyncio.timeout(REPORT_INTERVAL_S - NEWS_INTERVAL_S):
                        await changed.wait()
                except TimeoutError:
                    pass
        except asyncio.InvalidStateError:
            pass  # the call has ended: the reader says why

    def _report(self) -> pb.RouterReport:
        services = self._proxy.switchboard.services.items()
        # Before the first table anybody's word for a service's name would be passed on.
        now_s = self._clock.monotonic_s()
        demand = [_demand(name, service, now_s) for name, service in services if service.listed or service.replicas]
        return pb.RouterReport(instance_id=self._instance_id, table_version=self._version, services=demand)


def _routes(service: pb.ServiceRoute) -> ServiceRoutes:
    routes = [Route(route.replica, route.address, route.draining) for route in service.replicas]
    promise = _promise(service.promise) if service.HasField("promise") else Promise()
    return ServiceRoutes(service.latency_target_seconds, routes, deleting=service.deleting, promise=promise)


def _promise(promise: pb.Promise) -> Promise:
    return Promise(
        ttft_s=promise.ttft_seconds if promise.HasField("ttft_seconds") else None,
        ttft_prefill_factor=promise.ttft_prefill_factor,
        tpot_s=promise.tpot_seconds if promise.HasField("tpot_seconds") else None,
        e2e_s=promise.e2e_seconds if promise.HasField("e2e_seconds") else None,
        wait_s=promise.wait_seconds if promise.HasField("wait_seconds") else None,
        prefill_tokens_per_s=promise.prefill_tokens_per_second or None,
    )


def _demand(name: str, service: Service, now_s: float) -> pb.ServiceDemand:
    tally = service.tally
    return pb.ServiceDemand(
        service=name,
        held_requests=len(service.held),
        held_tokens=sum(ticket.tokens for ticket in service.held),
        replicas=[
            pb.ReplicaDemand(
                replica=replica.name,
                in_flight_requests=replica.in_flight,
                in_flight_tokens=replica.in_flight_tokens,
            )
            for replica in service.replicas.values()
        ],
        requests_total=service.requests_total,
        tokens_total=service.tokens_total,
        late_requests_total=service.late_total,
        failed_requests_total=service.failed_total,
        unanswered_tokens_total=service.unanswered_tokens_total,
        held_input_tokens=sum(ticket.input_tokens for ticket in service.held),
        input_tokens_total=service.input_tokens_total,
        completed_input_tokens_estimated_total=tally.estimated_tokens,
        oldest_wait_seconds=max(0.0, now_s - service.held[0].arrival_s) if service.held else 0.0,
        completed_requests_total=tally.completed,
        completed_input_tokens_total=tally.input_tokens,
        completed_output_tokens_total=tally.output_tokens,
        kept_requests_total=tally.kept,
        broken_requests_total=tally.broken,
        ttft_total=tally.ttft,
        tpot_total=tally.tpot,
        e2e_total=tally.e2e,
        wait_total=tally.wait,
    )
