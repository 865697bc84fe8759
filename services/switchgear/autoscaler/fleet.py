"""The edge towards the scheduler's nodes: on what GPUs replicas run, and which nodes are to be left."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING

import grpc.aio

from switchgear.autoscaler.observe import NodeView
from switchgear.v1 import fleet_service_pb2 as pb
from switchgear.v1 import fleet_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:  # the name exists in the stubs only
    from switchgear.v1.fleet_service_pb2_grpc import FleetServiceAsyncStub

log = logging.getLogger(__name__)

RETRY_S = 1.0
#: What runs there goes on for now, and is to be somewhere else soon. A suspect may be well.
_TO_BE_LEFT = frozenset(
    {pb.Node.CORDONED, pb.Node.DRAINING, pb.Node.QUARANTINED, pb.Node.VALIDATING, pb.Node.UNREACHABLE}
)


class Nodes:
    """What is known of nodes by name; bounded by the nodes that there are. What their hardware delivers nobody tells: speed stays None."""

    def __init__(self) -> None:
        self._views: dict[str, NodeView] = {}

    def views(self) -> Mapping[str, NodeView]:
        """Empty while the scheduler does not tell: then no replica counts as sick."""
        return self._views

    async def run(self, scheduler: grpc.aio.Channel) -> None:
        """Runs until cancelled; the scheduler may go and come back."""
        stub: FleetServiceAsyncStub = pb_grpc.FleetServiceStub(scheduler)  # type: ignore[assignment]
        while True:
            self._views = {}
            try:
                async for change in stub.WatchNodes(pb.WatchNodesRequest()):
                    if change.HasField("node"):
                        self._views[change.node.name] = _view(change.node)
            except grpc.aio.AioRpcError as error:
                log.warning("lost the stream of nodes; connecting again", extra={"error": error.details()})
            await asyncio.sleep(RETRY_S * random.uniform(0.5, 1))


def _view(node: pb.Node) -> NodeView:
    models = {gpu.model for gpu in node.gpus}
    return NodeView(models.pop() if len(models) == 1 else "", sick=node.state in _TO_BE_LEFT)
