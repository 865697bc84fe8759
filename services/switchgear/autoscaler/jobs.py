"""The edge towards the scheduler: the jobs of replicas are watched, created and cancelled."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

import grpc.aio

from switchgear.autoscaler.model import JobView, Loan, Refusal
from switchgear.autoscaler.translate import job_view, loan_from_proto, text
from switchgear.core.errors import AlreadyExists, Invalid, SwitchgearError, Unavailable
from switchgear.core.rpc import from_rpc_error
from switchgear.v1 import job_service_pb2 as pb
from switchgear.v1 import job_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:  # the name exists in the stubs only
    from switchgear.v1.job_service_pb2_grpc import JobServiceAsyncStub

log = logging.getLogger(__name__)

#: Calls under way at a time: a thousand replicas must not crowd out what else the scheduler does.
CALLS_MAX = 16
CALL_TIMEOUT_S = 10.0
RETRY_S = 0.5
#: A call that was answered is made again when the watch has not shown its effect by then.
REPEAT_S = 5.0
#: A refusal may be of the moment: a node may join, another job may end.
REFUSED_S = 2.0


class ReplicaJobs:
    """Knows the jobs of replicas and makes the calls about them that are wanted.

    changed: called when there is something new to see.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._wake = asyncio.Event()
        self._jobs: dict[str, JobView] | None = None
        self._loans: dict[str, Loan] = {}
        self._create: Mapping[str, pb.CreateJobRequest] = {}
        self._cancel: Collection[str] = ()
        self._refusals: dict[str, Refusal] = {}
        #: Replica or job -> not before that time of the event loop.
        self._again_s: dict[str, float] = {}
        self._busy: set[str] = set()

    @property
    def jobs(self) -> Mapping[str, JobView] | None:
        """By name; None while they are not known."""
        return self._jobs

    @property
    def loans(self) -> Mapping[str, Loan]:
        """What jobs gave up for others, by lender."""
        return self._loans

    @property
    def refusals(self) -> Mapping[str, Refusal]:
        """By replica."""
        return self._refusals

    @property
    def creating(self) -> frozenset[str]:
        """Replicas whose job is being created just now, and jobs that are being cancelled."""
        return frozenset(self._busy)

    def want(self, create: Mapping[str, pb.CreateJobRequest], cancel: Collection[str], live: Collection[str]) -> None:
        """What is to be asked of the scheduler from now on.

        create: by replica. cancel: jobs. live: jobs of replicas that have not ended; other jobs that have ended are forgotten.
        """
        self._create, self._cancel = create, cancel
        wanted = {*create, *cancel, *self._busy}
        self._again_s = {key: time_s for key, time_s in self._again_s.items() if key in wanted}
        self._refusals = {replica: why for replica, why in self._refusals.items() if replica in wanted}
        if self._jobs is not None:
            self._jobs = {name: job for name, job in self._jobs.items() if job.end is None or name in live}
        if create or cancel:
            self._wake.set()

    async def run(self, scheduler: grpc.aio.Channel) -> None:
        """Runs until cancelled; the scheduler may go and come back."""
        stub: JobServiceAsyncStub = pb_grpc.JobServiceStub(scheduler)  # type: ignore[assignment]
        self._busy.clear()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(stub))
            tasks.create_task(self._make_calls(stub))

    async def _follow(self, stub: JobServiceAsyncStub) -> None:
        while True:
            try:
                await self._watch(stub)
            except grpc.aio.AioRpcError as error:
                log.warning("lost the stream of jobs; connecting again", extra={"error": error.details()})
            finally:
                self._jobs = None
            await asyncio.sleep(RETRY_S * random.uniform(0.5, 1))

    async def _watch(self, stub: JobServiceAsyncStub) -> None:
        found: dict[str, JobView] = {}
        self._loans.clear()
        async for change in stub.WatchJobs(pb.WatchJobsRequest()):
            if not change.HasField("job"):
                if self._jobs is None:  # the first bookmark: these are all
                    self._jobs = found
                    self._changed()
            elif view := job_view(change.job):
                jobs = found if self._jobs is None else self._jobs
                jobs[change.job.name] = view
                self._changed()
            else:
                self._lends(change.job)

    def _lends(self, job: pb.Job) -> None:
        """Bounded by the jobs that have not ended."""
        lent = loan_from_proto(job)
        if lent is not None:
            self._loans[job.name] = lent
        else:
            self._loans.pop(job.name, None)

    async def _make_calls(self, stub: JobServiceAsyncStub) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._wake.clear()
                for key in (*self._create, *self._cancel):
                    if key in self._busy or self._again_s.get(key, 0.0) > loop.time():
                        continue
                    if len(self._busy) >= CALLS_MAX:
                        break
                    self._busy.add(key)
                    tasks.create_task(self._call(stub, key, self._create.get(key)))
                try:
                    async with asyncio.timeout(RETRY_S if self._create or self._cancel else None):
                        await self._wake.wait()
                except TimeoutError:
                    pass

    async def _call(self, stub: JobServiceAsyncStub, key: str, create: pb.CreateJobRequest | None) -> None:
        """Creates the job of a replica, or cancels one. What an error means is told by the next look at it."""
        wait_s = REPEAT_S
        try:
            if create is not None:
                await stub.CreateJob(create, timeout=CALL_TIMEOUT_S)
                self._refusals.pop(key, None)
            else:
                await stub.CancelJob(pb.CancelJobRequest(name=key), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as rpc_error:
            error = from_rpc_error(rpc_error)
            if isinstance(error, Unavailable) or rpc_error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                wait_s = RETRY_S
            elif create is not None:
                wait_s = REFUSED_S
                self._refuse(key, error)
            # A job that has ended cannot be cancelled any more: the watch tells so.
            log.warning("call to the scheduler failed", extra={"about": key, "error": error.message})
        finally:
            self._busy.discard(key)
            self._again_s[key] = asyncio.get_running_loop().time() + wait_s
            self._wake.set()

    def _refuse(self, replica: str, error: SwitchgearError) -> None:
        permanent = isinstance(error, Invalid | AlreadyExists)
        self._refusals[replica] = Refusal(text(error.message), permanent)
        self._changed()
