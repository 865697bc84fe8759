"""Composes the scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
from prometheus_client import CollectorRegistry

from switchgear.core.clock import Clock
from switchgear.core.modes import Mode
from switchgear.core.service import Endpoints, Service
from switchgear.planner.model import Policy
from switchgear.scheduler import tracing
from switchgear.scheduler.decision_log import DecisionLog
from switchgear.scheduler.engines.base import Engine
from switchgear.scheduler.engines.local import LocalEngine
from switchgear.scheduler.engines.slurm.engine import SlurmEngine
from switchgear.scheduler.engines.slurm.settings import SlurmSettings
from switchgear.scheduler.fleet_service import FleetServicer
from switchgear.scheduler.metrics import SchedulerMetrics
from switchgear.scheduler.placement_service import PlacementServicer
from switchgear.scheduler.planner_service import PlannerServicer
from switchgear.scheduler.reconciler import Reconciler
from switchgear.scheduler.repository import Repository
from switchgear.scheduler.service import JobServicer
from switchgear.scheduler.trust import Trust
from switchgear.slurm.client import Slurm
from switchgear.store.database import Database
from switchgear.store.policies import CORDON, PolicyModes
from switchgear.v1 import fleet_service_pb2_grpc, job_service_pb2_grpc
from switchgear.v1alpha import node_agent_service_pb2_grpc, placement_service_pb2_grpc, planner_service_pb2_grpc


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """How the scheduler runs."""

    #: Folder under which the logs of jobs go that name none; under the same path on every node.
    state_dir: Path
    #: The longest time between two looks at nodes and queue; most changes are seen at once.
    pass_interval_s: float = 1.0
    #: What operators choose of the planner.
    policy: Policy = field(default_factory=Policy)
    #: The Slurm whose nodes these are; None: agents start the launchers.
    slurm: SlurmSettings | None = None


class Scheduler:
    """`FleetService`, `JobService`, `PlannerService`, `PlacementService` and `NodeAgentService` on one database."""

    service_names: Sequence[str] = (
        "switchgear.v1.FleetService",
        "switchgear.v1.JobService",
        "switchgear.v1alpha.PlacementService",
        "switchgear.v1alpha.PlannerService",
        "switchgear.v1alpha.NodeAgentService",
    )

    def __init__(
        self,
        database: Database,
        clock: Clock,
        settings: SchedulerSettings,
        registry: CollectorRegistry,
        modes: PolicyModes,
        *,
        slurm: Slurm | None = None,
    ) -> None:
        self._settings, self._modes = settings, modes
        metrics = SchedulerMetrics(registry)
        self._trust = Trust()
        self._repository = Repository(database, clock, settings.policy, with_news=self._trust.added_to)
        self._repository.job_listeners += [metrics.job_changed, tracing.job_changed]
        wake = asyncio.Event()
        self._repository.listeners.append(wake.set)
        self._agents = LocalEngine(clock, changed=wake.set)
        self._engine: Engine = self._agents
        if settings.slurm:
            self._engine = SlurmEngine(
                slurm or settings.slurm.client(), settings.slurm, self._agents, clock, changed=wake.set
            )
        self._reconciler = Reconciler(
            self._repository,
            self._engine,
            wake,
            interval_s=settings.pass_interval_s,
            seen=metrics.seen,
            decided=DecisionLog(settings.state_dir / "scheduler" / "plans").append,
            cordons_lost=self._cordons_lost,
        )

    def register(self, server: grpc.aio.Server) -> None:
        fleet_service_pb2_grpc.add_FleetServiceServicer_to_server(FleetServicer(self._repository, self._engine), server)
        job_service_pb2_grpc.add_JobServiceServicer_to_server(
            JobServicer(self._repository, self._settings.state_dir, self._engine), server
        )
        placement_service_pb2_grpc.add_PlacementServiceServicer_to_server(
            PlacementServicer(self._repository, self._engine, self._cordons_lost), server
        )
        planner_service_pb2_grpc.add_PlannerServiceServicer_to_server(
            PlannerServicer(self._repository, self._engine), server
        )
        node_agent_service_pb2_grpc.add_NodeAgentServiceServicer_to_server(self._agents, server)

    async def run(self, endpoints: Endpoints) -> None:
        collector, recovery = endpoints.channel("collector"), endpoints.channel("recovery")
        async with collector, recovery, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._trust.follow_health(collector))
            tasks.create_task(self._trust.follow_incidents(recovery))
            tasks.create_task(self._engine.run(endpoints))
            await self._reconciler.run()

    async def _cordons_lost(self) -> bool:
        """An agent's node that failed is unreachable, and comes back when it is well; Slurm's come back by themselves."""
        return self._settings.slurm is not None and await self._modes.of(CORDON) is Mode.ACT


def build(
    database: Database,
    clock: Clock,
    settings: SchedulerSettings,
    registry: CollectorRegistry | None = None,
    modes: PolicyModes | None = None,
    *,
    slurm: Slurm | None = None,
) -> Service:
    """The scheduler on a migrated database.

    registry: where its metrics go; a private one when left out. modes: of its policies; without a configuration when left out.
    slurm: who is asked; left out: whom its settings name.
    """
    return Scheduler(
        database, clock, settings, registry or CollectorRegistry(), modes or PolicyModes(database), slurm=slurm
    )
