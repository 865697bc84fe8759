"""What agents bring of the time before: one message at a time, and never at the cost of what is live."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from switchgear.collector.turns import LOOK_S, Turns
from switchgear.core.clock import Clock

#: Of the event loop's time. Live blocks of 4,000 nodes take two thirds of it, and streams that begin want their part.
SHARE = 0.25


class Work:
    """What waits for its turn."""

    __slots__ = ("do", "since_s")

    def __init__(self, do: Callable[[], None], since_s: float) -> None:
        self.do: Callable[[], None] | None = do
        self.since_s = since_s

    def cancel(self) -> None:
        """It is not done; whatever it holds is free at once."""
        self.do = None


class Late:
    """In the order in which they came, behind streams that are just coming. Bounded by the streams, each of which has one message here.

    What is put must not raise.
    """

    def __init__(self, clock: Clock, turns: Turns) -> None:
        self._clock = clock
        self._turns = turns
        self._waiting = deque[Work]()
        self._scheduled = False

    def put(self, do: Callable[[], None]) -> Work:
        """Does it later, unless it is cancelled before."""
        self._waiting.append(work := Work(do, self._clock.monotonic_s()))
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._next)
        return work

    def _next(self) -> None:
        while self._waiting and self._waiting[0].do is None:
            self._waiting.popleft()
        self._scheduled = bool(self._waiting)
        if not self._waiting:
            return
        loop, now_s, work = asyncio.get_running_loop(), self._clock.monotonic_s(), self._waiting[0]
        if not self._turns.free(now_s - work.since_s):
            loop.call_later(LOOK_S, self._next)
            return
        self._waiting.popleft()
        if work.do is not None:
            work.do()
        loop.call_later((self._clock.monotonic_s() - now_s) * (1 / SHARE - 1), self._next)
