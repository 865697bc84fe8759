"""Between the wire and the autoscaler's values."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from switchgear.autoscaler.meter import BUCKET_MAX
from switchgear.autoscaler.model import (
    InFlight,
    JobEnd,
    JobView,
    Load,
    Loan,
    ReplicaRecord,
    ReplicaState,
    RouterReport,
    ServiceRecord,
    ServiceReport,
    ServiceSpec,
    Totals,
)
from switchgear.autoscaler.observation import Slo
from switchgear.autoscaler.scaling import Scaling
from switchgear.autoscaler.sharing import Sharing
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
#: A request that has been held for longer was lost.
WAIT_S_MAX = 1e6


def service_to_proto(
    service: ServiceRecord, ready_replicas: int, scaling: Scaling | None = None, shares: Sharing | None = None
) -> pb.InferenceService:
    """scaling: its policies, shares: what it has of others, both in the process that acts; None: nothing has been decided yet."""
    shares = shares or Sharing()
    spec = service.spec
    shadow = scaling.shadow if scaling else None
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
            tokens_per_second=spec.tokens_per_s,
            scale_down_delay_seconds=spec.scale_down_delay_s or 0.0,
            drain_timeout_seconds=spec.drain_timeout_s,
            latency_target_seconds=spec.latency_target_s,
            slo=_slo_to_proto(spec.slo),
            gpu_budget=spec.gpu_budget or 0,
            cold_start_seconds=spec.cold_start_s or 0.0,
            prefill_tokens_per_second=spec.prefill_tokens_per_s or 0.0,
            shadow_policy=spec.shadow_policy,
            queue=spec.queue,
            priority=spec.priority,
            preemptible=spec.preemptible,
        ),
        desired_replicas=0 if service.deleting else service.desired,
        ready_replicas=ready_replicas,
        message="; ".join(text for text in (service.decision, service.hindrance) if text),
        decide_time=_time(service.decide_time_unix_ns),
        deleting=service.deleting,
        create_time=_time(service.create_time_unix_ns),
        etag=etag(service),
        advised_replicas=service.advised,
        blind=scaling.seen.blind if scaling and scaling.seen else "",
        kept_requests=scaling.kept if scaling else 0,
        broken_requests=scaling.broken if scaling else 0,
        shadow=pb.ShadowPolicy(
            policy=shadow.name,
            replicas=service.spec.bounded(shadow.decision.replicas),
            message=shadow.decision.text,
            start_time=_time(int(shadow.start_unix_s * 1e9)),
            replica_seconds=shadow.replica_s,
            live_replica_seconds=shadow.live_replica_s,
        )
        if shadow
        else None,
        standoffs=[
            pb.Standoff(kind=one.kind.value, message=one.text, remedy=one.remedy, action=one.action)
            for one in shares.standoffs
        ],
        loans=[
            pb.Loan(lender=one.lender, replica=one.replica, gpus=one.gpus, since=_time(one.since_unix_ns))
            for one in shares.loans
        ],
        outdated_replicas=shares.outdated,
    )


def _slo_to_proto(slo: Slo) -> pb.ServiceLevelObjective:
    return pb.ServiceLevelObjective(
        objective=slo.objective,
        ttft_seconds=slo.ttft_s or 0.0,
        ttft_prefill_factor=slo.ttft_prefill_factor,
        tpot_seconds=slo.tpot_s or 0.0,
        e2e_seconds=slo.e2e_s or 0.0,
        wait_seconds=slo.wait_s or 0.0,
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
                queue=spec.queue,
                priority=spec.priority,
                preemptible=spec.preemptible,
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
        cause=job.wait_cause,
        gpus=sum(len(seat.gpu_indices) for seat in job.placement.nodes),
        queue=job.spec.queue,
        priority=job.spec.priority,
        create_time_unix_ns=job.create_time.ToNanoseconds(),
    )


def loan_from_proto(job: job_pb.Job) -> Loan | None:
    """What a job gave up for another one and still waits for; None when it waits for nothing of that."""
    if not job.HasField("lent") or job.state >= job_pb.Job.SUCCEEDED:
        return None
    return Loan(job.name, job.lent.to_job, job.lent.gpus, job.lent.since.ToNanoseconds())


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
        busy_s_total=min(busy_s, float(COUNT_MAX)) if math.isfinite(busy_s) and busy_s > 0 else 0.0,
        prompt_tokens_total=_count(load.prompt_tokens_total) if load.HasField("prompt_tokens_total") else None,
        steps_total=_count(load.steps_total) if load.HasField("steps_total") else None,
        remaining_tokens=_count(load.remaining_tokens) if load.HasField("remaining_tokens") else None,
        sequences_max=_count(load.sequences_max) if load.HasField("sequences_max") else None,
        kv_use=min(max(load.kv_use, 0.0), 1.0) if load.HasField("kv_use") and math.isfinite(load.kv_use) else None,
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
        held_input_tokens=_count(demand.held_input_tokens),
        oldest_wait_s=demand.oldest_wait_seconds if 0 <= demand.oldest_wait_seconds < WAIT_S_MAX else 0.0,
        in_flight={
            one.replica: InFlight(_count(one.in_flight_requests), _count(one.in_flight_tokens))
            for one in demand.replicas
            if one.in_flight_requests > 0 and one.replica.startswith(f"{demand.service}/")
        },
        totals=Totals(
            requests=_count(demand.requests_total),
            tokens=_count(demand.tokens_total),
            input_tokens=_count(demand.input_tokens_total),
            estimated_tokens=_count(demand.completed_input_tokens_estimated_total),
            completed=_count(demand.completed_requests_total),
            completed_input_tokens=_count(demand.completed_input_tokens_total),
            completed_output_tokens=_count(demand.completed_output_tokens_total),
            kept=_count(demand.kept_requests_total),
            broken=_count(demand.broken_requests_total),
            ttft=_buckets(demand.ttft_total),
            tpot=_buckets(demand.tpot_total),
            e2e=_buckets(demand.e2e_total),
            wait=_buckets(demand.wait_total),
        ),
    )


def _buckets(counted: Mapping[int, int]) -> dict[int, int]:
    return {at: _count(count) for at, count in counted.items() if 0 <= at <= BUCKET_MAX}


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
                promise=_promise(service.spec),
            )
            for service in sorted(services, key=lambda service: service.name)
        ],
    )


def _promise(spec: ServiceSpec) -> wire.Promise:
    slo = spec.slo
    return wire.Promise(
        ttft_seconds=slo.ttft_s,
        ttft_prefill_factor=slo.ttft_prefill_factor,
        tpot_seconds=slo.tpot_s,
        e2e_seconds=slo.e2e_s,
        wait_seconds=slo.wait_s,
        prefill_tokens_per_second=spec.prefill_tokens_per_s or 0.0,
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
