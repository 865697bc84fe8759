"""Composes the autoscaler."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import grpc.aio
from prometheus_client import CollectorRegistry

from switchgear.autoscaler import store
from switchgear.autoscaler.fleet import Nodes
from switchgear.autoscaler.jobs import ReplicaJobs
from switchgear.autoscaler.journal import Journal
from switchgear.autoscaler.meter import Meter
from switchgear.autoscaler.metrics import AutoscalerMetrics
from switchgear.autoscaler.model import ReplicaRecord
from switchgear.autoscaler.reconciler import AlwaysAct, Modes, Reconciler
from switchgear.autoscaler.repository import Repository
from switchgear.autoscaler.service import AutoscalerServicer
from switchgear.autoscaler.serving import ServingServicer
from switchgear.core.clock import Clock
from switchgear.core.service import Endpoints, Service
from switchgear.store.database import Database
from switchgear.v1 import autoscaler_service_pb2_grpc
from switchgear.v1alpha import serving_service_pb2_grpc


class Autoscaler:
    """`AutoscalerService` and `ServingService` on one database."""

    service_names: Sequence[str] = ("switchgear.v1.AutoscalerService", "switchgear.v1alpha.ServingService")

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        modes: Modes,
        registry: CollectorRegistry,
        pass_interval_s: float,
        log_dir: Path | None,
    ) -> None:
        wake = asyncio.Event()
        self._repository = Repository(database, clock)
        self._repository.listeners.append(wake.set)
        self._meter = Meter()
        self._jobs = ReplicaJobs(wake.set)
        self._nodes = Nodes()
        metrics = AutoscalerMetrics(registry)
        self._journal = Journal(log_dir, metrics.unlogged.inc)
        self._serving = ServingServicer(clock, self._meter, self._replica, wake.set)
        self._reconciler = Reconciler(
            self._repository,
            modes=modes,
            meter=self._meter,
            jobs=self._jobs,
            serving=self._serving,
            nodes=self._nodes.views,
            journal=self._journal,
            metrics=metrics,
            wake=wake,
            interval_s=pass_interval_s,
        )

    def register(self, server: grpc.aio.Server) -> None:
        autoscaler_service_pb2_grpc.add_AutoscalerServiceServicer_to_server(
            AutoscalerServicer(
                self._repository,
                self._meter.loads,
                self._reconciler.scaling,
                self._reconciler.sharing,
                self._journal.folder,
            ),
            server,
        )
        serving_service_pb2_grpc.add_ServingServiceServicer_to_server(self._serving, server)

    async def run(self, endpoints: Endpoints) -> None:
        try:
            async with endpoints.channel("scheduler") as scheduler, asyncio.TaskGroup() as tasks:
                tasks.create_task(self._jobs.run(scheduler))
                tasks.create_task(self._nodes.run(scheduler))
                tasks.create_task(self._reconciler.run())
        finally:
            self._serving.end_all()

    async def _replica(self, name: str) -> ReplicaRecord | None:
        service, _, number = name.rpartition("/replicas/")
        if not number.isdecimal() or len(number) > 18:
            return None
        async with self._repository.database.read() as session:
            return await store.get_replica(session, service, int(number))


def build(
    database: Database,
    clock: Clock,
    *,
    modes: Modes | None = None,
    registry: CollectorRegistry | None = None,
    pass_interval_s: float = 1.0,
    log_dir: Path | None = None,
) -> Service:
    """The autoscaler on a migrated database.

    modes: where the mode of `autoscaler.scale` is read; None: it acts. registry: gets the metrics; None: one of its own.
    pass_interval_s: the longest time between two looks at demand; most changes are seen at once.
    log_dir: gets the decision logs; None: none are kept.
    """
    return Autoscaler(
        database,
        clock,
        modes=modes or AlwaysAct(),
        registry=registry or CollectorRegistry(),
        pass_interval_s=pass_interval_s,
        log_dir=log_dir,
    )
