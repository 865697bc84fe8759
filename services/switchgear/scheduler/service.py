"""The scheduler's gRPC edge: checks, translates and hands on; the policies are elsewhere."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias, TypeVar

import grpc.aio
from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncSession

from switchgear.core import identity, names, trace
from switchgear.core.errors import Aborted, FailedPrecondition, Invalid, NotFound, Reason
from switchgear.scheduler import jobs as job_life
from switchgear.scheduler import nodes as node_life
from switchgear.scheduler import store
from switchgear.scheduler.decide import replace_nodes
from switchgear.scheduler.engines.base import Engine
from switchgear.scheduler.model import JobRecord, JobState, NodeRecord
from switchgear.scheduler.repository import SERVICE, Repository, Transaction
from switchgear.scheduler.spec import require_room, spec_from_proto
from switchgear.scheduler.translate import clean, job_to_proto, node_to_proto
from switchgear.store import paging
from switchgear.store.requests import once
from switchgear.store.revisions import current_revision
from switchgear.v1 import fleet_service_pb2 as fleet_pb
from switchgear.v1 import fleet_service_pb2_grpc as fleet_grpc
from switchgear.v1 import job_service_pb2 as job_pb
from switchgear.v1 import job_service_pb2_grpc as job_grpc
from switchgear.v1alpha import placement_service_pb2 as placement_pb
from switchgear.v1alpha import placement_service_pb2_grpc as placement_grpc

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
M = TypeVar("M", bound=Message)

REASON_LENGTH_MAX = 1000
ACTOR_LENGTH_MAX = 200
MESSAGE_LENGTH_MAX = 4000
EXCLUDED_NODES_MAX = 1000

#: States that recovery may report.
_REPORTABLE = frozenset({JobState.STARTING, JobState.RUNNING, JobState.RECOVERING, JobState.SUCCEEDED, JobState.FAILED})


class FleetServicer(fleet_grpc.FleetServiceServicer):
    """Nodes, as `FleetService` shows them."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    async def GetNode(self, request: fleet_pb.GetNodeRequest, context: Context) -> fleet_pb.Node:
        names.parse(request.name, "nodes/*")
        async with self._repository.database.read() as session:
            node = await store.get_node(session, request.name)
            if node is None:
                raise NotFound(request.name)
            return await _node(session, node)

    async def ListNodes(self, request: fleet_pb.ListNodesRequest, context: Context) -> fleet_pb.ListNodesResponse:
        size = paging.page_size(request.page_size)
        after = paging.after_text("nodes", request.page_token)
        async with self._repository.database.read() as session:
            nodes = await _nodes(session, await store.nodes_after_name(session, after or "", size + 1))
            revision = await current_revision(session, SERVICE)
        page = nodes[: paging.fitting(nodes[:size])]
        return fleet_pb.ListNodesResponse(
            nodes=page,
            next_page_token=paging.page_token("nodes", page[-1].name) if len(nodes) > len(page) else "",
            revision=revision,
        )

    async def WatchNodes(
        self, request: fleet_pb.WatchNodesRequest, context: Context
    ) -> AsyncIterator[fleet_pb.WatchNodesResponse]:
        async def page(session: AsyncSession, after: int, limit: int) -> Sequence[tuple[int, fleet_pb.Node]]:
            nodes = await store.nodes_after_revision(session, after, limit)
            return list(zip((node.revision for node in nodes), await _nodes(session, nodes), strict=True))

        async for revision, node in self._repository.feed.watch(request.revision, page):
            yield fleet_pb.WatchNodesResponse(node=node, revision=revision)

    async def CordonNode(self, request: fleet_pb.CordonNodeRequest, context: Context) -> fleet_pb.Node:
        names.parse(request.name, "nodes/*")
        reason = clean(request.reason.strip(), REASON_LENGTH_MAX)
        if not reason:
            raise Invalid(
                "reason is missing: say why, it is shown wherever the node is", Reason.BAD_FIELD, field="reason"
            )

        async def act(transaction: Transaction) -> fleet_pb.Node:
            node = await _node_with_etag(transaction, request.name, request.etag)
            after = node_life.cordon(node, reason, _actor(request.actor))
            return await _node(transaction.session, await transaction.put_node(after))

        return await _mutate(self._repository, request.request_id, request, fleet_pb.Node, act)

    async def UncordonNode(self, request: fleet_pb.UncordonNodeRequest, context: Context) -> fleet_pb.Node:
        names.parse(request.name, "nodes/*")

        async def act(transaction: Transaction) -> fleet_pb.Node:
            node = await _node_with_etag(transaction, request.name, request.etag)
            after = await transaction.put_node(node_life.uncordon(node, _actor(request.actor)), healthy_anew=True)
            return await _node(transaction.session, after)

        return await _mutate(self._repository, request.request_id, request, fleet_pb.Node, act)


