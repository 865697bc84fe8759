"""The gRPC edge towards launchers: one stream a launcher, leases, and commands to whoever is connected."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc.aio

from switchgear.core.errors import Invalid, Reason, Unavailable
from switchgear.recovery import model as m
from switchgear.recovery.actor import JobActor
from switchgear.recovery.machine import LEASE_S
from switchgear.recovery.translate import command_to_proto, event_from_report
from switchgear.v1alpha import launcher_service_pb2 as wire
from switchgear.v1alpha import launcher_service_pb2_grpc as rpc

log = logging.getLogger(__name__)

#: Commands that wait for one launcher: a handful an attempt; more means that it does not read, and it is cut off.
COMMANDS_MAX = 100


class _Session:
    """A connected launcher."""

    def __init__(self, launcher_id: str) -> None:
        self.launcher_id = launcher_id
        self.commands: asyncio.Queue[wire.LauncherCommand | None] = asyncio.Queue(COMMANDS_MAX)

    def put(self, command: wire.LauncherCommand | None) -> None:
        try:
            self.commands.put_nowait(command)
        except asyncio.QueueFull:
            # It will reconnect and be told anew what it should do.
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

    def send(self, job: str, command: m.Command) -> None:
        """Hands the command to the launcher of its node; nothing happens when that is not connected."""
        session = self._sessions.get((job, command.node))
        if session:
            session.put(command_to_proto(command))

    async def Connect(  # noqa: N802
        self,
        request_iterator: AsyncIterator[wire.LauncherReport],
        context: grpc.aio.ServicerContext[Any, Any],  # noqa: ARG002
    ) -> AsyncIterator[wire.LauncherCommand]:
        report = await anext(request_iterator, None)
        if report is None:
            return
        hello = report.hello
        if report.WhichOneof("kind") != "hello" or not hello.job or not hello.node or not hello.launcher_id:
            raise Invalid(
                "the first report of a launcher must be a hello with job, node and launcher_id", Reason.STREAM_PROTOCOL
            )
        actor = await self._find(hello.job)
        if actor is None:
            yield command_to_proto(m.Finish(hello.node, report.generation, "the job has ended"))
            return
        key, session = (hello.job, hello.node), _Session(hello.launcher_id)
        if older := self._sessions.get(key):
            older.put(None)
        self._sessions[key] = session
        log.info("launcher connected", extra={"job": hello.job, "node": hello.node, "generation": report.generation})
        await self._post(actor, hello.node, hello.launcher_id, report)
        reader = asyncio.create_task(self._read(actor, session, hello.node, request_iterator))
        try:
            while command := await session.commands.get():
                yield command
        finally:
            reader.cancel()
            if self._sessions.get(key) is session:
                del self._sessions[key]
                await actor.post(m.LauncherGone(hello.node, hello.launcher_id))
                log.info("launcher disconnected", extra={"job": hello.job, "node": hello.node})

    async def _read(
        self, actor: JobActor, session: _Session, node: str, reports: AsyncIterator[wire.LauncherReport]
    ) -> None:
        try:
            async for report in reports:
                await self._post(actor, node, session.launcher_id, report)
                if report.WhichOneof("kind") == "heartbeat":
                    lease = wire.LeaseGrant(sequence=report.heartbeat.sequence, duration_seconds=LEASE_S)
                    session.put(wire.LauncherCommand(generation=report.generation, lease=lease))
        finally:
            session.put(None)

    async def _post(self, actor: JobActor, node: str, launcher_id: str, report: wire.LauncherReport) -> None:
        event = event_from_report(node, launcher_id, report)
        if event:
            await actor.post(event)
        elif report.WhichOneof("kind") == "rejected":
            log.warning(
                "launcher refused a command of an older generation",
                extra={"node": node, "generation": report.generation, "holds": report.rejected.current_generation},
            )


async def not_known_yet(job: str) -> JobActor | None:
    """For `find`: the scheduler has not told us of the job."""
    raise Unavailable(f"{job} is not known to recovery yet; connect again in a moment", Reason.NOT_FOUND, name=job)
