"""Composes recovery: actors of the jobs, their launchers, the scheduler's jobs and the collector's signals."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import grpc.aio

from switchgear.core.clock import Clock
from switchgear.core.errors import Aborted, FailedPrecondition, NotFound
from switchgear.core.rpc import channel, from_rpc_error
from switchgear.core.service import Endpoints
from switchgear.recovery import model as m
from switchgear.recovery import store, translate
from switchgear.recovery.actor import JobActor
from switchgear.recovery.launchers import LauncherSessions, not_known_yet
from switchgear.recovery.machine import resume
from switchgear.recovery.service import RecoveryApi
from switchgear.store.database import Database
from switchgear.store.feed import ChangeFeed
from switchgear.v1 import (
    fleet_service_pb2,
    fleet_service_pb2_grpc,
    job_service_pb2,
    job_service_pb2_grpc,
    recovery_service_pb2_grpc,
    signal_service_pb2,
    signal_service_pb2_grpc,
)
from switchgear.v1alpha import launcher_service_pb2_grpc, placement_service_pb2, placement_service_pb2_grpc

if TYPE_CHECKING:  # these names exist in the stubs only
    from switchgear.v1.fleet_service_pb2_grpc import FleetServiceAsyncStub
    from switchgear.v1.job_service_pb2_grpc import JobServiceAsyncStub
    from switchgear.v1.signal_service_pb2_grpc import SignalServiceAsyncStub
    from switchgear.v1alpha.placement_service_pb2_grpc import PlacementServiceAsyncStub

log = logging.getLogger(__name__)

TICK_S = 0.5
RETRY_S = 0.5
ACTOR = "policy:recovery"
_FINAL = {job_service_pb2.Job.SUCCEEDED, job_service_pb2.Job.FAILED, job_service_pb2.Job.CANCELLED}


class RecoveryService:
    """See `core.service.Service`."""

    service_names: Sequence[str] = ("switchgear.v1.RecoveryService", "switchgear.v1alpha.LauncherService")

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock
        self._feed = ChangeFeed(database, store.SERVICE)
        self._actors: dict[str, JobActor] = {}
        self._loaded = asyncio.Event()
        self._sessions = LauncherSessions(self._find)
        self._api = RecoveryApi(database, self._feed, clock, self._live)

    def register(self, server: grpc.aio.Server) -> None:
        recovery_service_pb2_grpc.add_RecoveryServiceServicer_to_server(self._api, server)
        launcher_service_pb2_grpc.add_LauncherServiceServicer_to_server(self._sessions, server)

    async def run(self, endpoints: Endpoints) -> None:
        async with channel(endpoints.scheduler) as scheduler, channel(endpoints.collector) as collector:
            self._fleet: FleetServiceAsyncStub = fleet_service_pb2_grpc.FleetServiceStub(scheduler)  # type: ignore[assignment]
            self._placement: PlacementServiceAsyncStub = placement_service_pb2_grpc.PlacementServiceStub(scheduler)  # type: ignore[assignment]
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                async with self._database.read() as session:
                    states = await store.running(session)
                for state in states:
                    self._adopt(resume(state, m.Now(self._clock.monotonic_s(), self._clock.unix_ns())))
                self._loaded.set()
                tasks.create_task(_forever("jobs", partial(self._watch_jobs, scheduler)))
                tasks.create_task(_forever("signals", partial(self._watch_signals, collector)))
                tasks.create_task(self._tick())

    def _live(self, job: str) -> m.JobState | None:
        actor = self._actors.get(job)
        return actor.state if actor else None

    async def _find(self, job: str) -> JobActor | None:
        await self._loaded.wait()
        if actor := self._actors.get(job):
            return actor
        async with self._database.read() as session:
            known = await store.state_of(session, job)
        return None if known else await not_known_yet(job)

    def _adopt(self, state: m.JobState) -> JobActor:
        actor = JobActor(
            state,
            self._clock,
            keep=self._keep,
            send=partial(self._sessions.send, state.job),
            carry=partial(self._carry, state.job),
        )
        self._actors[state.job] = actor
        self._tasks.create_task(self._run_actor(actor))
        return actor

    async def _run_actor(self, actor: JobActor) -> None:
        await actor.run()
        del self._actors[actor.state.job]

    async def _keep(self, state: m.JobState, records: Sequence[m.Effect]) -> None:
        async with self._database.write() as session:
            await store.save(session, state, records)
        self._feed.changed()

    async def _carry(self, job: str, call: m.Call) -> None:
        try:
            match call.kind:
                case "set_state" if call.outcome:
                    await self._placement.UpdateJobState(
                        placement_service_pb2.UpdateJobStateRequest(
                            job=job, state=call.outcome.value, message=call.reason
                        )
                    )
                case "cordon":
                    await self._fleet.CordonNode(
                        fleet_service_pb2.CordonNodeRequest(
                            name=call.node, reason=call.reason, actor=ACTOR, request_id=f"{job}-{call.call_id}"
                        )
                    )
                case "replace":
                    await self._placement.ReplaceNodes(
                        placement_service_pb2.ReplaceNodesRequest(
                            job=job,
                            placement_epoch=call.epoch,
                            exclude_nodes=call.node.split(","),
                            reason=call.reason,
                            request_id=f"{job}-{call.call_id}",
                        )
                    )
        except grpc.aio.AioRpcError as rpc_error:
            error = from_rpc_error(rpc_error)
            # Answered, if not as hoped: the job or node has moved on, and its watch tells what is true now.
            if not isinstance(error, Aborted | FailedPrecondition | NotFound):
                raise error from rpc_error
            log.warning("call refused", extra={"job": job, "call": call.kind, "error": error.message})

    async def _watch_jobs(self, scheduler: grpc.aio.Channel) -> None:
        stub: JobServiceAsyncStub = job_service_pb2_grpc.JobServiceStub(scheduler)  # type: ignore[assignment]
        async for change in stub.WatchJobs(job_service_pb2.WatchJobsRequest()):
            if change.HasField("job"):
                await self._take_job(change.job)

    async def _take_job(self, job: job_service_pb2.Job) -> None:
        actor = self._actors.get(job.name)
        if job.state in _FINAL:
            if actor:
                await actor.post(m.EndedOutside(job.message or "the job has ended"))
            return
        if not job.placement.nodes:
            return
        if actor is None:
            async with self._database.read() as session:
                if await store.state_of(session, job.name):
                    return  # ended here; the scheduler has not heard of it yet
            actor = self._adopt(
                m.JobState(job.name, translate.spec_from_proto(job.spec), job.create_time.ToNanoseconds())
            )
        await actor.post(translate.placed_from_proto(job.placement))

    async def _watch_signals(self, collector: grpc.aio.Channel) -> None:
        async with self._database.read() as session:
            cursor = await store.signal_cursor(session)
        stub: SignalServiceAsyncStub = signal_service_pb2_grpc.SignalServiceStub(collector)  # type: ignore[assignment]
        async for change in stub.WatchSignals(signal_service_pb2.WatchSignalsRequest(revision=cursor)):
            if not change.HasField("signal"):
                continue
            if change.signal.severity == signal_service_pb2.Signal.FATAL:
                await self._take_signal(change.signal)
            async with self._database.write() as session:
                await store.move_signal_cursor(session, change.revision)

    async def _take_signal(self, signal: signal_service_pb2.Signal) -> None:
        event = m.NodeSignal(
            node=signal.node,
            gpu=signal.gpu,
            kind=signal.kind,
            evidence=signal.evidence,
            time_ns=signal.time.ToNanoseconds(),
            simulated=signal.simulated,
        )
        for actor in list(self._actors.values()):
            if any(slot.node == signal.node for slot in actor.state.slots):
                await actor.settle(event)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            for actor in list(self._actors.values()):
                await actor.post(m.Tick())


async def _forever(what: str, watch: Callable[[], Awaitable[None]]) -> None:
    """Follows a stream again when it ends: the other service may restart at any time."""
    while True:
        try:
            await watch()
        except grpc.aio.AioRpcError as error:
            log.warning("lost the stream of %s; connecting again", what, extra={"error": error.details()})
        await asyncio.sleep(RETRY_S)


def build(database: Database, clock: Clock) -> RecoveryService:
    return RecoveryService(database, clock)
