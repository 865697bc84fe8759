"""Composes the autoscaler."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import grpc.aio
from prometheus_client import CollectorRegistry

from switchgear.core.clock import Clock
from switchgear.core.modes import Mode
from switchgear.core.service import Endpoints, Service
from switchgear.store.database import Database
from switchgear.v1 import autoscaler_service_pb2_grpc
from switchgear.v1alpha import serving_service_pb2_grpc


class Modes(Protocol):
    """Where the mode of a policy is read."""

    async def of(self, policy: str) -> Mode:
        """The mode in force now; cheap enough to ask before each decision."""


class Autoscaler:
    """`AutoscalerService` and `ServingService` on one database."""

    service_names: Sequence[str] = ("switchgear.v1.AutoscalerService", "switchgear.v1alpha.ServingService")

    def __init__(
        self, database: Database, clock: Clock, modes: Modes | None, registry: CollectorRegistry | None
    ) -> None:
        self._database, self._clock, self._modes, self._registry = database, clock, modes, registry

    def register(self, server: grpc.aio.Server) -> None:
        autoscaler_service_pb2_grpc.add_AutoscalerServiceServicer_to_server(
            autoscaler_service_pb2_grpc.AutoscalerServiceServicer(), server
        )
        serving_service_pb2_grpc.add_ServingServiceServicer_to_server(
            serving_service_pb2_grpc.ServingServiceServicer(), server
        )

    async def run(self, endpoints: Endpoints) -> None:  # noqa: ARG002
        await asyncio.Event().wait()


def build(
    database: Database, clock: Clock, *, modes: Modes | None = None, registry: CollectorRegistry | None = None
) -> Service:
    """The autoscaler on a migrated database.

    modes: of the policy `autoscaler.scale`; None: it acts. registry: gets its metrics; None: one of its own.
    """
    return Autoscaler(database, clock, modes, registry)
