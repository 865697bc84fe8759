"""How far the clock of a node is from ours, seen from when its blocks arrive. Pure: times are passed in."""

from __future__ import annotations

#: Within it the way of a block may be slow now and then; the shortest way of two such times in a row must agree.
WINDOW_NS = 10_000_000_000
#: A live block is never a day old: agents keep a few ticks for a connection that is slow, and leave the others to their spool.
AGE_NS_MAX = 86_400_000_000_000
#: Two clocks that are right, and the way of a block, differ by much less.
BOUND_S = 2.0


class ClockOffset:
    """Of one node. `offset_ns` is to be added to its times; 0 as long as its clock is within the bound.

    A block arrives later than it was made by the way it took, never earlier: the least difference of both is the offset and the shortest
    way. A clock that is ahead, that was set back or that is off by more than a block can be old is seen with the first block; one that is
    behind by less only when two windows agree, since blocks that waited look the same.
    """

    __slots__ = ("_before_ns", "_bound_ns", "_last_ns", "_least_ns", "_until_ns", "offset_ns")

    def __init__(self, bound_s: float = BOUND_S) -> None:
        self._bound_ns = round(bound_s * 1e9)
        self.offset_ns = 0
        #: Newest time on the node's clock.
        self._last_ns: int | None = None
        #: Least difference in this window and in the one before, which ends at `_until_ns`.
        self._least_ns: int | None = None
        self._before_ns: int | None = None
        self._until_ns = 0

    @property
    def is_skewed(self) -> bool:
        return self.offset_ns != 0

    def corrected(self, time_unix_ns: int, arrival_unix_ns: int, *, waited: bool = False) -> int:
        """The time of a live block that arrived now, on our clock and never later than now.

        waited: blocks wait on our side at present, so being late says nothing about the clock that made them.
        """
        difference = arrival_unix_ns - time_unix_ns
        least = self._least_ns
        if least is None or difference < least:
            self._least_ns = difference
        set_back = self._last_ns is not None and time_unix_ns < self._last_ns
        self._last_ns = time_unix_ns
        off = difference - self.offset_ns
        if off < 0 and (self.offset_ns or difference < -self._bound_ns):
            self.offset_ns = self._beyond_bound(difference)
        elif set_back or off > AGE_NS_MAX:
            self.offset_ns = self._beyond_bound(difference)
            self._least_ns, self._before_ns, self._until_ns = difference, None, arrival_unix_ns + WINDOW_NS
        elif waited:
            self._least_ns, self._before_ns, self._until_ns = None, None, arrival_unix_ns + WINDOW_NS
        elif arrival_unix_ns >= self._until_ns:
            self._turn(arrival_unix_ns)
        return min(time_unix_ns + self.offset_ns, arrival_unix_ns)

    def _turn(self, arrival_unix_ns: int) -> None:
        least, before = self._least_ns, self._before_ns
        if least is not None and before is not None and 2 * abs(least - before) <= self._bound_ns:
            self.offset_ns = self._beyond_bound(min(least, before))
        # The first block opens the first window and says nothing yet: an agent that connects begins with one that waited.
        self._before_ns = least if self._until_ns else None
        self._least_ns = None
        self._until_ns = arrival_unix_ns + WINDOW_NS

    def _beyond_bound(self, difference_ns: int) -> int:
        return difference_ns if abs(difference_ns) > self._bound_ns else 0