class JobServicer(job_grpc.JobServiceServicer):
    """Jobs, as `JobService` shows them. state_dir: where the logs of jobs go that name no folder of their own."""

    def __init__(self, repository: Repository, state_dir: Path) -> None:
        self._repository = repository
        self._state_dir = state_dir

    async def CreateJob(self, request: job_pb.CreateJobRequest, context: Context) -> job_pb.Job:
        spec = spec_from_proto(request.job.spec)
        # A suffix of 32 random bits: ids that the server chooses do not meet within the jobs that it keeps.
        stem = names.to_id(PurePosixPath(spec.argv[0]).stem, "job")[:40].rstrip(".-")
        job_id = request.job_id or f"{stem}-{secrets.token_hex(4)}"
        name = names.job_name(job_id)
        if not spec.log_directory:
            spec = replace(spec, log_directory=str(self._state_dir.absolute() / "jobs" / job_id / "logs"))

        async def act(transaction: Transaction) -> job_pb.Job:
            nodes = (await transaction.snapshot()).nodes
            require_room(spec, [len(node.inventory.gpus) for node in nodes])
            job = JobRecord(
                name,
                spec,
                transaction.now_unix_ns,
                message="waits for its first turn in the queue",
                trace_parent=trace.current(),
            )
            return job_to_proto(await transaction.add_job(job))

        return await _mutate(self._repository, request.request_id, request, job_pb.Job, act)

    async def GetJob(self, request: job_pb.GetJobRequest, context: Context) -> job_pb.Job:
        names.parse(request.name, "jobs/*")
        async with self._repository.database.read() as session:
            job = await store.get_job(session, request.name)
        if job is None:
            raise NotFound(request.name)
        return job_to_proto(job)

    async def ListJobs(self, request: job_pb.ListJobsRequest, context: Context) -> job_pb.ListJobsResponse:
        size = paging.page_size(request.page_size)
        before = paging.after_number("jobs", request.page_token)
        async with self._repository.database.read() as session:
            jobs = await store.jobs_before(session, before, size + 1)
            revision = await current_revision(session, SERVICE)
        messages = [job_to_proto(job) for job in jobs]
        count = paging.fitting(messages[:size])
        return job_pb.ListJobsResponse(
            jobs=messages[:count],
            next_page_token=paging.page_token("jobs", jobs[count - 1].create_revision) if len(jobs) > count else "",
            revision=revision,
        )

    async def WatchJobs(
        self, request: job_pb.WatchJobsRequest, context: Context
    ) -> AsyncIterator[job_pb.WatchJobsResponse]:
        async def page(session: AsyncSession, after: int, limit: int) -> Sequence[tuple[int, job_pb.Job]]:
            return [(job.revision, job_to_proto(job)) for job in await store.jobs_after_revision(session, after, limit)]

        async for revision, job in self._repository.feed.watch(request.revision, page):
            yield job_pb.WatchJobsResponse(job=job, revision=revision)

    async def CancelJob(self, request: job_pb.CancelJobRequest, context: Context) -> job_pb.Job:
        names.parse(request.name, "jobs/*")

        async def act(transaction: Transaction) -> job_pb.Job:
            job = await transaction.job(request.name)
            if job.state is not JobState.CANCELLED:
                job = job_life.moved(job, JobState.CANCELLED, "cancelled by the user", transaction.now_unix_ns)
            return job_to_proto(await transaction.put_job(job))

        return await _mutate(self._repository, request.request_id, request, job_pb.Job, act)


class PlacementServicer(placement_grpc.PlacementServiceServicer):
    """What recovery asks for."""

    def __init__(self, repository: Repository, engine: Engine) -> None:
        self._repository = repository
        self._engine = engine

    async def ReplaceNodes(self, request: placement_pb.ReplaceNodesRequest, context: Context) -> job_pb.Job:
        names.parse(request.job, "jobs/*")
        if max(len(request.exclude_nodes), len(request.avoid_nodes)) > EXCLUDED_NODES_MAX:
            raise Invalid(
                f"at most {EXCLUDED_NODES_MAX} nodes can be excluded", Reason.LIMIT_EXCEEDED, field="exclude_nodes"
            )
        for node in request.exclude_nodes:
            names.parse(node, "nodes/*")

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
            job = replace_nodes(
                job,
                request.exclude_nodes,
                await transaction.snapshot(),
                self._engine.observe(),
                reason=clean(request.reason, REASON_LENGTH_MAX),
                avoided=request.avoid_nodes,
            )
            return job_to_proto(await transaction.put_job(job))

        return await _mutate(self._repository, request.request_id, request, job_pb.Job, act)

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


async def _mutate(
    repository: Repository,
    request_id: str,
    request: Message,
    response_type: type[M],
    act: Callable[[Transaction], Awaitable[M]],
) -> M:
    async with repository.write() as transaction:
        return await once(
            transaction.session,
            request_id,
            request,
            response_type,
            lambda: act(transaction),
            now_unix_ns=transaction.now_unix_ns,
        )


async def _node_with_etag(transaction: Transaction, name: str, etag: str) -> NodeRecord:
    node = await transaction.node(name)
    if etag and etag != str(node.revision):
        raise Aborted(
            f"{name} has changed since it was read; read it again and decide anew",
            Reason.ETAG_MISMATCH,
            name=name,
            etag=str(node.revision),
        )
    return node


async def _nodes(session: AsyncSession, nodes: Sequence[NodeRecord]) -> list[fleet_pb.Node]:
    allocated = await store.gpus_allocated(session)
    return [node_to_proto(node, allocated.get(node.name, 0)) for node in nodes]


async def _node(session: AsyncSession, node: NodeRecord) -> fleet_pb.Node:
    return (await _nodes(session, [node]))[0]


def _actor(actor: str) -> str:
    return clean(identity.actor(actor), ACTOR_LENGTH_MAX) or "user"
