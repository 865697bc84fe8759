"""What is live, what is left to the disk, and what is under way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from switchgear.agent.disk import JOBS_MAX, Disk
from switchgear.agent.outbox import LIVE_MAX, Outbox
from switchgear.agent.readings import Kind, known, series
from switchgear.agent.sample_spool import SampleSpool
from switchgear.agent.sampler import Sampler
from switchgear.agent.spool import Spool

KEY = series("a", "", Kind.GAUGE)


class Agent:
    """Ticks into an outbox; the test is its stream."""

    def __init__(self, folder: Path) -> None:
        self.spool = Spool(folder / "spool", "boot")
        self.samples = SampleSpool(folder / "samples", "epoch")
        self.outbox = Outbox(Sampler(), self.spool, self.samples)

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            number = self.outbox.sampler.sequence + 1
            self.outbox.put(self.outbox.sampler.tick([known(KEY, number)], number))

    def send(self) -> list[int]:
        sent = []
        while self.outbox.blocks:
            block = self.outbox.blocks.popleft()
            self.outbox.sent(block)
            sent.append(block.sequence)
        return sent

    async def waiting(self) -> int:
        return await self.outbox.disk.call(lambda: self.samples.blocks_waiting)


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    agent = Agent(tmp_path)
    yield agent
    agent.outbox.close()
    agent.spool.close()


async def test_without_a_collector_nothing_is_kept_in_memory(agent: Agent) -> None:
    agent.tick(100)
    assert (len(agent.outbox.blocks), await agent.waiting()) == (0, 100)


async def test_a_new_connection_begins_with_a_keyframe_and_its_acks_are_remembered(agent: Agent) -> None:
    agent.tick(3)
    agent.outbox.begin_chain()
    agent.tick(4)
    assert agent.outbox.blocks[0].keyframe
    assert agent.send() == [4, 5, 6, 7]
    assert agent.outbox.backlog_before == 0, "live blocks go first"
    agent.outbox.acked("epoch", 5)
    assert agent.outbox.backlog_before == 6
    assert await agent.waiting() == 5
    agent.outbox.connection_lost()
    assert agent.outbox.backlog_before == 0
    assert await agent.waiting() == 5, "6 and 7 may not have arrived"


async def test_a_connection_that_is_too_slow_goes_on_with_the_newest(agent: Agent) -> None:
    agent.outbox.begin_chain()
    agent.tick(2)
    assert agent.send() == [1, 2]
    agent.tick(LIVE_MAX + 1)
    assert not agent.outbox.blocks
    agent.tick(1)
    newest = LIVE_MAX + 4
    assert [(block.sequence, block.keyframe) for block in agent.outbox.blocks] == [(newest, True)]
    agent.send()
    agent.outbox.acked("epoch", 2)
    assert agent.outbox.backlog_before == newest, "the second chain is under way"
    agent.outbox.acked("epoch", newest)
    assert agent.outbox.backlog_before == newest + 1
    assert await agent.waiting() == LIVE_MAX + 1


async def test_the_newest_block_is_told_again_only_to_a_collector_that_has_not_acked_it(agent: Agent) -> None:
    agent.tick(2)
    agent.outbox.begin_chain()
    agent.outbox.send_newest()
    assert agent.send() == [2]
    agent.outbox.acked("epoch", 2)
    agent.outbox.connection_lost()
    agent.outbox.begin_chain()
    agent.outbox.send_newest()
    assert agent.send() == []
    agent.tick()
    assert agent.send() == [3]


async def test_a_disk_that_hangs_costs_no_tick_and_a_bounded_number_of_jobs() -> None:
    disk, release, done = Disk(), threading.Event(), list[int]()
    disk.submit(lambda: release.wait(10))
    taken = sum(disk.submit(lambda: done.append(1)) for _ in range(2 * JOBS_MAX))
    assert taken <= JOBS_MAX
    release.set()
    assert await disk.call(lambda: len(done)) == taken
    disk.close()


async def test_what_a_job_raises_is_the_callers_and_the_next_one_is_done() -> None:
    disk = Disk()
    disk.submit(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        await disk.call(lambda: 1 // 0)
    assert await disk.call(lambda: 7) == 7
    disk.close()
    await asyncio.sleep(0)
