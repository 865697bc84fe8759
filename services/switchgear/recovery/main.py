"""Composes recovery: actors of the jobs, their launchers, the scheduler's jobs and the collector's signals."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import grpc.aio
from prometheus_client import CollectorRegistry

from switchgear.core import trace
from switchgear.core.clock import Clock
from switchgear.core.errors import Aborted, FailedPrecondition, Invalid, NotFound, OutOfRange, Reason, Unavailable
from switchgear.core.modes import Mode
from switchgear.core.rpc import from_rpc_error
from switchgear.core.service import Endpoints
from switchgear.recovery import model as m
from switchgear.recovery import store, tracing, translate
from switchgear.recovery.actor import JobActor
from switchgear.recovery.evidence import known_of_attempts
from switchgear.recovery.launchers import LauncherSessions, not_known_yet
from switchgear.recovery.machine import resume
from switchgear.recovery.metrics import RecoveryMetrics
from switchgear.recovery.service import RecoveryApi
from switchgear.store.database import Database
from switchgear.store.feed import ChangeFeed
from switchgear.store.policies import CORDON, RESTART, PolicyModes
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
#: Half of it is random, so that the control plane's parts do not come back in step.
RETRY_S = 0.5
#: A stream that lasted so long was a good one: its end is told, whatever the reason was the last time.
STREAM_GOOD_S = 5.0
#: A call to the scheduler is one transaction; one that takes longer is made again, which its id makes harmless.
CALL_TIMEOUT_S = 10.0
#: A look into the scheduler's memory.
ASK_TIMEOUT_S = 1.0
#: How long a launcher waits for `run` to have loaded the jobs before it is sent away to connect again.
LOAD_TIMEOUT_S = 5.0
#: A tick that is so late means that this process itself was stopped or starved ...
STALL_S = 5.0
#: ... and launchers, which may have to connect again, are heard before their silence is judged.
HEARING_S = 5.0
ACTOR = "policy:recovery"
#: How often nodes with a fatal signal are looked at: a person mends them, which takes minutes.
REVIEW_S = 5.0
#: Nodes whose newest fatal signal is remembered; more sick nodes than that at once is a power cut.
FATAL_NODES_MAX = 1000
_FINAL = {job_service_pb2.Job.SUCCEEDED, job_service_pb2.Job.FAILED, job_service_pb2.Job.CANCELLED}


@dataclass(slots=True)
class _Fatal:
    """The newest fatal signal of a node. was_out: the node was seen out of service since, by us or anybody."""

    event: m.NodeSignal
    was_out: bool = False


class RecoveryService:
    """See `core.service.Service`."""

    service_names: Sequence[str] = ("switchgear.v1.RecoveryService", "switchgear.v1alpha.LauncherService")

    def __init__(
        self, database: Database, clock: Clock, registry: CollectorRegistry, modes: PolicyModes, timing: m.Timing
    ) -> None:
        self._database, self._clock, self._modes, self._timing = database, clock, modes, timing
        self._modes_now = m.Modes()
        self._feed = ChangeFeed(database, store.SERVICE)
        self._actors: dict[str, JobActor] = {}
        #: Newest fatal signal of each node that has not been seen mended.
        self._fatal: dict[str, _Fatal] = {}
        #: Nodes whose contact is being asked for.
        self._asking = set[str]()
        self._loaded = asyncio.Event()
        self._jobs_known = asyncio.Event()
        self._sessions = LauncherSessions(self._find)
        self._api = RecoveryApi(database, self._feed, clock, self._live)
        self._metrics = RecoveryMetrics(registry, clock, lambda: [actor.state for actor in list(self._actors.values())])

    def register(self, server: grpc.aio.Server) -> None:
        recovery_service_pb2_grpc.add_RecoveryServiceServicer_to_server(self._api, server)
        launcher_service_pb2_grpc.add_LauncherServiceServicer_to_server(self._sessions, server)

    async def run(self, endpoints: Endpoints) -> None:
        try:
            async with endpoints.channel("scheduler") as scheduler, endpoints.channel("collector") as collector:
                self._fleet: FleetServiceAsyncStub = fleet_service_pb2_grpc.FleetServiceStub(scheduler)  # type: ignore[assignment]
                self._placement: PlacementServiceAsyncStub = placement_service_pb2_grpc.PlacementServiceStub(scheduler)  # type: ignore[assignment]
                self._modes_now = await self._read_modes()
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
                    tasks.create_task(self._review_fatal())
        finally:
            # What comes next begins from the store, and launchers with a new hello.
            self._loaded.clear()
            self._jobs_known.clear()
            self._actors.clear()
            self._sessions.end_all()

    def _live(self, job: str) -> m.JobState | None:
        actor = self._actors.get(job)
        return actor.state if actor else None

    async def _find(self, job: str) -> JobActor | None:
        try:
            await asyncio.wait_for(self._loaded.wait(), LOAD_TIMEOUT_S)
        except TimeoutError:
            raise Unavailable("recovery is starting; connect again in a moment", Reason.SERVER_UNREACHABLE) from None
        if actor := self._actors.get(job):
            return actor
        async with self._database.read() as session:
            known = await store.state_of(session, job)
        # Its first state may have been stored while we read.
        return self._actors.get(job) or (None if known else await not_known_yet(job))

    async def _read_modes(self) -> m.Modes:
        return m.Modes(restart=await self._modes.of(RESTART), cordon=await self._modes.of(CORDON))

    def _adopt(self, state: m.JobState) -> JobActor:
        state.modes = self._modes_now
        actor = JobActor(
            state,
            self._clock,
            keep=self._keep,
            send=partial(self._send, state.job),
            carry=partial(self._carry, state.job, state.create_ns),
            ask=lambda asked: self._ask(actor, asked.node),
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
        self._report_checkpoints(state.job, records)
        for known in known_of_attempts(state.job, records):
            self._tasks.create_task(self._report_attempt(known))
        self._metrics.kept(records)
        tracing.kept(records)
        self._feed.changed()

    def _report_checkpoints(self, job: str, records: Sequence[m.Effect]) -> None:
        """Tells the scheduler what a preemption would cost now. A report that is lost is made up for by the next checkpoint's."""
        commits = [
            record.checkpoint.commit_ns
            for record in records
            if isinstance(record, m.SaveCheckpoint) and record.checkpoint.state is m.CheckpointState.VERIFIED
        ]
        if commits:
            self._tasks.create_task(self._report_checkpoint(job, max(commits)))

    async def _report_checkpoint(self, job: str, commit_ns: int) -> None:
        request = placement_service_pb2.ReportCheckpointRequest(job=job, commit_time_unix_ns=commit_ns)
        try:
            await self._placement.ReportCheckpoint(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            log.debug("cannot tell of a checkpoint", extra={"job": job, "error": error.details()})

    async def _report_attempt(self, request: placement_service_pb2.ReportAttemptRequest) -> None:
        """Statistics of many: one that is lost is not missed."""
        try:
            await self._placement.ReportAttempt(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            log.debug("cannot tell of an attempt", extra={"job": request.job, "error": error.details()})

    def _send(self, job: str, command: m.Command) -> None:
        self._sessions.send(job, command, self._trace_parent(job))

    def _trace_parent(self, job: str) -> str:
        state = self._live(job)
        return tracing.parent(state) if state else ""

    async def _carry(self, job: str, create_ns: int, call: m.Call) -> None:
        with trace.span(f"call scheduler: {call.kind}", parent=self._trace_parent(job)):
            await self._call(job, create_ns, call)

    async def _call(self, job: str, create_ns: int, call: m.Call) -> None:
        # A job's name may be used again when the scheduler has forgotten the first; the ids of its calls must not.
        request_id = f"{job}-{create_ns}-{call.call_id}"
        try:
            match call.kind:
                case "set_state" if call.outcome:
                    await self._placement.UpdateJobState(
                        placement_service_pb2.UpdateJobStateRequest(
                            job=job, state=call.outcome.value, message=call.reason
                        ),
                        timeout=CALL_TIMEOUT_S,
                    )
                case "cordon":
                    await self._fleet.CordonNode(
                        fleet_service_pb2.CordonNodeRequest(
                            name=call.node, reason=call.reason, actor=ACTOR, request_id=request_id
                        ),
                        timeout=CALL_TIMEOUT_S,
                    )
                    self._was_out(call.node)
                case "replace":
                    await self._placement.ReplaceNodes(
                        placement_service_pb2.ReplaceNodesRequest(
                            job=job,
                            placement_epoch=call.epoch,
                            exclude_nodes=[node for node in call.node.split(",") if node],
                            avoid_nodes=call.avoid,
                            lost_nodes=call.lost,
                            reason=call.reason,
                            request_id=request_id,
                        ),
                        timeout=CALL_TIMEOUT_S,
                    )
        except grpc.aio.AioRpcError as rpc_error:
            error = from_rpc_error(rpc_error)
            # Answered, if not as hoped: the job or node has moved on, and its watch tells what is true now; or we were wrong, and
            # would be again.
            if not isinstance(error, Aborted | FailedPrecondition | NotFound | Invalid):
                raise error from rpc_error
            log.warning("call refused", extra={"job": job, "call": call.kind, "error": error.message})

    def _ask(self, actor: JobActor, node: str) -> None:
        if node not in self._asking:
            self._asking.add(node)
            self._tasks.create_task(self._ask_contact(actor, node))

    async def _ask_contact(self, actor: JobActor, node: str) -> None:
        """What is not answered is asked again with the next tick, as long as it matters."""
        request = placement_service_pb2.GetNodeContactRequest(name=node)
        try:
            contact = await self._placement.GetNodeContact(request, timeout=ASK_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            log.debug("cannot learn whether an agent is connected", extra={"node": node, "error": error.details()})
        else:
            await actor.post(m.ContactKnown(node, contact.agent_connected))
        finally:
            self._asking.discard(node)

    async def _watch_jobs(self, scheduler: grpc.aio.Channel) -> None:
        stub: JobServiceAsyncStub = job_service_pb2_grpc.JobServiceStub(scheduler)  # type: ignore[assignment]
        async for change in stub.WatchJobs(job_service_pb2.WatchJobsRequest()):
            if change.HasField("job"):
                await self._take_job(change.job)
            else:
                self._jobs_known.set()

    async def _take_job(self, job: job_service_pb2.Job) -> None:
        actor = self._actors.get(job.name)
        if job.state in _FINAL:
            if actor:
                await actor.post(m.EndedOutside(translate.text(job.message) or "the job has ended"))
            return
        if not job.placement.nodes:
            if actor and job.state == job_service_pb2.Job.PENDING:
                # Its engine could not start a launcher, or kept a node from it; who has asked for a placement knows it already.
                reason = translate.text(job.message) or "the job is in the queue again"
                await actor.post(m.Vacate(reason, for_others=False))
            return
        if actor is None:
            create_ns = job.create_time.ToNanoseconds()
            try:
                async with self._database.read() as session:
                    known = await store.state_of(session, job.name)
            except FailedPrecondition as error:
                log.error("cannot care for a job", extra={"job": job.name, "error": error.message})
                return
            if known and known.create_ns == create_ns:
                return  # ended here; the scheduler has not heard of it yet
            if known:
                async with self._database.write() as session:
                    await store.forget(session, job.name)
            spec = translate.spec_from_proto(job.spec)
            state = m.JobState(job.name, spec, create_ns, trace_parent=job.trace_parent, timing=self._timing)
            actor = self._adopt(state)
        await actor.settle(translate.placed_from_proto(job.placement))
        await actor.settle(translate.seats_from_proto(job.placement))
        if job.state == job_service_pb2.Job.PREEMPTED:
            await actor.post(m.Vacate(translate.text(job.message) or "others are to have its nodes"))
        await self._recall_signals(actor)

    async def _watch_signals(self, collector: grpc.aio.Channel) -> None:
        # A signal about the node of a job that we have yet to learn of would be lost.
        await self._jobs_known.wait()
        async with self._database.read() as session:
            cursor = await store.signal_cursor(session)
        stub: SignalServiceAsyncStub = signal_service_pb2_grpc.SignalServiceStub(collector)  # type: ignore[assignment]
        try:
            async for change in stub.WatchSignals(signal_service_pb2.WatchSignalsRequest(revision=cursor)):
                if not change.HasField("signal"):
                    continue
                if change.signal.severity == signal_service_pb2.Signal.FATAL:
                    await self._take_signal(change.signal)
                await self._move_cursor(change.revision)
        except grpc.aio.AioRpcError as error:
            if not isinstance(from_rpc_error(error), OutOfRange):
                raise
            # We were away for longer than signals are kept, or the collector has begun anew. Old evidence may be of nodes that
            # have been mended since, so it is left; ranks that fail on a bad node tell by themselves.
            newest = await stub.ListSignals(signal_service_pb2.ListSignalsRequest(page_size=1), timeout=CALL_TIMEOUT_S)
            log.error("signals were missed", extra={"after": cursor, "up_to": newest.revision})
            await self._move_cursor(newest.revision)

    async def _move_cursor(self, revision: int) -> None:
        async with self._database.write() as session:
            await store.move_signal_cursor(session, revision)

    async def _take_signal(self, signal: signal_service_pb2.Signal) -> None:
        event = m.NodeSignal(
            node=signal.node,
            gpu=signal.gpu,
            kind=signal.kind,
            evidence=signal.evidence,
            time_ns=signal.time.ToNanoseconds(),
            simulated=signal.simulated,
        )
        self._fatal.pop(signal.node, None)
        self._fatal[signal.node] = _Fatal(event)
        while len(self._fatal) > FATAL_NODES_MAX:
            del self._fatal[next(iter(self._fatal))]
        jobs = [actor for actor in self._actors.values() if any(slot.node == signal.node for slot in actor.state.slots)]
        for actor in jobs:
            await actor.settle(event)
        if not jobs:
            await self._cordon(event)

    async def _cordon(self, event: m.NodeSignal) -> None:
        """Takes a node on which no job of ours runs out of placement, before one does."""
        mode = await self._modes.of(CORDON)
        if mode is not Mode.ACT:
            # The signal itself is what people see of it.
            level = logging.WARNING if mode is Mode.ADVISE else logging.INFO
            log.log(level, "would cordon", extra={"node": event.node, "mode": mode.value, "evidence": event.evidence})
            return
        label = " (simulated)" if event.simulated else ""
        request = fleet_service_pb2.CordonNodeRequest(
            name=event.node,
            reason=f"{event.kind}{label}: {event.evidence}",
            actor=ACTOR,
            request_id=f"{event.node}-{event.time_ns}",
        )
        try:
            await self._fleet.CordonNode(request, timeout=CALL_TIMEOUT_S)
            self._was_out(event.node)
        except grpc.aio.AioRpcError as rpc_error:
            error = from_rpc_error(rpc_error)
            if not isinstance(error, NotFound | Invalid):  # a node that the scheduler does not have is not placed on
                raise
            log.warning("cannot cordon", extra={"node": event.node, "error": error.message})

    async def _recall_signals(self, actor: JobActor) -> None:
        """A signal may have come between the placement and the news of it, or before it about a node that nobody may cordon."""
        for slot in actor.state.slots:
            if (fatal := self._fatal.get(slot.node)) and not await self._is_mended(fatal):
                await actor.settle(fatal.event)

    async def _is_mended(self, fatal: _Fatal) -> bool:
        """Whether the node is in service again after it was out of it; then its signal is forgotten."""
        name = fatal.event.node
        node = await self._fleet.GetNode(fleet_service_pb2.GetNodeRequest(name=name), timeout=CALL_TIMEOUT_S)
        if node.state != fleet_service_pb2.Node.HEALTHY:
            fatal.was_out = True
            return False
        if fatal.was_out and self._fatal.get(name) is fatal:
            del self._fatal[name]
        return fatal.was_out

    def fatal_nodes(self) -> frozenset[str]:
        """Nodes with a fatal signal that have not been seen mended."""
        return frozenset(self._fatal)

    def _was_out(self, node: str) -> None:
        if fatal := self._fatal.get(node):
            fatal.was_out = True

    async def _review_fatal(self) -> None:
        """Sees nodes that are mended, and cordons those that it may cordon by now."""
        while True:
            await asyncio.sleep(REVIEW_S)
            for fatal in list(self._fatal.values()):
                try:
                    if (
                        not await self._is_mended(fatal)
                        and not fatal.was_out
                        and await self._modes.of(CORDON) is Mode.ACT
                    ):
                        await self._cordon(fatal.event)
                except grpc.aio.AioRpcError as error:
                    if error.code() is grpc.StatusCode.NOT_FOUND:
                        self._fatal.pop(fatal.event.node, None)
                        continue
                    log.warning("cannot look after a broken node", extra={"error": error.details()})
                    break  # the scheduler is away: the next round will do

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            _end_if_cancelled()
            start_s = loop.time()
            await asyncio.sleep(TICK_S)
            if loop.time() - start_s > STALL_S:
                log.warning("recovery was stopped or starved", extra={"seconds": round(loop.time() - start_s, 1)})
                await asyncio.sleep(HEARING_S)
            try:
                self._modes_now = await self._read_modes()
            except Unavailable:
                pass  # the database has told of its outage; by the modes that are known it goes on
            except Exception:
                log.exception("cannot read the modes of policies; going by those known")
            for actor in list(self._actors.values()):
                actor.tick(self._modes_now)


def _end_if_cancelled() -> None:
    """Drivers of databases and streams may answer a cancellation with an error of their own; who goes on after that never ends."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _forever(what: str, watch: Callable[[], Awaitable[None]]) -> None:
    """Follows a stream again when it ends: the other service or the database may restart at any time."""
    loop, told = asyncio.get_running_loop(), ""
    while True:
        begun_s = loop.time()
        try:
            await watch()
        except grpc.aio.AioRpcError as error:
            why = error.details() or error.code().name
            if loop.time() - begun_s > STREAM_GOOD_S:
                told = ""
            # Once for each reason: a service that is away for an hour is not worth two lines a second.
            log.log(logging.DEBUG if why == told else logging.WARNING, "lost the stream of %s: %s", what, why)
            told = why
        except Unavailable:
            pass  # the database has told of its outage
        except Exception:
            log.exception("cannot take the stream of %s; connecting again", what)
        _end_if_cancelled()
        await asyncio.sleep(RETRY_S * random.uniform(0.5, 1))


def build(
    database: Database,
    clock: Clock,
    registry: CollectorRegistry | None = None,
    modes: PolicyModes | None = None,
    timing: m.Timing | None = None,
) -> RecoveryService:
    """Recovery on a migrated database.

    registry: where its metrics go; a private one when left out. modes: of its policies; without a configuration when left out.
    timing: of jobs that begin from now on.
    """
    return RecoveryService(
        database, clock, registry or CollectorRegistry(), modes or PolicyModes(database), timing or m.Timing()
    )
