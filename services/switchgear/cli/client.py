"""The control plane's services for one command: synchronous stubs, our errors instead of gRPC's, whole lists."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import grpc

from switchgear.cli.state import credentials, server_address
from switchgear.core.errors import Reason, Unavailable
from switchgear.core.rpc import FailedCall, from_rpc_error, sync_channel
from switchgear.v1 import recovery_service_pb2
from switchgear.v1.access_service_pb2_grpc import AccessServiceStub
from switchgear.v1.autoscaler_service_pb2_grpc import AutoscalerServiceStub
from switchgear.v1.fleet_service_pb2_grpc import FleetServiceStub
from switchgear.v1.job_service_pb2_grpc import JobServiceStub
from switchgear.v1.policy_service_pb2_grpc import PolicyServiceStub
from switchgear.v1.recovery_service_pb2_grpc import RecoveryServiceStub
from switchgear.v1.signal_service_pb2_grpc import SignalServiceStub
from switchgear.v1alpha import health_service_pb2
from switchgear.v1alpha.health_service_pb2_grpc import HealthServiceStub
from switchgear.v1alpha.planner_service_pb2_grpc import PlannerServiceStub
from switchgear.v1alpha.telemetry_service_pb2_grpc import TelemetryServiceStub

PAGE_SIZE = 1000


@dataclass(frozen=True, slots=True)
class Client:
    """Stubs of all services on one channel."""

    fleet: FleetServiceStub
    jobs: JobServiceStub
    recovery: RecoveryServiceStub
    signals: SignalServiceStub
    telemetry: TelemetryServiceStub
    health: HealthServiceStub
    policies: PolicyServiceStub
    autoscaler: AutoscalerServiceStub
    access: AccessServiceStub
    planner: PlannerServiceStub


@contextmanager
def connect(server: str | None, *interceptors: grpc.UnaryUnaryClientInterceptor) -> Iterator[Client]:
    """A client of the control plane at `server`, or of the one that `server_address` finds.

    interceptors: see each call before it is sent.
    Raises Unavailable (SERVER_UNREACHABLE) when it does not answer, and what the calls inside raise as our own errors.
    """
    address = server_address(server)
    proof = credentials()
    with sync_channel(address, proof.tls, proof.token) as plain:
        channel = grpc.intercept_channel(plain, *interceptors)
        try:
            yield Client(
                FleetServiceStub(channel),
                JobServiceStub(channel),
                RecoveryServiceStub(channel),
                SignalServiceStub(channel),
                TelemetryServiceStub(channel),
                HealthServiceStub(channel),
                PolicyServiceStub(channel),
                AutoscalerServiceStub(channel),
                AccessServiceStub(channel),
                PlannerServiceStub(channel),
            )
        except grpc.RpcError as rpc_error:
            error = from_rpc_error(cast(FailedCall, rpc_error))
            # A gateway that answers names the service behind it that does not.
            unreachable = isinstance(error, Unavailable) and error.reason is Reason.SERVER_UNREACHABLE
            if unreachable and "service" not in error.metadata:
                tls = f" with TLS under the CA in {proof.tls.ca}" if proof.tls else ""
                error = Unavailable(
                    f"no control plane answers at {address}{tls}; start one with `switchgear up`, name it with --server HOST:PORT, "
                    "or run without one: `switchgear run --standalone`"
                    + (
                        ""
                        if proof.tls
                        else "; if it was made with `switchgear init`, name its CA with SWITCHGEAR_CA_FILE"
                    ),
                    Reason.SERVER_UNREACHABLE,
                    address=address,
                )
            raise error from rpc_error


def whole_list(call: Any, request: Any, field: str) -> list[Any]:
    """All items of a paged list, `field` being the repeated field of its responses."""
    items: list[Any] = []
    request.page_size = PAGE_SIZE
    while True:
        response = call(request)
        items += getattr(response, field)
        if not response.next_page_token:
            return items
        request.page_token = response.next_page_token


def progress_of(client: Client, job: str) -> recovery_service_pb2.JobProgress | None:
    """Progress of `jobs/{job}`; None while recovery has not taken it up, a moment after it was placed."""
    try:
        return client.recovery.GetJobProgress(recovery_service_pb2.GetJobProgressRequest(name=f"{job}/progress"))
    except grpc.RpcError as error:
        if cast(FailedCall, error).code() is grpc.StatusCode.NOT_FOUND:
            return None
        raise


def health_of(client: Client, node: str) -> health_service_pb2.NodeHealth | None:
    """What is concluded of `nodes/{node}`; None while nothing is."""
    try:
        return client.health.GetNodeHealth(health_service_pb2.GetNodeHealthRequest(name=f"{node}/health"))
    except grpc.RpcError as error:
        if cast(FailedCall, error).code() is grpc.StatusCode.NOT_FOUND:
            return None
        raise
