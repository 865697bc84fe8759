"""Time as a value that is passed in, so that tests and simulations own it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where an edge reads time; policies are given a time instead."""

    def monotonic_s(self) -> float:
        """Seconds on a clock that never jumps: for durations and deadlines on one machine."""

    def unix_ns(self) -> int:
        """Nanoseconds since the Unix epoch: for people and across machines, never for order."""


class SystemClock:
    """The machine's own clocks."""

    def monotonic_s(self) -> float:
        return time.monotonic()

    def unix_ns(self) -> int:
        return time.time_ns()


class ManualClock:
    """A clock that a test moves by hand."""

    def __init__(self, unix_ns: int = 1_700_000_000_000_000_000) -> None:
        self._elapsed_ns = 0
        self._start_ns = unix_ns

    def advance(self, seconds: float) -> None:
        self._elapsed_ns += int(seconds * 1e9)

    def monotonic_s(self) -> float:
        return self._elapsed_ns / 1e9

    def unix_ns(self) -> int:
        return self._start_ns + self._elapsed_ns
