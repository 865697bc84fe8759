"""Each thing that may hang is asked by itself, so that a driver call that never returns costs its own series and nothing else."""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from switchgear.agent.readings import Reading, SeriesKey, unknown
from switchgear.agent.sources.base import Source

log = logging.getLogger(__name__)

DEADLINE_EXCEEDED = "deadline exceeded"
NO_LONGER_REPORTED = "no longer reported"
#: From one event about a worker that hangs to the next: a driver that answers now and then would fill the spool with them.
STALLED_EVERY_S = 60.0


class Sample(NamedTuple):
    """What a tick got from a worker; a series that is not in it was not sampled.

    missed: the deadline has passed. stalled: it passed just now, which is worth an event. resumed: such a worker answers again.
    """

    readings: Sequence[Reading] = ()
    missed: bool = False
    stalled: bool = False
    resumed: bool = False


_NOTHING = Sample()


class _Scheduled:
    """One source: when it is due, and the series that it had at last."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.keys: list[SeriesKey] = []
        self._due_s: float | None = None
        self._failed = ""

    def due(self, now_s: float) -> bool:
        """Whether to sample now; after the first time slow sources are spread over their period, or they would all come at once."""
        period_s = self.source.period_s
        if period_s <= 0:
            return True
        if self._due_s is None:
            self._due_s = now_s + period_s * zlib.crc32(self.source.name.encode()) / 2**32
            return True
        if now_s < self._due_s:
            return False
        self._due_s = max(self._due_s + period_s, now_s)
        return True

    def sample(self) -> list[Reading]:
        """The readings, and unknown for each series that is gone or could not be read."""
        try:
            readings = self.source.sample()
        except Exception as error:  # whatever a driver raises is a reason, not the agent's end
            reason = f"{type(error).__name__}: {error}"
            if reason != self._failed:  # a source that never had a series would fail without a word
                self._failed = reason
                log.warning("%s cannot be sampled", self.source.name, exc_info=True)
            return [unknown(key, reason) for key in self.keys]
        present = [reading[0] for reading in readings]
        if present == self.keys:
            return readings
        gone = set(self.keys).difference(present)
        self.keys = present
        return [*readings, *(unknown(key, NO_LONGER_REPORTED) for key in gone)]


@dataclass(slots=True)
class Question:
    """What a worker was asked; to be called once, from any thread."""

    due: Sequence[_Scheduled]
    asked_s: float
    answered: Callable[[], None]
    answer: list[Reading] | None = None

    def __call__(self) -> None:
        readings = list[Reading]()
        for scheduled in self.due:
            readings += scheduled.sample()
        self.answer = readings
        self.answered()


class Worker:
    """Sources that are sampled one after the other, and hang together.

    name: shown in metrics and events. deadline_s: what an answer may take; then all its series count as unknown until it answers.
    gpu: index of the GPU that it reads, when it reads exactly one. `ask` and `take` are for one thread, and neither waits.
    """

    def __init__(self, name: str, sources: Sequence[Source], *, deadline_s: float, gpu: int | None = None) -> None:
        self.name = name
        self.deadline_s = deadline_s
        self.gpu = gpu
        self._sources = [_Scheduled(source) for source in sources]
        self._open: Question | None = None
        self._missed = False
        #: When a hang was last told, and whether it is not taken back yet.
        self._stalled_s = -math.inf
        self._told = False

    def ask(self, now_s: float, answered: Callable[[], None]) -> Question | None:
        """What samples the sources that are due at `now_s` (monotonic); None when none is, or the last question is still open.

        answered: called once by the question, when `take` has something.
        """
        if self._open is not None:
            return None
        due = [scheduled for scheduled in self._sources if scheduled.due(now_s)]
        if due:
            self._open = Question(due, now_s, answered)
        return self._open

    def take(self, now_s: float) -> Sample:
        """The answer, once it is there; after the deadline unknown for every series instead."""
        question = self._open
        if question is None:
            return _NOTHING
        if question.answer is None:
            if now_s - question.asked_s < self.deadline_s:
                return _NOTHING
            return self._miss(now_s)
        self._open = None
        if not self._missed:
            return Sample(question.answer)
        # What it says now describes a moment that has passed.
        self._missed = False
        resumed, self._told = self._told, False
        return Sample(resumed=resumed)

    def _miss(self, now_s: float) -> Sample:
        if self._missed:
            return Sample(missed=True)
        log.warning("%s did not answer within %s s", self.name, self.deadline_s)
        self._missed = True
        late = [unknown(key, DEADLINE_EXCEEDED) for scheduled in self._sources for key in scheduled.keys]
        if now_s - self._stalled_s < STALLED_EVERY_S:
            return Sample(late, missed=True)
        self._stalled_s, self._told = now_s, True
        return Sample(late, missed=True, stalled=True)
