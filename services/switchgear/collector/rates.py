"""How much may come in a second. Pure: times are passed in."""

from __future__ import annotations


class Bucket:
    """So many a second, and `burst` of them at once. Times are of one monotonic clock, in seconds."""

    def __init__(self, per_s: float, burst: float, now_s: float) -> None:
        self.per_s = per_s
        self._burst = burst
        self._left = burst
        self._time_s = now_s

    def spend(self, now_s: float) -> float:
        """Takes one; returns how many are left, below 0 how many were taken in advance."""
        earned = (now_s - self._time_s) * self.per_s
        self._time_s = now_s
        self._left = min(self._left + earned, self._burst) - 1
        return self._left
