"""How long blocks take from their tick to their window."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

BOUNDS_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
#: Fewer are no sign of anything: they may be of a few nodes behind one slow link.
BLOCKS_MIN = 100


class Delays:
    """A histogram, cheap enough for each block. `counts` has one more than BOUNDS_S, for all beyond."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0
        self._before = list(self.counts)

    def add(self, delay_s: float) -> None:
        self.counts[bisect_left(BOUNDS_S, delay_s)] += 1
        self.sum_s += delay_s

    def middle_s(self) -> float:
        """Half of the blocks since the last call took longer than this, rounded down to a bound; 0 when they were few."""
        new = [now - before for now, before in zip(self.counts, self._before, strict=True)]
        self._before = list(self.counts)
        total = sum(new)
        if total < BLOCKS_MIN:
            return 0.0
        place = next(place for place, count in enumerate(accumulate(new)) if 2 * count >= total)
        return BOUNDS_S[place - 1] if place else 0.0
