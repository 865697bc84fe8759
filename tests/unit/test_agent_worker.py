"""A source that fails or hangs costs its own series and nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from switchgear.agent.readings import Kind, Reading, known, series, unknown
from switchgear.agent.worker import Sample, Worker

POWER = series("power", "watts", Kind.GAUGE)
CLOCK = series("clock", "megahertz", Kind.GAUGE)


class Scripted:
    """A source that does what the test says."""

    name = "scripted"
    period_s = 0.0

    def __init__(self, sample: Callable[[], list[Reading]]) -> None:
        self.sample = sample


def worker_of(sample: Callable[[], list[Reading]]) -> Worker:
    return Worker("scripted", [Scripted(sample)], deadline_s=5.0)


async def test_readings_come_through() -> None:
    worker = worker_of(lambda: [known(POWER, 7)])
    assert await worker.sample(0.0) == Sample([known(POWER, 7)])
    worker.close()


async def test_an_exception_is_the_reason_why_its_series_are_unknown() -> None:
    answers = iter([[known(POWER, 7)]])

    def sample() -> list[Reading]:
        for answer in answers:
            return answer
        raise PermissionError("no access")

    worker = worker_of(sample)
    await worker.sample(0.0)
    assert await worker.sample(0.0) == Sample([unknown(POWER, "PermissionError: no access")])
    worker.close()


async def test_a_series_that_is_no_longer_reported_becomes_unknown() -> None:
    answers = iter([[known(POWER, 7), known(CLOCK, 1)], [known(POWER, 8)], [known(POWER, 9)]])
    worker = worker_of(lambda: next(answers))
    await worker.sample(0.0)
    assert await worker.sample(0.0) == Sample([known(POWER, 8), unknown(CLOCK, "no longer reported")])
    assert await worker.sample(0.0) == Sample([known(POWER, 9)])
    worker.close()


async def test_a_hanging_source_stalls_once_and_is_heard_again_when_it_answers() -> None:
    release, hang = threading.Event(), False

    def sample() -> list[Reading]:
        if hang:
            release.wait(10)
        return [known(POWER, 7)]

    worker = worker_of(sample)
    await worker.sample(0.0)
    hang, worker.deadline_s = True, 0.02
    late = [unknown(POWER, "deadline exceeded")]
    assert await worker.sample(0.0) == Sample(late, missed=True, stalled=True)
    assert await worker.sample(0.0) == Sample(late, missed=True)
    hang, worker.deadline_s = False, 5.0
    release.set()
    while (answer := await worker.sample(0.0)).missed:  # noqa: ASYNC110 - the thread has no event to wait for
        await asyncio.sleep(0.005)
    assert answer == Sample([known(POWER, 7)])
    worker.close()
