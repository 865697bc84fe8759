"""What others conclude of nodes, as far as the planner goes by it. What nobody tells is unknown, and counts neither for nor against a node."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc.aio

from switchgear.scheduler.model import Rules
from switchgear.v1 import recovery_service_pb2 as incidents_pb
from switchgear.v1 import recovery_service_pb2_grpc as incidents_grpc
from switchgear.v1alpha import health_service_pb2 as pb
from switchgear.v1alpha import health_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:  # the names exist in the stubs only
    from switchgear.v1.recovery_service_pb2_grpc import RecoveryServiceAsyncStub
    from switchgear.v1alpha.health_service_pb2_grpc import HealthServiceAsyncStub

log = logging.getLogger(__name__)

RETRY_S = 2.0
#: What was told last holds for so long when nobody tells any more: a service that starts anew is back by then.
KEEP_S = 60.0
#: A node that is degraded serves those that find no better one; one that has failed is the last resort until somebody cordons it.
_SCORES = {pb.NodeHealth.HEALTHY: 1.0, pb.NodeHealth.DEGRADED: 0.5, pb.NodeHealth.FAILED: 0.0}
#: At the begin; of more incidents at once than these the newest count.
_INCIDENTS_MAX = 1000
_OVER = frozenset({incidents_pb.Incident.RESOLVED, incidents_pb.Incident.ESCALATED})
#: The node is where the rank was, and not to blame.
_OWN_FAULTS = frozenset({"RANK_CRASHED", "RANK_EXCEPTION", "RANK_EXITED", "START_FAILED"})


class Trust:
    """Follows the health of nodes for as long as the collector is there, and open incidents for as long as recovery is."""

    def __init__(self, keep_s: float = KEEP_S) -> None:
        self._keep_s = keep_s
        self._scores: dict[str, float] = {}
        #: Nodes by incident.
        self._accused: dict[str, str] = {}

    def added_to(self, rules: Rules) -> Rules:
        """With what is known now."""
        return replace(rules, health=dict(self._scores), incidents=frozenset(self._accused.values()))

    async def follow_health(self, collector: grpc.aio.Channel) -> None:
        """Runs until cancelled."""
        stub: HealthServiceAsyncStub = pb_grpc.HealthServiceStub(collector)  # type: ignore[assignment]

        async def watch(caught_up: Callable[[], None]) -> None:
            scores: dict[str, float] = {}
            async for change in stub.WatchNodeHealth(pb.WatchNodeHealthRequest()):
                if change.HasField("health"):
                    _take_health(scores, change.health)
                else:
                    self._scores = scores
                    caught_up()

        def forget() -> None:
            self._scores = {}

        await self._follow("the health of nodes", watch, forget)

    async def follow_incidents(self, recovery: grpc.aio.Channel) -> None:
        """Runs until cancelled."""
        stub: RecoveryServiceAsyncStub = incidents_grpc.RecoveryServiceStub(recovery)  # type: ignore[assignment]

        async def watch(caught_up: Callable[[], None]) -> None:
            page = await stub.ListIncidents(incidents_pb.ListIncidentsRequest())
            revision, incidents = page.revision, list(page.incidents)
            while page.next_page_token and len(incidents) < _INCIDENTS_MAX:
                page = await stub.ListIncidents(incidents_pb.ListIncidentsRequest(page_token=page.next_page_token))
                incidents.extend(page.incidents)
            self._accused.clear()
            for incident in incidents:
                self._take_incident(incident)
            caught_up()
            async for change in stub.WatchIncidents(incidents_pb.WatchIncidentsRequest(revision=revision)):
                if change.HasField("incident"):
                    self._take_incident(change.incident)

        await self._follow("incidents", watch, self._accused.clear)

    async def _follow(
        self, what: str, watch: Callable[[Callable[[], None]], Awaitable[None]], forget: Callable[[], None]
    ) -> None:
        forgetting: asyncio.TimerHandle | None = None

        def caught_up() -> None:
            nonlocal forgetting
            if forgetting:
                forgetting.cancel()
            forgetting = None

        try:
            while True:
                try:
                    await watch(caught_up)
                except grpc.aio.AioRpcError as error:
                    log.info("%s: not told now: %s", what, error.details())
                forgetting = forgetting or asyncio.get_running_loop().call_later(self._keep_s, forget)
                await asyncio.sleep(RETRY_S * random.uniform(0.5, 1))
        finally:
            caught_up()

    def _take_incident(self, incident: incidents_pb.Incident) -> None:
        if incident.state in _OVER or not incident.node or incident.fault in _OWN_FAULTS:
            self._accused.pop(incident.name, None)
        else:
            self._accused[incident.name] = incident.node


def _take_health(scores: dict[str, float], health: pb.NodeHealth) -> None:
    node = health.name.removesuffix("/health")
    score = _SCORES.get(health.verdict)
    if score is None:
        scores.pop(node, None)
    else:
        scores[node] = score
