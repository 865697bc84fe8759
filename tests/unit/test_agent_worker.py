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
    gpu = None

    def __init__(self, sample: Callable[[], list[Reading]], deadline_s: float = 5.0) -> None:
        self.sample = sample
        self.deadline_s = deadline_s


async def test_readings_come_through() -> None:
    worker = Worker(Scripted(lambda: [known(POWER, 7)]))
    assert await worker.sample() == Sample([known(POWER, 7)])
    worker.close()


async def test_an_exception_is_the_reason_why_its_series_are_unknown() -> None:
    answers = iter([[known(POWER, 7)]])

    def sample() -> list[Reading]:
        for answer in answers:
            return answer
        raise PermissionError("no access")

    worker = Worker(Scripted(sample))
    await worker.sample()
    assert await worker.sample() == Sample([unknown(POWER, "PermissionError: no access")])
    worker.close()


async def test_a_series_that_is_no_longer_reported_becomes_unknown() -> None:
    answers = iter([[known(POWER, 7), known(CLOCK, 1)], [known(POWER, 8)], [known(POWER, 9)]])
    worker = Worker(Scripted(lambda: next(answers)))
    await worker.sample()
    assert await worker.sample() == Sample([known(POWER, 8), unknown(CLOCK, "no longer reported")])
    assert await worker.sample() == Sample([known(POWER, 9)])
    worker.close()


async def test_a_hanging_source_stalls_once_and_is_heard_again_when_it_answers() -> None:
    release, hang = threading.Event(), False

    def sample() -> list[Reading]:
        if hang:
            release.wait(10)
        return [known(POWER, 7)]

    source = Scripted(sample)
    worker = Worker(source)
    await worker.sample()
    hang, source.deadline_s = True, 0.02
    late = [unknown(POWER, "deadline exceeded")]
    assert await worker.sample() == Sample(late, missed=True, stalled=True)
    assert await worker.sample() == Sample(late, missed=True)
    hang, source.deadline_s = False, 5.0
    release.set()
    while (answer := await worker.sample()).missed:  # noqa: ASYNC110 - the thread has no event to wait for
        await asyncio.sleep(0.005)
    assert answer == Sample([known(POWER, 7)])
    worker.close()
