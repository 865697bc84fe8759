"""Keeps a job of several nodes together without a server: where they meet, and recovery's machine behind LauncherService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc.aio

from switchgear.cli.allocation import Allocation
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
#: What an allocation's nodes get to come in the engine's order, which follows the network's: it has started all of them at once.
ORDER_S = 10.0
#: How long the news of the end may take to reach everybody.
FAREWELL_S = 3.0


class Rendezvous(rendezvous_service_pb2_grpc.RendezvousServiceServicer):
    """Serves `RendezvousService` and, for the same nodes, `LauncherService`.

    run_id: what all nodes must name alike. generation: newest that this machine has accepted. join_timeout_s: how long places may stay
    empty before the job ends. allocation: what it has its nodes from; None: they come by themselves.
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
        allocation: Allocation | None = None,
    ) -> None:
        self.job = job
        self._run_id, self._spec, self._clock, self._join_timeout_s = run_id, spec, clock, join_timeout_s
        self._allocation = allocation
        self._timing = allocation.timing if allocation else m.Timing()
        silence_s_max = allocation.silence_s_max if allocation else self._timing.silence_s_max
        # Whoever kept the job together before us has granted its last lease by then.
        self._quiet_s = clock.monotonic_s() + silence_s_max
        newest = max(generation, allocation.generation if allocation else 0)
        self._gathering = Gathering(
            spec.nnodes_min or spec.nnodes,
            spec.nnodes,
            last_call_s,
            order_s=ORDER_S if allocation else 0.0,
            generation=newest,
            quiet_s=self._quiet_s,
        )
        self._given_up: set[str] = set()
        #: Why this run is to end although the job is not over; empty: it is not.
        self._leaving = ""
        self._fenced = self._closed = self._continues = False
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
        """Until the job, or its time in this allocation, has ended and every member that is here knows."""
        ended = pb.JoinResponse(
            job=self.job, ended=Job.CANCELLED, said="the node that keeps the job together was stopped"
        )
        try:
            ended = await self._run()
        finally:
            self._ended = ended
            self._tell_all(ended)
            if self._allocation and ended.ended != Job.CANCELLED and not (self._closed or self._fenced):
                await self._allocation.after(is_over=True)
            for queue in list(self._streams.values()):
                _put(queue, None)
            try:
                async with asyncio.timeout(FAREWELL_S):
                    while self._streams:  # noqa: ASYNC110  # the streams are gRPC's to end
                        await asyncio.sleep(0.02)
            except TimeoutError:
                pass

    async def _run(self) -> pb.JoinResponse:
        ended = pb.JoinResponse(job=self.job, ended=Job.FAILED)
        nodes = await self._first_nodes()
        if nodes is None:
            ended.said = self._leaving or self._too_few()
        elif await self._recover(nodes) is m.JobOutcome.SUCCEEDED:
            ended.ended = Job.SUCCEEDED
        if self._leaving and self._actor is None:
            await self._close()
        ended.continues = self._continues and ended.ended != Job.SUCCEEDED
        return ended

    async def _close(self) -> None:
        """Gives the allocation back, once nothing of the job lives and before anybody goes."""
        if self._allocation and not self._fenced:
            said, self._continues = await self._allocation.after(is_over=False)
            self._closed = True
            if said:
                self._say(said)

    @property
    def ended(self) -> pb.JoinResponse | None:
        """How it ended; None: it has not."""
        return self._ended

    @property
    def nodes(self) -> list[str]:
        """Where the newest attempt runs or ran."""
        attempt = self._actor.state.attempt if self._actor else None
        return attempt.nodes if attempt else []

    async def leave(self, reason: str) -> None:
        """Ends this run, though not the job: its ranks get time to save, and nothing is started again."""
        self._leaving = self._leaving or reason
        self._say(reason)
        if self._actor:
            await self._actor.post(m.Vacate(reason))

    async def abandon(self, reason: str) -> None:
        """Ends this run at once: another one has the job."""
        self._fenced, self._leaving = True, reason
        self._say(reason)
        if self._actor:
            await self._actor.post(m.EndedOutside(reason))

    def is_vacant(self) -> bool:
        """Nothing of the job lives, as far as this run has started it."""
        return self._actor is None or self._actor.state.phase is m.Phase.REPLACING

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
        if self._allocation and request.node in self._given_up:
            raise FailedPrecondition(
                f"{request.node} was given up and is no part of this run any more", Reason.BAD_FIELD, node=request.node
            )
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
            if self._leaving:
                return None
            if self._allocation and self._allocation.is_quiet():
                self._gathering.nothing_else_runs()
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

    async def _recover(self, nodes: Sequence[Member]) -> m.JobOutcome | None:
        state = m.JobState(
            self.job,
            translate.spec_from_proto(self._spec),
            self._clock.unix_ns(),
            generation=self._gathering.newest,
            timing=self._timing,
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
        return actor.state.outcome

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
            if self._leaving:
                if self.is_vacant():
                    await self._close()
                    await actor.post(m.EndedOutside(self._leaving))
                    return
                continue
            if nodes := self._gathering.place(now_s):
                await self._place(actor, nodes)
            if self._gathering.settled:
                settled_s = now_s
            elif now_s - settled_s > self._join_timeout_s or not self._enough_left():
                self._say(self._too_few())
                await self._close()
                await actor.post(m.EndedOutside(self._too_few()))
                return

    async def _tick(self, actor: JobActor) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            actor.tick()

    async def _keep(self, state: m.JobState, records: Sequence[m.Effect]) -> None:
        """Told, not stored: each launcher keeps the generation, and a rendezvous that is started again asks anew for the rest."""
        if self._allocation:
            await self._allocation.keep(state, records)
        for line in lines_of(records):
            self._say(line)

    async def _carry(self, call: m.Call) -> None:
        if line := line_of(call):
            self._say(line)
        if call.kind == "cordon" and self._allocation:
            self._allocation.give_up(call.node, call.reason)
        if call.kind == "replace" and not self._leaving:
            lost = [node for node in call.node.split(",") if node]
            self._given_up.update(lost)
            self._gathering.give_up(lost, self._clock.monotonic_s(), waits=self._more_may_come())
            for node in lost:
                if queue := self._streams.pop(node, None):
                    _put(queue, None)
                if self._allocation:
                    self._allocation.give_up(node, call.reason)
            if lost:
                self._say(f"{', '.join(lost)} given up; {self._gathering.joined} of {self._spec.nnodes} nodes are here")

    def _ask(self, asked: m.AskContact) -> None:
        """A node whose process is gone is not waited for when another one waits for its place, or nobody would start it again."""
        replaced = self._gathering.has_spare() or self._allocation is not None
        if self._actor and asked.node not in self._streams and replaced:
            self._tasks.create_task(self._actor.post(m.ContactKnown(asked.node, connected=False)))

    def _enough_left(self) -> bool:
        fewest = self._spec.nnodes_min or self._spec.nnodes
        return self._allocation is None or self._allocation.left(self._given_up) >= fewest

    def _more_may_come(self) -> bool:
        """Than are here and have not been given up."""
        return self._allocation is None or self._allocation.left(self._given_up) > self._gathering.joined

    def _too_few(self) -> str:
        if self._allocation and not self._enough_left():
            left = self._allocation.left(self._given_up)
            return f"{left} of the allocation's nodes are left, and {self._spec.nnodes_min or self._spec.nnodes} are needed"
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
