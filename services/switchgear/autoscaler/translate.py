"""Between the wire and the autoscaler's values."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from switchgear.autoscaler.model import (
    InFlight,
    JobEnd,
    JobView,
    Load,
    ReplicaRecord,
    ReplicaState,
    RouterReport,
    ServiceRecord,
    ServiceReport,
    ServiceSpec,
)
from switchgear.core import names, rpc
from switchgear.core.errors import Invalid, Reason
from switchgear.v1 import autoscaler_service_pb2 as pb
from switchgear.v1 import job_service_pb2 as job_pb
from switchgear.v1alpha import serving_service_pb2 as wire

#: Tells the program which replica it is.
REPLICA_VARIABLE = "SWITCHGEAR_REPLICA"
TEXT_LENGTH_MAX = 1000
#: Beyond what any counter reaches; what is summed up stays a number.
COUNT_MAX = 2**53


def service_to_proto(service: ServiceRecord, ready_replicas: int) -> pb.InferenceService:
    spec = service.spec
    return pb.InferenceService(
        name=service.name,
        spec=pb.InferenceServiceSpec(
            argv=spec.argv,
            working_directory=spec.working_directory,
            environment=dict(spec.environment),
            python=spec.python,
            gpus_per_replica=spec.gpus_per_replica,
            min_replicas=spec.min_replicas,
            max_replicas=spec.max_replicas,
            target_wait_seconds=spec.target_wait_s,
            tokens_per_second=spec.tokens_per_s,
            scale_down_delay_seconds=spec.scale_down_delay_s,
            drain_timeout_seconds=spec.drain_timeout_s,
            latency_target_seconds=spec.latency_target_s,
        ),
        desired_replicas=0 if service.deleting else service.desired,
        ready_replicas=ready_replicas,
        message="; ".join(text for text in (service.decision, service.hindrance) if text),
        decide_time=_time(service.decide_time_unix_ns),
        deleting=service.deleting,
        create_time=_time(service.create_time_unix_ns),
        etag=etag(service),
        advised_replicas=service.advised,
    )


def etag(service: ServiceRecord) -> str:
    """Changes with what people set: what the policy says meanwhile is no reason to decide anew."""
    return hashlib.sha256(repr((service.spec, service.deleting)).encode()).hexdigest()[:16]


def replica_to_proto(replica: ReplicaRecord, load: Load | None) -> pb.Replica:
    return pb.Replica(
        name=replica.name,
        state=replica.state.value,
        job=replica.job,
        node=replica.node,
        address=replica.address,
        message=replica.message,
        create_time=_time(replica.create_time_unix_ns),
        ready_time=_time(replica.ready_time_unix_ns),
        end_time=_time(replica.end_time_unix_ns),
        running_requests=load.running_requests if load else None,
        waiting_requests=load.waiting_requests if load else None,
    )


def create_job(spec: ServiceSpec, replica: ReplicaRecord) -> job_pb.CreateJobRequest:
    """The same request each time for a replica, so that it may be sent again."""
    return job_pb.CreateJobRequest(
        job=job_pb.Job(
            spec=job_pb.JobSpec(
                argv=spec.argv,
                working_directory=spec.working_directory,
                environment={**dict(spec.environment), REPLICA_VARIABLE: replica.name},
                python=spec.python,
                nnodes=1,
                nproc_per_node=spec.gpus_per_replica,
                max_restarts=0,
                workload=job_pb.JobSpec.INFERENCE,
            )
        ),
        job_id=replica.job.removeprefix("jobs/"),
        request_id=f"{replica.job}-{replica.create_time_unix_ns}",
    )


def job_view(job: job_pb.Job) -> JobView | None:
    """What a job says of the replica that it runs; None when it runs none."""
    replica = job.spec.environment.get(REPLICA_VARIABLE, "")
    if job.spec.workload != job_pb.JobSpec.INFERENCE or not replica:
        return None
    state = job_pb.Job.State.Name(job.state) if job.state in job_pb.Job.State.values() else ""
    return JobView(
        replica=replica,
        end=JobEnd(state) if state in JobEnd.__members__ else None,
        message=text(job.message),
        node=job.placement.nodes[0].node if job.placement.nodes else "",
    )


def hello_from_proto(report: wire.ReplicaReport) -> Load:
    """A replica that has just connected, and is not known to be ready. Raises Invalid when it does not say who it is."""
    hello = report.hello
    if report.WhichOneof("kind") != "hello" or not 1 <= len(hello.instance_id) <= 128:
        raise Invalid(
            "the first report of a replica must be a hello with replica, address and an instance_id of at most 128 characters",
            Reason.STREAM_PROTOCOL,
        )
    names.parse(hello.replica, "inferenceServices/*/replicas/*")
    rpc.split_address(hello.address)
    return Load(hello.instance_id, text(hello.address))


def load_from_proto(load: wire.ReplicaLoad, before: Load) -> Load:
    busy_s = load.busy_seconds_total
    return Load(
        before.instance,
        before.address,
        ready=load.ready,
        running_requests=_count(load.running_requests),
        waiting_requests=_count(load.waiting_requests),
        tokens_total=_count(load.tokens_total),
        busy_s_total=busy_s if math.isfinite(busy_s) and busy_s > 0 else 0.0,
    )


def router_report_from_proto(report: wire.RouterReport, services: Iterable[str]) -> RouterReport:
    """services: those that there are; what a router says of others is left out."""
    known = frozenset(services)
    return RouterReport(
        report.table_version,
        {one.service: _service_report(one) for one in report.services if one.service in known},
    )


def _service_report(demand: wire.ServiceDemand) -> ServiceReport:
    return ServiceReport(
        held_requests=_count(demand.held_requests),
        held_tokens=_count(demand.held_tokens),
        in_flight={
            one.replica: InFlight(_count(one.in_flight_requests), _count(one.in_flight_tokens))
            for one in demand.replicas
            if one.in_flight_requests > 0 and one.replica.startswith(f"{demand.service}/")
        },
        tokens_total=_count(demand.tokens_total),
        unanswered_tokens_total=_count(demand.unanswered_tokens_total),
    )


def routing_table(
    services: Sequence[ServiceRecord], replicas: Sequence[ReplicaRecord], version: int
) -> wire.RoutingTable:
    """Services in name order, each with its replicas that answer requests.

    One that is being deleted stays until its replicas have ended: what they have is finished, and none gets anything new.
    """
    going = {service.name for service in services if service.deleting}
    routes: dict[str, list[wire.ReplicaRoute]] = {}
    for replica in replicas:
        draining = replica.state is ReplicaState.DRAINING
        if replica.state is ReplicaState.READY or (draining and replica.address):
            drains = draining or replica.service in going
            routes.setdefault(replica.service, []).append(
                wire.ReplicaRoute(replica=replica.name, address=replica.address, draining=drains)
            )
    return wire.RoutingTable(
        version=version,
        services=[
            wire.ServiceRoute(
                service=service.name,
                latency_target_seconds=service.spec.latency_target_s,
                replicas=routes.get(service.name, []),
                deleting=service.deleting,
            )
            for service in sorted(services, key=lambda service: service.name)
        ],
    )


def text(value: str) -> str:
    """Text of others as it may be stored: bounded, and without NUL, which PostgreSQL does not take."""
    return value[:TEXT_LENGTH_MAX].replace("\0", "\N{REPLACEMENT CHARACTER}")


def _count(value: int) -> int:
    return min(max(value, 0), COUNT_MAX)


def _time(unix_ns: int | None) -> Timestamp | None:
    if not unix_ns:
        return None
    stamp = Timestamp()
    stamp.FromNanoseconds(unix_ns)
    return stamp
