"""Sets of numbers that mostly follow each other."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from operator import itemgetter

_FIRST, _LAST = itemgetter(0), itemgetter(1)


class Intervals:
    """A set of integers as closed intervals. One thread may change it while others read."""

    def __init__(self, intervals: Iterable[tuple[int, int]] = ()) -> None:
        self._pairs: list[tuple[int, int]] = []
        for first, last in intervals:
            self.add(first, last)

    def add(self, first: int, last: int) -> None:
        """Adds `first` to `last`; nothing when that is empty."""
        if first > last:
            return
        # Everything that overlaps or touches becomes one.
        begin = bisect_left(self._pairs, first - 1, key=_LAST)
        end = bisect_right(self._pairs, last + 1, key=_FIRST)
        if begin < end:
            first, last = min(first, self._pairs[begin][0]), max(last, self._pairs[end - 1][1])
        self._pairs[begin:end] = [(first, last)]

    def missing(self, first: int, last: int) -> int:
        """How many from `first` to `last` are not in the set."""
        within = (min(b, last) - max(a, first) + 1 for a, b in self if b >= first and a <= last)
        return max(0, last - first + 1) - sum(within)

    def __contains__(self, number: int) -> bool:
        at = bisect_left(self._pairs, number, key=_LAST)
        return at < len(self._pairs) and self._pairs[at][0] <= number

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._pairs)
