"""Heavy work of many streams, without holding up the light."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from switchgear.core.clock import Clock

#: Nobody has come for so long: those that are here may go on.
_QUIET_S = 0.02
#: Of a stream that is expected: what beginning it takes, and a little more.
_COMING_S = 0.0025
#: So often it is looked whether they have come.
_LOOK_S = 0.005
WAIT_S_MAX = 10.0


class Arrivals:
    """Streams that are just coming.

    When thousands of agents come back at once, each has a dictionary and a backlog, and gRPC takes one new stream in each round of the event loop. So
    all have a stream, on which events are stored, before anything heavy is done.
    """

    def __init__(self) -> None:
        self._came_s = float("-inf")
        #: Streams that are still expected, and until when.
        self._expected, self._expected_until_s = 0, 0.0

    def expect(self, streams: int) -> None:
        """So many are about to begin, since they did before this process started."""
        self._expected = streams
        self._expected_until_s = _loop_s() + streams * _COMING_S

    def came(self) -> None:
        """A stream has begun."""
        self._came_s = _loop_s()
        self._expected -= 1

    @property
    def are_coming(self) -> bool:
        now_s = _loop_s()
        return now_s - self._came_s < _QUIET_S or (self._expected > 0 and now_s < self._expected_until_s)


class Work:
    """What waits for its turn."""

    __slots__ = ("do", "since_s")

    def __init__(self, do: Callable[[], None], since_s: float) -> None:
        self.do: Callable[[], None] | None = do
        self.since_s = since_s

    def cancel(self) -> None:
        """It is not done; whatever it holds is free at once."""
        self.do = None


class Turns:
    """One piece of work in each round of the event loop, in the order in which they came and behind streams that are just coming.

    share: of the loop's time that all work may take. wait_s_max: however many come, who has waited for so long has his turn. Bounded by the number of streams, each of which waits for one turn. What is put must not raise.
    """

    def __init__(self, clock: Clock, arrivals: Arrivals, share: float = 1.0, *, wait_s_max: float = WAIT_S_MAX) -> None:
        #: Measures what the work takes: the loop's own time stands still meanwhile.
        self._clock = clock
        self._arrivals = arrivals
        self._share = share
        self._wait_s_max = wait_s_max
        self._waiting = deque[Work]()
        self._scheduled = False

    @property
    def any_wait(self) -> bool:
        return bool(self._waiting)

    def put(self, do: Callable[[], None]) -> Work:
        """Does it later, unless it is cancelled before."""
        self._waiting.append(work := Work(do, _loop_s()))
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._next)
        return work

    async def turn(self) -> None:
        """Returns when it is the caller's turn."""
        mine = asyncio.get_running_loop().create_future()
        work = self.put(lambda: mine.set_result(None))
        try:
            await mine
        finally:
            work.cancel()  # who has gone meanwhile takes nobody's time

    def _next(self) -> None:
        while self._waiting and self._waiting[0].do is None:
            self._waiting.popleft()
        self._scheduled = bool(self._waiting)
        if not self._waiting:
            return
        loop, first = asyncio.get_running_loop(), self._waiting[0]
        if self._arrivals.are_coming and loop.time() - first.since_s < self._wait_s_max:
            loop.call_later(_LOOK_S, self._next)
            return
        self._waiting.popleft()
        begin_s = self._clock.monotonic_s()
        if first.do is not None:
            first.do()
        loop.call_later((self._clock.monotonic_s() - begin_s) * (1 / self._share - 1), self._next)


def _loop_s() -> float:
    return asyncio.get_running_loop().time()
