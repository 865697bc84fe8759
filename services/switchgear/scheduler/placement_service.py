"""The scheduler's gRPC edge for recovery."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from switchgear.core import names
from switchgear.core.errors import Aborted, FailedPrecondition, Invalid, NotFound, Reason, Unavailable
from switchgear.scheduler import jobs as job_life
from switchgear.scheduler import nodes as node_life
from switchgear.scheduler.decide import replace_nodes, unanswered
from switchgear.scheduler.edges import REASON_LENGTH_MAX, Context, mutate
from switchgear.scheduler.engines.base import Engine
from switchgear.scheduler.evidence import steps_per_s
from switchgear.scheduler.model import AttemptRecord, JobState, NodeState
from switchgear.scheduler.planning import alike_of
from switchgear.scheduler.repository import Repository, Transaction
from switchgear.scheduler.translate import clean, job_to_proto
from switchgear.v1 import job_service_pb2 as job_pb
from switchgear.v1alpha import placement_service_pb2 as placement_pb
from switchgear.v1alpha import placement_service_pb2_grpc as placement_grpc

MESSAGE_LENGTH_MAX = 4000
EXCLUDED_NODES_MAX = 1000
#: Commit times are by the clocks of nodes; one that is further ahead would end the wait for the next checkpoint before it is made.
_SKEW_NS_MAX = 60_000_000_000

#: States that recovery may report.
_REPORTABLE = frozenset({JobState.STARTING, JobState.RUNNING, JobState.RECOVERING, JobState.SUCCEEDED, JobState.FAILED})


#: More nodes than a placement can have.
_NODES_MAX = 10_000


class PlacementServicer(placement_grpc.PlacementServiceServicer):
    """What recovery asks for."""

    def __init__(self, repository: Repository, engine: Engine, cordons_lost: Callable[[], Awaitable[bool]]) -> None:
        """cordons_lost: see `Rules`."""
        self._repository = repository
        self._engine = engine
        self._cordons_lost = cordons_lost

    async def ReplaceNodes(self, request: placement_pb.ReplaceNodesRequest, context: Context) -> job_pb.Job:
        names.parse(request.job, "jobs/*")
        if max(len(request.exclude_nodes), len(request.avoid_nodes)) > EXCLUDED_NODES_MAX:
            raise Invalid(
                f"at most {EXCLUDED_NODES_MAX} nodes can be excluded", Reason.LIMIT_EXCEEDED, field="exclude_nodes"
            )
        for node in request.exclude_nodes:
            names.parse(node, "nodes/*")
        cordons_lost = await self._cordons_lost()
        reason = clean(request.reason, REASON_LENGTH_MAX)

        async def act(transaction: Transaction) -> job_pb.Job:
            job = await transaction.job(request.job)
            if job.ended:
                raise FailedPrecondition(
                    f"{job.name} has ended as {job.state}; it cannot be placed again", Reason.JOB_ENDED, job=job.name
                )
            if job.placement.epoch != request.placement_epoch:
                raise Aborted(
                    f"the placement of {job.name} is epoch {job.placement.epoch}, not {request.placement_epoch}; read the job again",
                    Reason.PLACEMENT_CHANGED,
                    job=job.name,
                    placement_epoch=str(job.placement.epoch),
                )
            observed = self._engine.observe()
            if not observed.nodes and not observed.complete:
                # Now no node could be had, and the job would lose those that it keeps as well.
                raise Unavailable(
                    "the scheduler has just begun and sees no node yet; ask again in a moment",
                    Reason.SERVER_UNREACHABLE,
                )
            lost = unanswered(job, request.lost_nodes, observed)
            job = replace_nodes(
                job,
                request.exclude_nodes,
                await transaction.snapshot(),
                observed,
                reason=reason,
                avoided=request.avoid_nodes,
                now_unix_ns=transaction.now_unix_ns,
            )
            for name in lost if cordons_lost else ():
                node = await transaction.node(name)
                if node.standing is NodeState.HEALTHY:
                    await transaction.put_node(node_life.cordon(node, reason, node_life.ACTOR_POLICY))
            return job_to_proto(await transaction.put_job(job))

        return await mutate(self._repository, request.request_id, request, job_pb.Job, act)

    async def UpdateJobState(self, request: placement_pb.UpdateJobStateRequest, context: Context) -> job_pb.Job:
        names.parse(request.job, "jobs/*")
        known = request.state in job_pb.Job.State.values()
        state_name = job_pb.Job.State.Name(request.state) if known else str(request.state)
        if state_name not in _REPORTABLE:
            raise Invalid(
                f"state must be one of {', '.join(sorted(_REPORTABLE))}, not {state_name}",
                Reason.BAD_FIELD,
                field="state",
            )
        async with self._repository.write() as transaction:
            job = await transaction.job(request.job)
            message = clean(request.message, MESSAGE_LENGTH_MAX)
            job = job_life.moved(job, JobState(state_name), message, transaction.now_unix_ns)
            return job_to_proto(await transaction.put_job(job))

    async def GetNodeContact(
        self, request: placement_pb.GetNodeContactRequest, context: Context
    ) -> placement_pb.NodeContact:
        names.parse(request.name, "nodes/*")
        status = dict(self._engine.observe().nodes).get(request.name)
        if status is None:
            raise NotFound(request.name, f"{request.name} was not heard since this scheduler began")
        return placement_pb.NodeContact(agent_connected=status.connected)

    async def ReportCheckpoint(
        self, request: placement_pb.ReportCheckpointRequest, context: Context
    ) -> placement_pb.ReportCheckpointResponse:
        names.parse(request.job, "jobs/*")
        async with self._repository.write() as transaction:
            job = await transaction.job(request.job)
            if not job.ended and 0 < request.commit_time_unix_ns <= transaction.now_unix_ns + _SKEW_NS_MAX:
                await transaction.put_job(job_life.saved(job, request.commit_time_unix_ns))
        return placement_pb.ReportCheckpointResponse()

    async def ReportAttempt(
        self, request: placement_pb.ReportAttemptRequest, context: Context
    ) -> placement_pb.ReportAttemptResponse:
        names.parse(request.job, "jobs/*")
        if len(request.nodes) > _NODES_MAX:
            raise Invalid(f"at most {_NODES_MAX} nodes", Reason.LIMIT_EXCEEDED, field="nodes")
        for node in (*request.nodes, *filter(None, [request.held_up_by])):
            names.parse(node, "nodes/*")
        async with self._repository.write() as transaction:
            job = await transaction.job(request.job)
            gpus = {node.name: node.inventory.gpus for node in (await transaction.snapshot()).nodes}
            models = {one[0].model if (one := gpus.get(name)) else "" for name in request.nodes}
            await transaction.add_attempt(
                AttemptRecord(
                    job.name,
                    job.create_revision,
                    request.generation,
                    alike_of(job.spec, len(request.nodes)),
                    tuple(request.nodes),
                    models.pop() if len(models) == 1 else "",
                    steps_per_s(request.steps, request.seconds),
                    request.held_up_by,
                )
            )
        return placement_pb.ReportAttemptResponse()
