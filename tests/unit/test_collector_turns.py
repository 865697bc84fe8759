from __future__ import annotations

import asyncio

from switchgear.collector.turns import Turns


async def test_those_who_come_are_first_and_the_others_follow_one_by_one() -> None:
    turns, had = Turns(), list[str]()

    async def heavy(name: str) -> None:
        turns.came()
        had.append(f"{name} came")
        await turns.turn()
        had.append(f"{name} had its turn")

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        for name in "abc":
            tasks.create_task(heavy(name))
    assert had == [*(f"{name} came" for name in "abc"), *(f"{name} had its turn" for name in "abc")]


async def test_who_goes_while_it_waits_holds_up_nobody() -> None:
    turns = Turns()
    turns.came()
    gone, stays = asyncio.create_task(turns.turn()), asyncio.create_task(turns.turn())
    await asyncio.sleep(0)
    gone.cancel()
    async with asyncio.timeout(10):
        await stays
    assert gone.cancelled()
