"""The gateway's gRPC side: people and programs reach all services at this one address."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack

import grpc.aio
from prometheus_client import CollectorRegistry

from switchgear.core.clock import Clock
from switchgear.core.service import Endpoints, Service
from switchgear.gateway.forwarding import Forwarding
from switchgear.gateway.metrics import PolicyMetrics
from switchgear.gateway.policies import PolicyServicer
from switchgear.store.database import Database
from switchgear.store.policies import PolicyModes
from switchgear.v1 import policy_service_pb2_grpc


class FrontDoor:
    """See `core.service.Service`."""

    def __init__(self, policies: PolicyServicer, forwarding: Forwarding, metrics: PolicyMetrics) -> None:
        self._policies, self._forwarding, self._metrics = policies, forwarding, metrics
        self.service_names: Sequence[str] = ("switchgear.v1.PolicyService", *forwarding.service_names)

    def register(self, server: grpc.aio.Server) -> None:
        policy_service_pb2_grpc.add_PolicyServiceServicer_to_server(self._policies, server)
        self._forwarding.register(server)

    async def run(self, endpoints: Endpoints) -> None:
        async with AsyncExitStack() as stack:
            await self._forwarding.open(endpoints, stack)
            await self._metrics.run()


def build(
    database: Database,
    clock: Clock,
    modes: PolicyModes,
    elsewhere: Collection[str] = (),
    registry: CollectorRegistry | None = None,
) -> Service:
    """The gateway's gRPC services on a migrated database.

    elsewhere: endpoints whose services run in other processes. registry: where its metrics go; a private one when left out.
    """
    metrics = PolicyMetrics(registry or CollectorRegistry(), modes)
    return FrontDoor(PolicyServicer(database, clock, modes), Forwarding(elsewhere), metrics)
