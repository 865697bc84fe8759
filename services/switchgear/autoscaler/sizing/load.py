"""How much work arrives, and how much will have arrived when a replica that is asked for now is ready. In replicas that it takes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Levels of a window that are remembered over a restart.
REMEMBERED_MAX = 24
#: Intervals are kept for so long.
KEPT_S = 300.0
KNOWN_S_MIN = 20.0
#: The trend is a straight line through means of so long, as many as four starts take, within bounds.
PIECE_S = 30.0
TREND_S_MIN, TREND_S_MAX = 300.0, 3600.0
#: A slope this many standard errors above zero is no chance.
SLOPE_ERRORS = 3.5
#: The pattern of the day, and of the week: mean work by quarter of an hour.
QUARTER_S, DAY_QUARTERS, WEEK_QUARTERS = 900.0, 96, 672
#: What a new day weighs in the pattern of days.
NEW_DAY = 0.5


@dataclass(slots=True)
class Peaks:
    """The highest level within a window, as a queue of levels that are not exceeded by later ones."""

    window_s: float
    levels: deque[tuple[float, float]] = field(default_factory=deque)

    def add(self, now_s: float, level: float) -> float:
        """Takes the level of now; returns the highest."""
        levels = self.levels
        while levels and levels[-1][1] <= level:
            levels.pop()
        levels.append((now_s, level))
        while levels[0][0] <= now_s - self.window_s:
            levels.popleft()
        return levels[0][1]

    def memory(self) -> list[float]:
        """An age, its level, and so on, for `remember`; of many, runs count as their highest for as long as their last."""
        levels = list(self.levels)
        together = max(1, math.ceil(len(levels) / REMEMBERED_MAX))
        runs = [levels[at : at + together] for at in range(0, len(levels), together)]
        return [number for run in runs for number in (levels[-1][0] - run[-1][0], run[0][1])]

    def remember(self, now_s: float, memory: Sequence[float]) -> None:
        """Before the first level: goes on at `now_s` as if no time had passed."""
        self.levels.extend((now_s - age_s, level) for age_s, level in zip(memory[::2], memory[1::2], strict=False))


#: Requests of so long are a rate, when there are so many of them; so much of the past is needed to call one a jump, and so much counts.
BRIEF_S, BRIEF_MIN, PAST_S, MOST_S = 10.0, 8, 600.0, 8 * 3600.0
#: A rate this many times the highest so far is a jump.
JUMP = 1.3


class Jumps:
    """Tells when requests come faster than they ever did in eight hours: who waits for the mean of a minute then is late by a minute."""

    def __init__(self) -> None:
        self._began_s: float | None = None
        self._recent: deque[tuple[float, float]] = deque()
        self._rates: deque[tuple[float, float]] = deque()
        self._most, self._peaks = math.inf, Peaks(MOST_S)

    def add(self, now_s: float, interval_s: float, requests: float) -> float:
        """requests: of the interval that ends now. Returns requests a second, or 0 while they are no more than they were."""
        if self._began_s is None:
            self._began_s = now_s - interval_s
        self._recent.append((now_s, requests))
        while self._recent[0][0] <= now_s - max(BRIEF_S, interval_s):
            self._recent.popleft()
        count = sum([of for _, of in self._recent])
        rate = count / max(BRIEF_S, interval_s)
        self._rates.append((now_s, rate))
        while self._rates[0][0] <= now_s - BRIEF_S:  # a jump is no measure for itself
            self._most = self._peaks.add(*self._rates.popleft())
        known = now_s - self._began_s >= PAST_S
        return rate if known and count >= BRIEF_MIN and rate > JUMP * self._most else 0.0


@dataclass(slots=True)
class Load:
    """Work by interval, and its patterns."""

    intervals: deque[tuple[float, float]] = field(default_factory=deque)
    began_s: float | None = None
    pieces: deque[float] = field(default_factory=lambda: deque(maxlen=int(TREND_S_MAX / PIECE_S)))
    day: list[float | None] = field(default_factory=lambda: [None] * DAY_QUARTERS)
    week: list[float | None] = field(default_factory=lambda: [None] * WEEK_QUARTERS)
    _piece: list[float] = field(default_factory=lambda: [0.0, 0.0])
    _quarter: list[float] = field(default_factory=lambda: [-1.0, 0.0, 0.0])

    def add(self, now_s: float, interval_s: float, work: float, wall_s: float) -> None:
        """work: seconds of replicas, each taking what it can, that came in the interval that ends now. wall_s: of day and week."""
        if self.began_s is None:
            self.began_s = now_s - interval_s
        self.intervals.append((now_s, work))
        while self.intervals[0][0] <= now_s - KEPT_S:
            self.intervals.popleft()
        self._piece[0] += interval_s
        self._piece[1] += work
        if self._piece[0] >= PIECE_S:
            self.pieces.append(self._piece[1] / self._piece[0])
            self._piece = [0.0, 0.0]
        quarter = math.floor(wall_s / QUARTER_S)
        if quarter != self._quarter[0]:
            self._learn_quarter()
            self._quarter = [quarter, 0.0, 0.0]
        self._quarter[1] += interval_s
        self._quarter[2] += work

    def restart(self) -> None:
        """Nothing is known of the last intervals."""
        self.intervals.clear()
        self.pieces.clear()
        self.began_s, self._piece = None, [0.0, 0.0]

    def mean(self, now_s: float, window_s: float) -> float:
        """Work a second over the window, or since it began: then of some seconds at least, since a first request is no rate."""
        known_s = now_s - (self.began_s if self.began_s is not None else now_s)
        passed_s = min(window_s, max(known_s, KNOWN_S_MIN))
        return sum(work for at_s, work in self.intervals if at_s > now_s - passed_s) / passed_s

    def trend(self, ahead_s: float) -> float:
        """How much higher the level will be after `ahead_s`, as far as a straight line tells; never below 0."""
        count = int(min(max(4 * ahead_s, TREND_S_MIN), TREND_S_MAX) / PIECE_S)
        values = list(self.pieces)[-count:]
        size = len(values)
        if size < 6:
            return 0.0
        middle, mean = (size - 1) / 2, sum(values) / size
        spread = sum((at - middle) ** 2 for at in range(size))
        slope = sum((at - middle) * (value - mean) for at, value in enumerate(values)) / spread
        rest = sum((value - mean - slope * (at - middle)) ** 2 for at, value in enumerate(values))
        error = math.sqrt(rest / (size - 2) / spread)
        if slope <= SLOPE_ERRORS * error:
            return 0.0
        return slope * (ahead_s / PIECE_S + 1)

    def pattern(self, wall_s: float, ahead_s: float) -> float:
        """The highest level from now until after `ahead_s` by the pattern of the week, else of the day; 0 while there is none."""
        first, last = math.floor(wall_s / QUARTER_S), math.floor((wall_s + ahead_s + QUARTER_S / 3) / QUARTER_S)
        found = 0.0
        for quarter in range(first, last + 1):
            known = self.week[quarter % WEEK_QUARTERS]
            if known is None:
                known = self.day[quarter % DAY_QUARTERS]
            found = max(found, known or 0.0)
        return found

    def memory(self) -> dict[str, object]:
        """For `restored`."""
        return {"day": self.day, "week": self.week, "pieces": list(self.pieces)}

    @classmethod
    def restored(cls, memory: Mapping[str, Any]) -> Load:
        """Its patterns; the level is measured anew."""
        kept = cls(day=list(memory["day"]), week=list(memory["week"]))
        kept.pieces.extend(memory["pieces"])
        return kept

    def _learn_quarter(self) -> None:
        quarter, seconds, work = self._quarter
        if seconds < QUARTER_S / 2:
            return
        level, index = work / seconds, int(quarter)
        before = self.day[index % DAY_QUARTERS]
        self.day[index % DAY_QUARTERS] = level if before is None else before + NEW_DAY * (level - before)
        before = self.week[index % WEEK_QUARTERS]
        self.week[index % WEEK_QUARTERS] = level if before is None else before + NEW_DAY * (level - before)
