"""Virtual time, one source of randomness, and the transcript of what happened."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from switchgear.recovery import model as m

START_NS = 1_700_000_000_000_000_000


class Violation(AssertionError):
    """A promise was broken."""


class Kernel:
    """Runs callbacks in the order of their virtual times; equal times in the order in which they were asked for.

    rng: None makes the world calm: every delay is the shortest that is possible and nothing fails by chance.
    """

    def __init__(self, rng: random.Random | None) -> None:
        self.rng = rng
        self.now_s = 0.0
        #: (virtual second, line), oldest first.
        self.transcript: list[tuple[float, str]] = []
        #: While set, things may fail by chance.
        self.stormy = rng is not None
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._asked = 0

    @property
    def now(self) -> m.Now:
        return m.Now(self.now_s, self.now_ns)

    @property
    def now_ns(self) -> int:
        return START_NS + round(self.now_s * 1e9)

    def after(self, delay_s: float, what: Callable[[], None]) -> None:
        self._asked += 1
        heapq.heappush(self._due, (self.now_s + delay_s, self._asked, what))

    def between(self, least_s: float, most_s: float) -> float:
        """A delay in seconds; now and then, in a storm, several times the longest."""
        if self.rng is None:
            return least_s
        if self.stormy and self.rng.random() < 0.03:
            most_s *= 5
        return self.rng.uniform(least_s, most_s)

    def chance(self, probability: float) -> bool:
        return self.rng is not None and self.stormy and self.rng.random() < probability

    def note(self, line: str) -> None:
        self.transcript.append((self.now_s, line))

    def lines(self) -> list[str]:
        return [f"{at_s:8.3f}s  {line}" for at_s, line in self.transcript]

    def run(self, until_s: float, done: Callable[[], bool] = lambda: False) -> None:
        """Runs what is due up to and with `until_s`, or until `done`."""
        while self._due and self._due[0][0] <= until_s:
            self.now_s, _, what = heapq.heappop(self._due)
            what()
            if done():
                return
        self.now_s = max(self.now_s, until_s)
