"""The actor of a job: nothing is done before it is stored, and nothing that goes wrong stops it or keeps others waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from switchgear.core.clock import ManualClock
from switchgear.recovery import model as m
from switchgear.recovery.actor import QUEUE_MAX, JobActor
from switchgear.recovery.machine import LEASE_S

NODE = "nodes/a"
PLACED = m.Placed(1, (m.Slot(NODE, "127.0.0.1", 1),))
HELLO = m.LauncherHello(NODE, 1, "launcher", 0, 4000)


class World:
    """The store, the launchers and the other services, as an actor knows them."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.log: list[str] = []
        self.store_open = asyncio.Event()
        self.store_open.set()
        self.store_fails = 0
        self.actor = JobActor(
            m.JobState("jobs/llama", m.Spec(1, 1, 3, ""), 1),
            self.clock,
            keep=self._keep,
            send=lambda command: self.log.append(type(command).__name__),
            carry=self._carry,
        )

    async def _keep(self, state: m.JobState, records: Sequence[m.Effect]) -> None:
        await self.store_open.wait()
        if self.store_fails:
            self.store_fails -= 1
            raise OSError("disk full")
        self.log.append(f"stored {state.phase}")

    async def _carry(self, call: m.Call) -> None:
        self.log.append(call.kind)


@asynccontextmanager
async def running() -> AsyncIterator[World]:
    world = World()
    task = asyncio.create_task(world.actor.run())
    try:
        yield world
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_nothing_is_commanded_before_it_is_stored_however_often_the_store_fails() -> None:
    async with running() as world:
        await world.actor.settle(PLACED)
        world.log.clear()
        world.store_fails = 1
        await world.actor.settle(HELLO)
        assert world.log == ["stored STARTING", "Start"]


async def test_an_event_that_cannot_be_taken_is_dropped_and_the_next_one_is_taken() -> None:
    async with running() as world:
        nonsense: Any = None
        await world.actor.settle(m.Placed(2, nonsense))
        assert world.actor.state.epoch == 0
        await world.actor.settle(PLACED)
        assert world.actor.state.epoch == 1


async def test_words_that_waited_for_the_store_do_not_count_as_silence() -> None:
    async with running() as world:
        await world.actor.settle(PLACED)
        world.store_open.clear()
        await world.actor.post(HELLO)
        for _ in range(3):
            world.clock.advance(LEASE_S - 1)
            world.actor.tick()
            await world.actor.post(m.LauncherSeen(NODE, "launcher"))
        world.store_open.set()
        await world.actor.settle(m.Tick())
        assert (world.actor.state.phase, world.actor.state.incident) == (m.Phase.STARTING, None)


async def test_time_does_not_pass_while_much_waits() -> None:
    world = World()
    for _ in range(QUEUE_MAX):
        world.actor.tick()
    async with asyncio.timeout(1):
        for _ in range(QUEUE_MAX // 2):
            await world.actor.post(m.Tick())


async def test_whoever_speaks_to_an_ended_job_does_not_wait() -> None:
    async with running() as world:
        await world.actor.settle(m.EndedOutside("cancelled"))
        async with asyncio.timeout(5):
            for _ in range(2 * QUEUE_MAX):
                await world.actor.post(m.LauncherSeen(NODE, "launcher"))
            await world.actor.settle(PLACED)


async def test_whoever_waits_when_the_job_ends_is_let_go() -> None:
    async with running() as world:
        world.store_open.clear()
        await world.actor.post(m.EndedOutside("cancelled"))
        waiting = [asyncio.create_task(world.actor.settle(m.Tick())) for _ in range(QUEUE_MAX + 10)]
        await asyncio.sleep(0)
        world.store_open.set()
        async with asyncio.timeout(5):
            await asyncio.gather(*waiting)
