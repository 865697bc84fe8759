"""What a control plane looks like at one moment: read with a few calls, kept as plain values, drawn by `view`."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import grpc

from switchgear.cli.client import Client
from switchgear.cli.output import last
from switchgear.v1 import autoscaler_service_pb2 as autoscaler
from switchgear.v1 import fleet_service_pb2 as fleet
from switchgear.v1 import job_service_pb2 as jobs
from switchgear.v1 import recovery_service_pb2 as recovery

#: What fits on a screen; the commands of each list show the rest.
NODES_MAX = 12
JOBS_MAX = 6
INCIDENTS_MAX = 5
SERVICES_MAX = 4
REPLICAS_MAX = 6
_ENDED_REPLICA = (autoscaler.Replica.STOPPED, autoscaler.Replica.FAILED)


@dataclass(frozen=True, slots=True)
class NodeLine:
    name: str
    state: str
    gpus: int
    gpus_allocated: int
    reason: str


@dataclass(frozen=True, slots=True)
class JobLine:
    """step, steps_per_s, goodput: None while unknown. loss: the newest that the caller knows."""

    name: str
    state: str
    ranks: int
    message: str
    attempt: int = 0
    step: int | None = None
    steps_per_s: float | None = None
    goodput: float | None = None
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class IncidentLine:
    name: str
    job: str
    state: str
    fault: str
    decision: str
    summary: str


@dataclass(frozen=True, slots=True)
class ReplicaLine:
    name: str
    state: str
    node: str
    in_flight: int | None


@dataclass(frozen=True, slots=True)
class ServiceLine:
    name: str
    desired: int
    ready: int
    message: str
    replicas: tuple[ReplicaLine, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """time_s: monotonic. Each tuple holds the first few of what there is."""

    time_s: float
    nodes: tuple[NodeLine, ...] = ()
    jobs: tuple[JobLine, ...] = ()
    incidents: tuple[IncidentLine, ...] = ()
    services: tuple[ServiceLine, ...] = ()


def take(client: Client, before: Picture | None) -> Picture:
    """The picture now. before: an earlier one, for the step rates.

    Raises grpc.RpcError when the control plane does not answer.
    """
    now_s = time.monotonic()
    nodes = client.fleet.ListNodes(fleet.ListNodesRequest(page_size=NODES_MAX)).nodes
    training = [
        job
        for job in client.jobs.ListJobs(jobs.ListJobsRequest(page_size=4 * JOBS_MAX)).jobs
        if job.spec.workload != jobs.JobSpec.INFERENCE
    ]
    incidents = client.recovery.ListIncidents(recovery.ListIncidentsRequest(page_size=INCIDENTS_MAX)).incidents
    services = client.autoscaler.ListInferenceServices(
        autoscaler.ListInferenceServicesRequest(page_size=SERVICES_MAX)
    ).inference_services
    return Picture(
        time_s=now_s,
        nodes=tuple(
            NodeLine(last(n.name), fleet.Node.State.Name(n.state), len(n.gpus), n.gpus_allocated, n.reason)
            for n in nodes
        ),
        jobs=tuple(_job(client, job, before, now_s) for job in training[:JOBS_MAX]),
        incidents=tuple(
            IncidentLine(
                last(i.name), last(i.job), recovery.Incident.State.Name(i.state), i.fault, i.decision, i.summary
            )
            for i in incidents
        ),
        services=tuple(_service(client, service) for service in services),
    )


def rate(before: Picture | None, now_s: float, job: JobLine) -> float | None:
    """Steps per second since the earlier picture; None when it cannot be told, as in another attempt."""
    earlier = next((j for j in before.jobs if j.name == job.name), None) if before else None
    if before is None or earlier is None or earlier.step is None or job.step is None:
        return None
    if earlier.attempt != job.attempt or now_s <= before.time_s:
        return None
    return max(0, job.step - earlier.step) / (now_s - before.time_s)


def _job(client: Client, job: jobs.Job, before: Picture | None, now_s: float) -> JobLine:
    line = JobLine(
        last(job.name), jobs.Job.State.Name(job.state), job.spec.nnodes * job.spec.nproc_per_node, job.message
    )
    try:
        progress = client.recovery.GetJobProgress(recovery.GetJobProgressRequest(name=f"{job.name}/progress"))
    except grpc.RpcError as error:
        # Recovery takes a job up a moment after it was placed.
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return line
    line = replace(
        line,
        attempt=progress.generation,
        step=progress.step if progress.HasField("step") else None,
        goodput=progress.goodput if progress.wall_seconds else None,
    )
    return replace(line, steps_per_s=rate(before, now_s, line))


def _service(client: Client, service: autoscaler.InferenceService) -> ServiceLine:
    found = client.autoscaler.ListReplicas(
        autoscaler.ListReplicasRequest(parent=service.name, page_size=4 * REPLICAS_MAX)
    ).replicas
    alive = [replica for replica in found if replica.state not in _ENDED_REPLICA][:REPLICAS_MAX]
    return ServiceLine(
        last(service.name),
        service.desired_replicas,
        service.ready_replicas,
        service.message,
        tuple(
            ReplicaLine(
                last(replica.name),
                autoscaler.Replica.State.Name(replica.state),
                last(replica.node),
                replica.running_requests + replica.waiting_requests if replica.HasField("running_requests") else None,
            )
            for replica in alive
        ),
    )
