"""Keeps a job of several nodes together without a server: where they meet, and recovery's machine behind LauncherService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc.aio

from switchgear.cli.gathering import Gathering, Member
from switchgear.cli.goodput import tell_report
from switchgear.cli.standalone import TICK_S, line_of, lines_of, report_at_end
from switchgear.core import names
from switchgear.core.clock import Clock
from switchgear.core.errors import FailedPrecondition, Invalid, NotFound, Reason
from switchgear.core.rpc import Server
from switchgear.core.text import printable
from switchgear.recovery import model as m
from switchgear.recovery import translate
from switchgear.recovery.actor import JobActor
from switchgear.recovery.launchers import LauncherSessions, not_known_yet
from switchgear.v1.job_service_pb2 import Job, JobSpec
from switchgear.v1alpha import launcher_service_pb2_grpc, rendezvous_service_pb2_grpc
from switchgear.v1alpha import rendezvous_service_pb2 as pb

SERVICES = ("switchgear.v1alpha.RendezvousService", "switchgear.v1alpha.LauncherService")
#: Lines that wait for one member; the oldest goes first.
SAID_MAX = 100
#: How often it is looked whether the last call is over.
LOOK_S = 0.25
#: How long the news of the end may take to reach everybody.
FAREWELL_S = 3.0


class Rendezvous(rendezvous_service_pb2_grpc.RendezvousServiceServicer):
    """Serves `RendezvousService` and, for the same nodes, `LauncherService`.

    run_id: what all nodes must name alike. generation: newest that this machine has accepted. join_timeout_s: how long places may stay
    empty before the job ends.
    """

    def __init__(
        self,
        job: str,
        run_id: str,
        spec: JobSpec,
        clock: Clock,
        *,
        generation: int,
        last_call_s: float,
        join_timeout_s: float,
    ) -> None:
        self.job = job
        self._run_id, self._spec, self._clock, self._join_timeout_s = run_id, spec, clock, join_timeout_s
        # Whoever kept the job together before us has granted its last lease by now.
        self._quiet_s = clock.monotonic_s() + m.Timing().silence_s_max
        self._gathering = Gathering(
            spec.nnodes_min or spec.nnodes, spec.nnodes, last_call_s, generation=generation, quiet_s=self._quiet_s
        )
        self._streams: dict[str, asyncio.Queue[pb.JoinResponse | None]] = {}
        self._sessions = LauncherSessions(self._find)
        self._actor: JobActor | None = None
        self._epoch = 0
        self._ended: pb.JoinResponse | None = None

    async def serve(self, address: str, credentials: grpc.ServerCredentials | None) -> Server:
        """Listens; the caller stops what it gets. Raises FailedPrecondition as `Server.start` does."""
        server = Server()
        rendezvous_service_pb2_grpc.add_RendezvousServiceServicer_to_server(self, server.grpc)
        launcher_service_pb2_grpc.add_LauncherServiceServicer_to_server(self._sessions, server.grpc)
        await server.start(address, SERVICES, credentials)
        return server

    async def run(self) -> None:
        """Until the job has ended and every member that is here knows."""
        state, said = Job.CANCELLED, "the node that keeps the job together was stopped"
        try:
            nodes = await self._first_nodes()
            if nodes is None:
                state, said = Job.FAILED, self._too_few()
                return
            outcome, said = await self._recover(nodes)
            state = Job.SUCCEEDED if outcome is m.JobOutcome.SUCCEEDED else Job.FAILED
        finally:
            self._ended = pb.JoinResponse(job=self.job, ended=state, said=said)
            self._tell_all(self._ended)
            for queue in list(self._streams.values()):
                _put(queue, None)
            try:
                async with asyncio.timeout(FAREWELL_S):
                    while self._streams:  # noqa: ASYNC110  # the streams are gRPC's to end
                        await asyncio.sleep(0.02)
            except TimeoutError:
                pass

    async def Join(  # noqa: N802
        self,
        request: pb.JoinRequest,
        context: grpc.aio.ServicerContext[Any, Any],  # noqa: ARG002
    ) -> AsyncIterator[pb.JoinResponse]:
        member = self._admit(request)
        node, queue = member.node, asyncio.Queue[pb.JoinResponse | None](SAID_MAX)
        if self._ended is not None:
            yield self._ended
            return
        self._gathering.join(member, self._clock.monotonic_s())
        if older := self._streams.get(node):
            _put(older, None)
        self._streams[node] = queue
        self._tell_all(self._standing())
        if self._gathering.has_place(node):
            _put(queue, pb.JoinResponse(job=self.job, placement_epoch=self._epoch))
        try:
            while (response := await queue.get()) is not None:
                yield response
        finally:
            if self._streams.get(node) is queue:
                del self._streams[node]
                self._gathering.leave(node)
                self._tell_all(self._standing())

    def _admit(self, request: pb.JoinRequest) -> Member:
        names.parse(request.node, "nodes/*")
        if request.run_id != self._run_id:
            raise FailedPrecondition(
                f"this address is of the job {self._run_id!r}, not of {printable(request.run_id[:100])!r}; give all nodes of a job the "
                "same --rdzv-id, and each job a port of its own",
                Reason.BAD_FIELD,
                run_id=self._run_id,
            )
        for field in ("nnodes", "nnodes_min", "nproc_per_node"):
            ours, theirs = getattr(self._spec, field), getattr(request, field)
            if ours != theirs:
                raise FailedPrecondition(
                    f"this job was begun with {field} {ours}, not {theirs}; give all nodes the same numbers",
                    Reason.BAD_FIELD,
                    field=field,
                )
        if not request.address:
            raise Invalid("a node must say at which address the others reach it", Reason.BAD_FIELD, field="address")
        node_rank = request.node_rank if request.HasField("node_rank") else None
        return Member(request.node, request.address, node_rank, request.generation)

    async def _find(self, job: str) -> JobActor | None:
        if job != self.job:
            raise NotFound(job, f"{job} is not the job of this address, which is {self.job}")
        return self._actor or await not_known_yet(job)

    async def _first_nodes(self) -> Sequence[Member] | None:
        deadline_s, said = self._clock.monotonic_s() + self._join_timeout_s, False
        while not (nodes := self._gathering.place(now_s := self._clock.monotonic_s())):
            held_back = self._gathering.holds_back(now_s)
            if held_back and not said:
                said = True
                self._say(
                    f"ranks of generation {self._gathering.newest} may still run on a node that is not here; without it the job goes on in "
                    f"{self._quiet_s - now_s:.0f} s"
                )
            elif not held_back and now_s >= deadline_s:
                return None
            await asyncio.sleep(LOOK_S)
        return nodes

    async def _recover(self, nodes: Sequence[Member]) -> tuple[m.JobOutcome | None, str]:
        state = m.JobState(
            self.job,
            translate.spec_from_proto(self._spec),
            self._clock.unix_ns(),
            generation=self._gathering.newest,
        )
        actor = self._actor = JobActor(
            state,
            self._clock,
            keep=self._keep,
            send=lambda command: self._sessions.send(self.job, command),
            carry=self._carry,
            ask=self._ask,
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                loops = [tasks.create_task(self._tick(actor)), tasks.create_task(self._replace(actor))]
                await self._place(actor, nodes)
                await actor.run()
                for loop in loops:
                    loop.cancel()
        finally:
            tell_report(report_at_end(actor.state, self._clock))
        return actor.state.outcome, ""

    async def _place(self, actor: JobActor, nodes: Sequence[Member]) -> None:
        self._epoch += 1
        # A launcher here outlives placements: it is the process that people have started.
        await actor.post(m.Placed(self._epoch, tuple(m.Slot(node.node, node.address, 0) for node in nodes)))
        for node in nodes:
            if queue := self._streams.get(node.node):
                _put(queue, pb.JoinResponse(job=self.job, placement_epoch=self._epoch))

    async def _replace(self, actor: JobActor) -> None:
        """Places the job anew whenever recovery has asked for it, or ends it when too few nodes come."""
        settled_s = self._clock.monotonic_s()
        while True:
            await asyncio.sleep(LOOK_S)
            now_s = self._clock.monotonic_s()
            if nodes := self._gathering.place(now_s):
                await self._place(actor, nodes)
            if self._gathering.settled:
                settled_s = now_s
            elif now_s - settled_s > self._join_timeout_s:
                self._say(self._too_few())
                await actor.post(m.EndedOutside(self._too_few()))
                return

    async def _tick(self, actor: JobActor) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            actor.tick()

    async def _keep(self, state: m.JobState, records: Sequence[m.Effect]) -> None:  # noqa: ARG002
        """Told, not stored: each launcher keeps the generation, and a rendezvous that is started again asks anew for the rest."""
        for line in lines_of(records):
            self._say(line)

    async def _carry(self, call: m.Call) -> None:
        if line := line_of(call):
            self._say(line)
        if call.kind == "replace":
            lost = [node for node in call.node.split(",") if node]
            self._gathering.give_up(lost, self._clock.monotonic_s())
            for node in lost:
                if queue := self._streams.pop(node, None):
                    _put(queue, None)
            if lost:
                self._say(f"{', '.join(lost)} given up; {self._gathering.joined} of {self._spec.nnodes} nodes are here")

    def _ask(self, asked: m.AskContact) -> None:
        """A node whose process is gone is not waited for when another one waits for its place."""
        if self._actor and asked.node not in self._streams and self._gathering.has_spare():
            self._tasks.create_task(self._actor.post(m.ContactKnown(asked.node, connected=False)))

    def _too_few(self) -> str:
        return (
            f"{self._gathering.joined} of {self._spec.nnodes} nodes are here after {self._join_timeout_s:g} s "
            "(--rdzv-conf join_timeout=SECONDS)"
        )

    def _standing(self) -> pb.JoinResponse:
        return pb.JoinResponse(job=self.job, joined=self._gathering.joined, nnodes=self._spec.nnodes)

    def _say(self, line: str) -> None:
        self._tell_all(pb.JoinResponse(job=self.job, said=line))

    def _tell_all(self, response: pb.JoinResponse) -> None:
        for queue in self._streams.values():
            _put(queue, response)


def _put(queue: asyncio.Queue[pb.JoinResponse | None], response: pb.JoinResponse | None) -> None:
    while queue.full():
        queue.get_nowait()
    queue.put_nowait(response)
