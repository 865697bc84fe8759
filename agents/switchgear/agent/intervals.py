"""Sets of numbers that mostly follow each other."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Intervals:
    """A set of integers as closed intervals."""

    def __init__(self, intervals: Iterable[tuple[int, int]] = ()) -> None:
        self._first: list[int] = []
        self._last: list[int] = []
        for first, last in intervals:
            self.add(first, last)

    def add(self, first: int, last: int) -> None:
        """Adds `first` to `last`; nothing when that is empty."""
        if first > last:
            return
        # Everything that overlaps or touches becomes one.
        begin, end = bisect_left(self._last, first - 1), bisect_right(self._first, last + 1)
        if begin < end:
            first, last = min(first, self._first[begin]), max(last, self._last[end - 1])
        self._first[begin:end] = [first]
        self._last[begin:end] = [last]

    def missing(self, first: int, last: int) -> int:
        """How many from `first` to `last` are not in the set."""
        within = (min(b, last) - max(a, first) + 1 for a, b in self if b >= first and a <= last)
        return max(0, last - first + 1) - sum(within)

    def __contains__(self, number: int) -> bool:
        at = bisect_left(self._last, number)
        return at < len(self._first) and self._first[at] <= number

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._first, self._last, strict=True)
