"""Heavy work of many streams at once, without holding up the light."""

from __future__ import annotations

import asyncio
from collections import deque

#: Nobody has come for so long: those that are here may go on.
_QUIET_S = 0.02
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
        self._scheduled = False

    @property
    def any_wait(self) -> bool:
        return bool(self._waiting)

    def came(self) -> None:
        """A stream has begun."""
        self._came_s = asyncio.get_running_loop().time()

    def free(self, waited_s: float) -> bool:
        """Whether nobody is just coming, or whoever asks has waited for long enough."""
        return asyncio.get_running_loop().time() - self._came_s >= _QUIET_S or waited_s >= _WAIT_S_MAX

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
            loop.call_later(_QUIET_S / 4, self._next)
            return
        self._waiting.popleft()
        first.set_result(None)
        loop.call_soon(self._next)
