"""The gRPC edge towards launchers: one stream a launcher, leases, and commands to whoever is connected."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc.aio

from switchgear.core import identity, names
from switchgear.core.errors import Invalid, Reason, Unavailable
from switchgear.recovery import model as m
from switchgear.recovery.actor import JobActor
from switchgear.recovery.translate import command_to_proto, event_from_report
from switchgear.recovery.watching import GONE_S
from switchgear.v1alpha import launcher_service_pb2 as wire
from switchgear.v1alpha import launcher_service_pb2_grpc as rpc

log = logging.getLogger(__name__)

#: Commands that wait for one launcher: a handful an attempt; more means that it does not read, and it is cut off.
COMMANDS_MAX = 100
LAUNCHER_ID_LENGTH_MAX = 128
#: Waits between looks for the placement of a launcher that is here before the scheduler's word of it: one that was kept warm is.
LOOK_AGAIN_S = (0.05, 0.1, 0.2, 0.4)


class _Session:
    """A connected launcher."""

    def __init__(self) -> None:
        self.commands: asyncio.Queue[wire.LauncherCommand | None] = asyncio.Queue(COMMANDS_MAX)
        #: Takes what the launcher reports.
        self.reader: asyncio.Task[None] | None = None

    def put(self, command: wire.LauncherCommand | None) -> None:
        """Queues a command; None ends the stream. The launcher connects again then and is told anew what it should do."""
        if not self.commands.full():
            self.commands.put_nowait(command)
            return
        # It does not read. What it says counts no more, so it is soon taken for silent, and its stream ends should it ever read.
        if self.reader:
            self.reader.cancel()
        while not self.commands.empty():
            self.commands.get_nowait()
        self.commands.put_nowait(None)


class LauncherSessions(rpc.LauncherServiceServicer):
    """Serves `LauncherService`.

    find: the actor of a job; None when the job has ended. It raises Unavailable while the job is not known yet.
    """

    def __init__(self, find: Callable[[str], Awaitable[JobActor | None]]) -> None:
        self._find = find
        self._sessions: dict[tuple[str, str], _Session] = {}

    def send(self, job: str, command: m.Command, trace_parent: str = "") -> None:
        """Hands the command to the launcher of its node; nothing happens when that is not connected.

        trace_parent: what it is done for.
        """
        session = self._sessions.get((job, command.node))
        if session:
            message = command_to_proto(command)
            message.trace_parent = trace_parent
            session.put(message)

    def end_all(self) -> None:
        """Ends all streams: the launchers connect again and meet the actors that are there then."""
        for session in self._sessions.values():
            session.put(None)

    async def Connect(  # noqa: N802
        self,
        request_iterator: AsyncIterator[wire.LauncherReport],
        context: grpc.aio.ServicerContext[Any, Any],  # noqa: ARG002
    ) -> AsyncIterator[wire.LauncherCommand]:
        reports = aiter(request_iterator)
        report = await anext(reports, None)
        if report is None:
            return
        hello = _checked_hello(report)
        actor = await self._placed(hello)
        if actor is None or (farewell := _farewell(actor.state, hello)):
            reason = farewell if actor else "the job has ended"
            yield command_to_proto(m.Finish(hello.node, report.generation, reason))
            return
        key, session = (hello.job, hello.node), _Session()
        if older := self._sessions.get(key):
            older.put(None)
        self._sessions[key] = session
        log.info("launcher connected", extra={"job": hello.job, "node": hello.node, "generation": report.generation})
        reader = session.reader = asyncio.create_task(self._read(actor, session, report, reports))
        reader.add_done_callback(lambda _: session.put(None))
        try:
            while command := await session.commands.get():
                yield command
            if reader.done() and not reader.cancelled():
                reader.result()
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            if self._sessions.get(key) is session:
                del self._sessions[key]
                log.info("launcher disconnected", extra={"job": hello.job, "node": hello.node})
                await actor.post(m.LauncherGone(hello.node, hello.launcher_id))
                # A node that is lost is not waited for until the next tick.
                asyncio.get_running_loop().call_later(GONE_S + 0.01, actor.tick)

    async def _placed(self, hello: wire.LauncherHello) -> JobActor | None:
        """The job's actor, once it knows the placement that the launcher was started for; None when the job has ended.

        Raises Unavailable when that takes too long.
        """
        waits_s = iter(LOOK_AGAIN_S)
        while True:
            try:
                actor = await self._find(hello.job)
                if actor and hello.placement_epoch > actor.state.epoch:
                    await not_known_yet(hello.job)
                return actor
            except Unavailable as error:
                wait_s = next(waits_s, None)
                if wait_s is None or error.reason is not Reason.NOT_FOUND:
                    raise
            await asyncio.sleep(wait_s)

    async def _read(
        self,
        actor: JobActor,
        session: _Session,
        first: wire.LauncherReport,
        rest: AsyncIterator[wire.LauncherReport],
    ) -> None:
        hello = first.hello
        await self._post(actor, hello, first)
        async for report in rest:
            await self._post(actor, hello, report)
            if report.WhichOneof("kind") == "heartbeat":
                session.put(_answer(actor.state, hello, report))

    async def _post(self, actor: JobActor, hello: wire.LauncherHello, report: wire.LauncherReport) -> None:
        event = event_from_report(hello.node, hello.launcher_id, report)
        if event:
            await actor.post(event)
        if report.WhichOneof("kind") == "rejected":
            log.warning(
                "launcher refused a command of an older generation",
                extra={
                    "node": hello.node,
                    "generation": report.generation,
                    "holds": report.rejected.current_generation,
                },
            )


def _checked_hello(report: wire.LauncherReport) -> wire.LauncherHello:
    hello = report.hello
    if report.WhichOneof("kind") != "hello" or not 1 <= len(hello.launcher_id) <= LAUNCHER_ID_LENGTH_MAX:
        raise Invalid(
            "the first report of a launcher must be a hello with job, node and a launcher_id of at most "
            f"{LAUNCHER_ID_LENGTH_MAX} characters",
            Reason.STREAM_PROTOCOL,
        )
    names.parse(hello.job, "jobs/*")
    names.parse(hello.node, "nodes/*")
    identity.require_node(hello.node)  # what it reports later is booked on this node
    return hello


def _answer(state: m.JobState, hello: wire.LauncherHello, heartbeat: wire.LauncherReport) -> wire.LauncherCommand:
    """A lease for whoever has its place, and the way out for whoever has lost it since its hello."""
    if farewell := _farewell(state, hello):
        return command_to_proto(m.Finish(hello.node, heartbeat.generation, farewell))
    lease = wire.LeaseGrant(sequence=heartbeat.heartbeat.sequence, duration_seconds=state.timing.lease_s)
    return wire.LauncherCommand(generation=heartbeat.generation, lease=lease)


def _farewell(state: m.JobState, hello: wire.LauncherHello) -> str:
    """Why the launcher should go; empty when it has its place."""
    if state.phase is m.Phase.ENDED:
        return "the job has ended"
    slot = next((slot for slot in state.slots if slot.node == hello.node), None)
    if slot is None or hello.placement_epoch < slot.launcher_epoch:
        return "this node is no longer part of the job's placement"
    return ""


async def not_known_yet(job: str) -> JobActor | None:
    """For `find`: the scheduler has not told us of the job."""
    raise Unavailable(f"{job} is not known to recovery yet; connect again in a moment", Reason.NOT_FOUND, name=job)
