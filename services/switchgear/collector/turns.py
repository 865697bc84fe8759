"""Heavy work of many streams at once, without holding up the light."""

from __future__ import annotations

import asyncio
from collections import deque

#: Nobody has come for so long: those that are here may go on.
_QUIET_S = 0.02
#: Of a stream that is expected: what beginning it takes, and a little more.
_COMING_S = 0.0025
#: So often it is looked whether they have come.
LOOK_S = 0.005
#: However many come, who has waited for so long has his turn.
_WAIT_S_MAX = 10.0


class Turns:
    """One in each round of the event loop, in the order of asking, and behind those who are just coming.

    When thousands of agents come back at once, each has a dictionary of milliseconds, and gRPC takes one new stream in each round. So all have
    a stream, on which events are stored, before the dictionaries are read. Bounded by the number of streams, each of which waits for one turn.
    """

    def __init__(self) -> None:
        self._waiting = deque[tuple[float, asyncio.Future[None]]]()
        self._came_s = float("-inf")
        #: Streams that are still expected, and until when.
        self._expected, self._expected_until_s = 0, 0.0
        self._scheduled = False

    @property
    def any_wait(self) -> bool:
        return bool(self._waiting)

    def expect(self, streams: int) -> None:
        """So many are about to begin, since they did before this process started."""
        self._expected = streams
        self._expected_until_s = asyncio.get_running_loop().time() + streams * _COMING_S

    def came(self) -> None:
        """A stream has begun."""
        self._came_s = asyncio.get_running_loop().time()
        self._expected -= 1

    def free(self, waited_s: float) -> bool:
        """Whether nobody is just coming, or whoever asks has waited for long enough."""
        now_s = asyncio.get_running_loop().time()
        coming = now_s - self._came_s < _QUIET_S or (self._expected > 0 and now_s < self._expected_until_s)
        return not coming or waited_s >= _WAIT_S_MAX

    async def turn(self) -> None:
        loop = asyncio.get_running_loop()
        self._waiting.append((loop.time(), mine := loop.create_future()))
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._next)
        await mine

    def _next(self) -> None:
        # Who has gone meanwhile takes nobody's time.
        while self._waiting and self._waiting[0][1].done():
            self._waiting.popleft()
        self._scheduled = bool(self._waiting)
        if not self._scheduled:
            return
        loop = asyncio.get_running_loop()
        since_s, first = self._waiting[0]
        if not self.free(loop.time() - since_s):
            loop.call_later(LOOK_S, self._next)
            return
        self._waiting.popleft()
        first.set_result(None)
        loop.call_soon(self._next)
