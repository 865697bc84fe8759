"""Recovery is killed before and after everything that it does to the world, and the job comes to the same end, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry
from recovery_plane import Agent, Launcher, World, running, until

from switchgear.core.clock import Clock
from switchgear.recovery import model as m
from switchgear.recovery import store
from switchgear.recovery.main import RecoveryService
from switchgear.store.database import Database
from switchgear.store.policies import PolicyModes
from switchgear.v1 import fleet_service_pb2 as fleet_pb
from switchgear.v1 import job_service_pb2 as job_pb
from switchgear.v1 import recovery_service_pb2 as pb
from switchgear.v1alpha import launcher_service_pb2 as wire
from switchgear.v1alpha import node_agent_service_pb2 as agent_pb

JOB = "jobs/llama"
CALLS = ("set_state", "cordon", "replace")
#: For one part of the flow, with all deaths that belong to it.
WITHIN_S = 60.0


class Fate:
    """Where recovery dies: at each boundary the first time that it comes there, or, to save time, at each `every`-th."""

    def __init__(self, every: int) -> None:
        self.deaths: list[str] = []
        self.killed = asyncio.Event()
        self._every = every
        self._seen: set[str] = set()

    def strikes(self, boundary: str) -> bool:
        if boundary in self._seen:
            return False
        self._seen.add(boundary)
        if len(self._seen) % self._every:
            return False
        self.deaths.append(boundary)
        self.killed.set()
        return True

    def struck(self, where: str) -> bool:
        return any(death.startswith(where) for death in self.deaths)


class Mortal(RecoveryService):
    """From its death on it does nothing; it is taken away soon after."""

    def __init__(self, database: Database, clock: Clock, fate: Fate) -> None:
        super().__init__(database, clock, CollectorRegistry(), PolicyModes(database), m.Timing())
        self._fate, self._dead = fate, False

    def _dies(self, boundary: str) -> bool:
        self._dead = self._dead or self._fate.strikes(boundary)
        return self._dead

    @asynccontextmanager
    async def _around(self, what: str) -> AsyncIterator[None]:
        """Only a kill ends the wait of one that has died."""
        if self._dies(f"before {what}"):
            await asyncio.Event().wait()
        yield
        if self._dies(f"after {what}"):
            await asyncio.Event().wait()

    async def _keep(self, state: m.JobState, records: Sequence[m.Effect]) -> None:
        calls, kept = [call.kind for call in state.outbox], [type(record).__name__ for record in records]
        async with self._around(f"store {state.phase} of generation {state.generation}, {kept}, calls {calls}"):
            await super()._keep(state, records)

    def _send(self, job: str, command: m.Command) -> None:
        what = f"send {type(command).__name__} to {command.node}"
        if not self._dies(f"before {what}"):
            super()._send(job, command)
            self._dies(f"after {what}")

    async def _call(self, job: str, create_ns: int, call: m.Call) -> None:
        async with self._around(f"call {call.kind} {call.outcome or call.node}"):
            await super()._call(job, create_ns, call)

    async def _move_cursor(self, revision: int) -> None:
        async with self._around(f"move cursor {revision}"):
            await super()._move_cursor(revision)


class Ranks(Launcher):
    """Ranks that go on making steps, and tell of them again and again as real ones do."""

    def __init__(self, address: str, start: agent_pb.StartLauncher, node: str, begun: list[tuple[str, int]]) -> None:
        super().__init__(address, start, node)
        self._begun = begun
        self.newest_step = 0

    async def obey(self, command: wire.LauncherCommand) -> None:
        before = self.generation
        await super().obey(command)
        if command.HasField("start") and self.generation > before:
            self._begun.append((self.node, self.generation))

    async def make_steps(self) -> None:
        while not self.finished:
            if self.alive and self.newest_step > self.resume_step:
                await self.tell(progress=self.progress(self.newest_step))
            await asyncio.sleep(0.03)


class Flow:
    """A rank is killed and the job restarted in place; then a GPU is lost and it goes on elsewhere."""

    def __init__(self, world: World, tasks: asyncio.TaskGroup) -> None:
        self._world, self._tasks = world, tasks
        #: Which generation began where, in this order.
        self.begun = list[tuple[str, int]]()

    async def run(self) -> None:
        world = self._world
        bad = await world.agent("a")
        await world.create("llama", checkpoints=True)
        first = await self._launcher(bad)
        first.newest_step = 7
        await world.job(JOB, job_pb.Job.RUNNING)
        first.checkpoints = [_checkpoint(5)]
        await first.exit(1, -9)
        first.newest_step = 8
        await self._resolved(1)
        spare = await world.agent("b")
        await bad.event(code=79, text="NVRM: Xid (PCI:0000:03:00): 79, GPU has fallen off the bus.")
        second = await self._launcher(spare)
        assert not first.alive
        second.checkpoints, second.newest_step = [_checkpoint(5)], 9
        await self._resolved(2)
        for rank in list(second.alive):
            await second.exit(rank, 0)
        await until(lambda: bool(first.finished and second.finished), WITHIN_S)
        await until(self._over, WITHIN_S)

    async def _launcher(self, agent: Agent) -> Ranks:
        await until(lambda: JOB in agent.started, WITHIN_S)
        launcher = Ranks(self._world.recovery_address, agent.started[JOB], agent.node, self.begun)
        for work in (launcher.run(), launcher.make_steps()):
            self._tasks.create_task(work)
        return launcher

    async def _resolved(self, count: int) -> None:
        async def there() -> bool:
            async with self._world.database.read() as session:  # recovery itself is hardly ever there
                found = await store.incidents(session, JOB, None, 10)
            return [one.state for _, one in found] == [m.IncidentState.RESOLVED] * count

        await until(there, WITHIN_S)

    async def _over(self) -> bool:
        async with self._world.database.read() as session:
            return not await store.running(session)


async def test_every_boundary_may_be_the_last_one_of_a_process(database_url: str, tmp_path: Path) -> None:
    database = Database(database_url)
    fate = Fate(every=3 if database.is_shared else 1)
    try:
        await database.migrate()
        async with running(database, tmp_path) as world, asyncio.TaskGroup() as tasks:
            world.build = lambda database, clock: Mortal(database, clock, fate)
            await world.restart_recovery()
            undertaker = tasks.create_task(_bury(world, fate))
            flow = Flow(world, tasks)
            await flow.run()
            undertaker.cancel()
            await world.restart_recovery()
            assert flow.begun == [("nodes/a", 1), ("nodes/a", 2), ("nodes/b", 3)]
            await _ended_once(world)
    finally:
        await database.close()
    assert len(fate.deaths) >= 15
    if not database.is_shared:
        # Whoever died with the store before a Finish sends none again, and says it in answer to a hello; and a cursor moves once.
        kinds = ("store", "send Check", "send Start", "send Stop", *(f"call {kind}" for kind in CALLS))
        expected = [f"{when} {kind}" for when in ("before", "after") for kind in kinds]
        assert [boundary for boundary in expected if not fate.struck(boundary)] == []


async def _ended_once(world: World) -> None:
    job = await world.job(JOB, job_pb.Job.SUCCEEDED)
    # A second replacement would have been a third placement.
    assert (job.placement.epoch, [placed.node for placed in job.placement.nodes]) == (2, ["nodes/b"])
    assert await world.attempts(JOB) == [(1, pb.Attempt.FAILED), (2, pb.Attempt.FAILED), (3, pb.Attempt.SUCCEEDED)]
    assert [
        (one.name, one.fault, one.decision, one.failed_generation, one.new_generation)
        for one in reversed(await world.incidents(JOB))
    ] == [
        ("incidents/llama-1", "RANK_KILLED", "RESTART_IN_PLACE", 1, 2),
        ("incidents/llama-2", "GPU_LOST", "REPLACE_NODE", 2, 3),
    ]
    node = await world.node("nodes/a", fleet_pb.Node.CORDONED)
    assert node.actor == "policy:recovery"


async def _bury(world: World, fate: Fate) -> None:
    while True:
        await fate.killed.wait()
        fate.killed.clear()
        await world.restart_recovery()


def _checkpoint(step: int) -> wire.CheckpointReport:
    return wire.CheckpointReport(
        path=f"/w/checkpoints/{step}.pt", state=wire.CheckpointReport.VERIFIED, step=step, size_bytes=10, digest="d"
    )
