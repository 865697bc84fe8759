"""A source that fails or hangs costs its own series and nothing else."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import pytest

from switchgear.agent.readings import Kind, Reading, known, series, unknown
from switchgear.agent.worker import STALLED_EVERY_S, Sample, Worker

POWER = series("power", "watts", Kind.GAUGE)
CLOCK = series("clock", "megahertz", Kind.GAUGE)
DEADLINE_S = 2.0


class Scripted:
    """A source that does what the test says."""

    def __init__(self, sample: Callable[[], list[Reading]], period_s: float = 0.0) -> None:
        self.name, self.period_s = "scripted", period_s
        self.sample = sample


class Asked:
    """A worker and its ticks."""

    def __init__(self, sample: Callable[[], list[Reading]], period_s: float = 0.0) -> None:
        self.worker = Worker("scripted", [Scripted(sample, period_s)], deadline_s=DEADLINE_S)
        self._answered = threading.Semaphore(0)

    def ask(self, now_s: float) -> bool:
        question = self.worker.ask(now_s, self._answered.release)
        if question is not None:
            threading.Thread(target=question, daemon=True).start()
        return question is not None

    def wait(self) -> None:
        assert self._answered.acquire(timeout=10)

    def tick(self, now_s: float) -> Sample:
        """One that is answered at once."""
        assert self.ask(now_s)
        self.wait()
        return self.worker.take(now_s)


class Gate:
    """A source that answers until it is closed."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()

    def sample(self) -> list[Reading]:
        self.open.wait(10)
        return [known(POWER, 7)]


def test_readings_come_through() -> None:
    asked = Asked(lambda: [known(POWER, 7)])
    assert asked.tick(0.0) == Sample([known(POWER, 7)])
    assert asked.worker.take(0.0) == Sample(), "an answer is given once"


def test_an_exception_is_the_reason_why_its_series_are_unknown() -> None:
    answers = iter([[known(POWER, 7)]])

    def sample() -> list[Reading]:
        for answer in answers:
            return answer
        raise PermissionError("no access")

    asked = Asked(sample)
    asked.tick(0.0)
    assert asked.tick(1.0) == Sample([unknown(POWER, "PermissionError: no access")])


def test_a_source_that_never_had_a_series_does_not_fail_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    reasons = iter(["no access", "no access", "gone"])

    def sample() -> list[Reading]:
        raise PermissionError(next(reasons))

    asked = Asked(sample)
    for now_s in range(3):
        assert asked.tick(now_s) == Sample([])
    assert caplog.messages == ["scripted cannot be sampled"] * 2, "once for each reason"
    assert "PermissionError: gone" in caplog.text


def test_a_series_that_is_no_longer_reported_becomes_unknown() -> None:
    answers = iter([[known(POWER, 7), known(CLOCK, 1)], [known(POWER, 8)], [known(POWER, 9)]])
    asked = Asked(lambda: next(answers))
    asked.tick(0.0)
    assert asked.tick(1.0) == Sample([known(POWER, 8), unknown(CLOCK, "no longer reported")])
    assert asked.tick(2.0) == Sample([known(POWER, 9)])


def test_a_slow_source_is_asked_only_when_it_is_due() -> None:
    asked = Asked(lambda: [known(POWER, 7)], period_s=15.0)
    asked.tick(0.0)
    times_s = [float(now_s) for now_s in range(1, 61) if asked.ask(now_s) and (asked.wait(), asked.worker.take(now_s))]
    assert len(times_s) == 4
    assert {later - sooner for sooner, later in itertools.pairwise(times_s)} == {15.0}


def test_an_answer_that_is_late_for_its_block_is_in_the_next_one() -> None:
    gate = Gate()
    asked = Asked(gate.sample)
    gate.open.clear()
    assert asked.ask(0.0)
    assert asked.worker.take(0.15) == Sample(), "not sampled, which is neither unknown nor a miss"
    gate.open.set()
    asked.wait()
    assert asked.worker.take(1.0) == Sample([known(POWER, 7)])


def test_a_hanging_source_stalls_once_and_is_heard_again_when_it_answers() -> None:
    gate = Gate()
    asked = Asked(gate.sample)
    asked.tick(0.0)
    gate.open.clear()
    assert asked.ask(1.0)
    assert not asked.ask(2.0), "no second call"
    assert asked.worker.take(2.9) == Sample()
    late = [unknown(POWER, "deadline exceeded")]
    assert asked.worker.take(3.0) == Sample(late, missed=True, stalled=True)
    assert asked.worker.take(4.0) == Sample(missed=True)
    gate.open.set()
    asked.wait()
    assert asked.worker.take(5.0) == Sample(resumed=True), "what it says so late describes a moment that has passed"
    assert asked.tick(5.0) == Sample([known(POWER, 7)])


def test_a_source_that_hangs_again_and_again_is_one_event_a_minute() -> None:
    gate = Gate()
    asked = Asked(gate.sample)
    told = 0
    for number in range(41):
        gate.open.clear()
        now_s = 3.0 * number
        assert asked.ask(now_s)
        sample = asked.worker.take(now_s + DEADLINE_S)
        assert sample.missed
        told += sample.stalled
        gate.open.set()
        asked.wait()
        assert asked.worker.take(now_s + DEADLINE_S).resumed == sample.stalled
    assert told == 1 + 120 // STALLED_EVERY_S
