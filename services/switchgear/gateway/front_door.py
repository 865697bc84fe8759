"""The gateway's gRPC side: the services that it has itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc.aio

from switchgear.core.clock import Clock
from switchgear.core.service import Endpoints, Service
from switchgear.gateway.policies import PolicyServicer
from switchgear.store.database import Database
from switchgear.store.policies import PolicyModes
from switchgear.v1 import policy_service_pb2_grpc


class FrontDoor:
    """See `core.service.Service`."""

    service_names: Sequence[str] = ("switchgear.v1.PolicyService",)

    def __init__(self, database: Database, clock: Clock, modes: PolicyModes) -> None:
        self._policies = PolicyServicer(database, clock, modes)

    def register(self, server: grpc.aio.Server) -> None:
        policy_service_pb2_grpc.add_PolicyServiceServicer_to_server(self._policies, server)

    async def run(self, endpoints: Endpoints) -> None:  # noqa: ARG002 - it calls nobody
        await asyncio.Event().wait()


def build(database: Database, clock: Clock, modes: PolicyModes) -> Service:
    """The gateway's gRPC services on a migrated database."""
    return FrontDoor(database, clock, modes)
