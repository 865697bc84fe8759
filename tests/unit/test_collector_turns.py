from __future__ import annotations

import asyncio
from functools import partial

from switchgear.collector.turns import Arrivals, Turns
from switchgear.core.clock import ManualClock


async def test_those_who_come_are_first_and_the_others_follow_one_by_one() -> None:
    arrivals, had = Arrivals(), list[str]()
    turns = Turns(ManualClock(), arrivals)

    async def heavy(name: str) -> None:
        arrivals.came()
        had.append(f"{name} came")
        await turns.turn()
        had.append(f"{name} had its turn")

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        for name in "abc":
            tasks.create_task(heavy(name))
    assert had == [*(f"{name} came" for name in "abc"), *(f"{name} had its turn" for name in "abc")]


async def test_who_goes_while_it_waits_holds_up_nobody() -> None:
    turns, order = Turns(ManualClock(), Arrivals()), list[str]()

    async def stream(name: str) -> None:
        await turns.turn()
        order.append(name)

    first, gone, last = (asyncio.create_task(stream(name)) for name in ("first", "gone", "last"))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait((first, gone, last), timeout=10)
    assert order == ["first", "last"]
    assert not turns.any_wait


async def test_streams_that_are_expected_come_before_what_is_heavy_for_a_while() -> None:
    arrivals = Arrivals()
    assert not arrivals.are_coming
    arrivals.expect(2)
    assert arrivals.are_coming
    arrivals.came()
    arrivals.came()
    assert arrivals.are_coming, "one has just come"
    await asyncio.sleep(0.03)
    assert not arrivals.are_coming, "all have come"
    arrivals.expect(20)
    assert arrivals.are_coming
    await asyncio.sleep(0.06)
    assert not arrivals.are_coming, "those that do not come back are not waited for"


async def test_what_is_heavy_waits_for_streams_that_come_and_takes_its_share_in_order() -> None:
    clock, done, loop = ManualClock(), list[tuple[str, float]](), asyncio.get_running_loop()
    arrivals = Arrivals()
    turns, ended = Turns(clock, arrivals, 0.25, wait_s_max=0.1), asyncio.Event()

    def work(name: str) -> None:
        done.append((name, loop.time()))
        clock.advance(0.01)
        if name == "last":
            ended.set()

    arrivals.expect(40_000)
    began_s = loop.time()
    turns.put(partial(work, "first"))
    gone = turns.put(partial(work, "gone"))
    turns.put(partial(work, "last"))
    gone.cancel()
    async with asyncio.timeout(10):
        await ended.wait()
    (first, first_s), (last, last_s) = done
    assert (first, last) == ("first", "last")
    assert first_s - began_s >= 0.1, "streams are coming, and nobody waits for them for longer"
    assert last_s - first_s >= 0.03, "10 ms of work, 30 ms for what is live"
