"""`GET /prometheus/targets`: what runs on the nodes, as Prometheus' HTTP service discovery reads it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import grpc.aio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from switchgear.core import names, rpc
from switchgear.gateway.errors import rpc_error_response
from switchgear.v1 import (
    autoscaler_service_pb2,
    autoscaler_service_pb2_grpc,
    fleet_service_pb2,
    fleet_service_pb2_grpc,
)

if TYPE_CHECKING:  # these names exist in the stubs only
    from switchgear.v1.autoscaler_service_pb2_grpc import AutoscalerServiceAsyncStub
    from switchgear.v1.fleet_service_pb2_grpc import FleetServiceAsyncStub

_PAGE_SIZE = 1000
_TIMEOUT_S = 10.0
_SERVING = (autoscaler_service_pb2.Replica.READY, autoscaler_service_pb2.Replica.DRAINING)
Target = dict[str, object]


async def answer(request: Request, channels: Mapping[str, grpc.aio.Channel], *, secure: bool) -> Response:
    """All targets, or with `?component=agent` or `replica` those of one kind.

    secure: whether this installation has certificates; then all of its replicas speak TLS, also on loopback.
    An error when a service that knows some does not answer: Prometheus then keeps the targets that it has.
    """
    found = list[Target]()
    wanted = request.query_params.get("component", "")
    try:
        for component, (endpoint, list_targets) in _KINDS.items():
            if wanted in ("", component):
                found += await list_targets(channels[endpoint], secure)
    except grpc.aio.AioRpcError as error:
        return rpc_error_response(error)
    return JSONResponse(found)


async def _agents(scheduler: grpc.aio.Channel, _secure: bool) -> list[Target]:
    """The agents that say where their metrics are, and whether over TLS, with label `node`."""
    stub: FleetServiceAsyncStub = fleet_service_pb2_grpc.FleetServiceStub(scheduler)  # type: ignore[assignment]
    found = list[Target]()
    token = ""
    while True:
        request = fleet_service_pb2.ListNodesRequest(page_size=_PAGE_SIZE, page_token=token)
        page = await stub.ListNodes(request, timeout=_TIMEOUT_S)
        for node in page.nodes:
            if said := node.metrics_address:
                address = said.removeprefix("https://")
                # Beyond loopback nothing of ours is plain.
                tls = said != address or not rpc.is_loopback(rpc.split_address(address)[0])
                found.append(_target(address, {"component": "agent", "node": _last(node.name)}, tls=tls))
        if not (token := page.next_page_token):
            return found


async def _replicas(autoscaler: grpc.aio.Channel, secure: bool) -> list[Target]:
    """The replicas that serve, with labels `service`, `replica` and `node`."""
    stub: AutoscalerServiceAsyncStub = autoscaler_service_pb2_grpc.AutoscalerServiceStub(autoscaler)  # type: ignore[assignment]
    found = list[Target]()
    token = ""
    while True:
        request = autoscaler_service_pb2.ListInferenceServicesRequest(page_size=_PAGE_SIZE, page_token=token)
        page = await stub.ListInferenceServices(request, timeout=_TIMEOUT_S)
        for service in page.inference_services:
            # The newest first: those beyond one page have ended.
            listing = autoscaler_service_pb2.ListReplicasRequest(parent=service.name, page_size=_PAGE_SIZE)
            for replica in (await stub.ListReplicas(listing, timeout=_TIMEOUT_S)).replicas:
                if replica.state in _SERVING and replica.address:
                    found.append(_target(replica.address, _replica_labels(replica), tls=secure))
        if not (token := page.next_page_token):
            return found


_KINDS: Mapping[str, tuple[str, Callable[[grpc.aio.Channel, bool], Awaitable[list[Target]]]]] = {
    "agent": ("scheduler", _agents),
    "replica": ("autoscaler", _replicas),
}


def _replica_labels(replica: autoscaler_service_pb2.Replica) -> dict[str, str]:
    service, number = names.parse(replica.name, "inferenceServices/*/replicas/*")
    return {"component": "replica", "service": service, "replica": number, "node": _last(replica.node)}


def _target(address: str, labels: Mapping[str, str], *, tls: bool) -> Target:
    return {"targets": [address], "labels": {**labels, "__scheme__": "https" if tls else "http"}}


def _last(name: str) -> str:
    return name.rpartition("/")[2]
