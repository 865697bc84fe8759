"""What the collector concludes of nodes, as far as the planner goes by it. What nobody tells is unknown, and counts neither for nor against a node."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING

import grpc.aio

from switchgear.v1alpha import health_service_pb2 as pb
from switchgear.v1alpha import health_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:  # the name exists in the stubs only
    from switchgear.v1alpha.health_service_pb2_grpc import HealthServiceAsyncStub

log = logging.getLogger(__name__)

RETRY_S = 2.0
#: A node that is degraded serves those that find no better one; one that has failed is the last resort until somebody cordons it.
_SCORES = {pb.NodeHealth.HEALTHY: 1.0, pb.NodeHealth.DEGRADED: 0.5, pb.NodeHealth.FAILED: 0.0}


class Trust:
    """Follows the health of nodes for as long as the collector is there."""

    def __init__(self) -> None:
        self._scores: dict[str, float] = {}

    @property
    def health(self) -> Mapping[str, float]:
        """By node, 1 well to 0 useless."""
        return dict(self._scores)

    async def run(self, collector: grpc.aio.Channel) -> None:
        """Runs until cancelled. While the collector is away nothing is known."""
        stub: HealthServiceAsyncStub = pb_grpc.HealthServiceStub(collector)  # type: ignore[assignment]
        while True:
            try:
                async for change in stub.WatchNodeHealth(pb.WatchNodeHealthRequest()):
                    if change.HasField("health"):
                        self._take(change.health)
            except grpc.aio.AioRpcError as error:
                log.info("the health of nodes is not known: %s", error.details())
            self._scores.clear()
            await asyncio.sleep(RETRY_S * random.uniform(0.5, 1))

    def _take(self, health: pb.NodeHealth) -> None:
        node = health.name.removesuffix("/health")
        score = _SCORES.get(health.verdict)
        if score is None:
            self._scores.pop(node, None)
        else:
            self._scores[node] = score
