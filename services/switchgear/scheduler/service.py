"""The scheduler's gRPC edge for jobs: checks, translates and hands on; the policies are elsewhere."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from sqlalchemy.ext.asyncio import AsyncSession

from switchgear.core import identity, names, trace
from switchgear.core.errors import FailedPrecondition, Invalid, NotFound, Reason
from switchgear.scheduler import jobs as job_life
from switchgear.scheduler import store
from switchgear.scheduler.edges import REASON_LENGTH_MAX, Context, mutate
from switchgear.scheduler.engines.base import Engine
from switchgear.scheduler.model import JobRecord, JobSpec, JobState, Leaving, Turn
from switchgear.scheduler.repository import Repository, Transaction
from switchgear.scheduler.shared import require_partitions
from switchgear.scheduler.spec import require_room, spec_from_proto
from switchgear.scheduler.store import SERVICE
from switchgear.scheduler.translate import clean, job_to_proto
from switchgear.store import paging
from switchgear.store.revisions import current_revision
from switchgear.v1 import job_service_pb2 as job_pb
from switchgear.v1 import job_service_pb2_grpc as job_grpc

#: One transaction, and one answer that names all members.
ARRAY_MAX = 1000
_HELD = "by its user"


class JobServicer(job_grpc.JobServiceServicer):
    """Jobs, as `JobService` shows them. state_dir: where the logs of jobs go that name no folder of their own. engine: whose partitions they may name."""

    def __init__(self, repository: Repository, state_dir: Path, engine: Engine) -> None:
        self._repository = repository
        self._state_dir = state_dir
        self._engine = engine

    async def CreateJob(self, request: job_pb.CreateJobRequest, context: Context) -> job_pb.Job:
        spec, job_id = self._checked(request.job.spec), request.job_id or _chosen_id(request.job.spec)
        held = _HELD if request.job.spec.hold else ""

        async def act(transaction: Transaction) -> job_pb.Job:
            await self._require_possible(transaction, spec)
            return job_to_proto(await transaction.add_job(self._new(transaction, job_id, spec, held)))

        return await mutate(self._repository, request.request_id, request, job_pb.Job, act)

    async def CreateJobArray(
        self, request: job_pb.CreateJobArrayRequest, context: Context
    ) -> job_pb.CreateJobArrayResponse:
        spec, array = self._checked(request.job.spec), request.job_id or _chosen_id(request.job.spec)
        if not 1 <= request.size <= ARRAY_MAX:
            raise Invalid(f"size must be 1 to {ARRAY_MAX}, not {request.size}", Reason.BAD_FIELD, field="size")
        held = _HELD if request.job.spec.hold else ""

        def member(index: int) -> JobSpec:
            environment = {
                **dict(spec.environment),
                "SWITCHGEAR_ARRAY_INDEX": str(index),
                "SWITCHGEAR_ARRAY_SIZE": str(request.size),
            }
            return replace(spec, environment=tuple(sorted(environment.items())), array=array, array_index=index)

        async def act(transaction: Transaction) -> job_pb.CreateJobArrayResponse:
            await self._require_possible(transaction, spec)
            jobs = [self._new(transaction, f"{array}-{index}", member(index), held) for index in range(request.size)]
            return job_pb.CreateJobArrayResponse(jobs=[(await transaction.add_job(job)).name for job in jobs])

        return await mutate(self._repository, request.request_id, request, job_pb.CreateJobArrayResponse, act)

    async def _require_possible(self, transaction: Transaction, spec: JobSpec) -> None:
        """Raises FailedPrecondition (JOB_TOO_LARGE), Invalid for a partition that is not there, and NotFound when its queue or a job that
        it waits for does not exist."""
        snapshot = await transaction.snapshot()
        require_room(spec, [len(node.inventory.gpus) for node in snapshot.nodes])
        require_partitions(spec.partition, dict(self._engine.observe().nodes))
        if spec.queue and all(queue.name != spec.queue for queue in snapshot.rules.queues):
            raise NotFound(spec.queue, f"{spec.queue} does not exist; `switchgear queues` lists those that do")
        for before in spec.after:
            await transaction.job(before.job)

    def _checked(self, proto: job_pb.JobSpec) -> JobSpec:
        caller = identity.current()
        user = caller.name if caller.kind is identity.Kind.USER else proto.user
        return replace(spec_from_proto(proto), user=user, array="", array_index=0)

    def _new(self, transaction: Transaction, job_id: str, spec: JobSpec, held: str) -> JobRecord:
        name = names.job_name(job_id)
        if not spec.log_directory:
            spec = replace(spec, log_directory=str(self._state_dir.absolute() / "jobs" / job_id / "logs"))
        return JobRecord(
            name,
            spec,
            transaction.now_unix_ns,
            message=f"held: {held}" if held else "waits for its first turn in the queue",
            trace_parent=trace.current(),
            turn=Turn(held=held, waits_for=spec.after),
        )

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

        return await mutate(self._repository, request.request_id, request, job_pb.Job, act)

    async def HoldJob(self, request: job_pb.HoldJobRequest, context: Context) -> job_pb.Job:
        reason = clean(request.reason.strip(), REASON_LENGTH_MAX) or _HELD
        return await self._change(request.name, request, lambda job, _: job_life.hold(job, reason))

    async def ReleaseJob(self, request: job_pb.ReleaseJobRequest, context: Context) -> job_pb.Job:
        return await self._change(request.name, request, lambda job, _: job_life.release(job))

    async def RequeueJob(self, request: job_pb.RequeueJobRequest, context: Context) -> job_pb.Job:
        def change(job: JobRecord, now_unix_ns: int) -> JobRecord:
            if job.ended:
                raise FailedPrecondition(
                    f"{job.name} has ended as {job.state}; submit it again", Reason.JOB_ENDED, job=job.name
                )
            leaving = Leaving("", now_unix_ns, now_unix_ns, _HELD if request.hold else "")
            return job_life.asked_to_leave(job, leaving)

        return await self._change(request.name, request, change)

    async def _change(
        self,
        name: str,
        request: job_pb.HoldJobRequest | job_pb.ReleaseJobRequest | job_pb.RequeueJobRequest,
        change: Callable[[JobRecord, int], JobRecord],
    ) -> job_pb.Job:
        names.parse(name, "jobs/*")

        async def act(transaction: Transaction) -> job_pb.Job:
            job = await transaction.job(name)
            return job_to_proto(await transaction.put_job(change(job, transaction.now_unix_ns)))

        return await mutate(self._repository, request.request_id, request, job_pb.Job, act)


def _chosen_id(spec: job_pb.JobSpec) -> str:
    """A suffix of 32 random bits: ids that the server chooses do not meet within the jobs that it keeps."""
    stem = names.to_id(PurePosixPath(spec.argv[0]).stem, "job")[:35].rstrip(".-")
    return f"{stem}-{secrets.token_hex(4)}"
