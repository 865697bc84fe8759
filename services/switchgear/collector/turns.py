"""Heavy work of many streams at once, without holding up the light."""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """One in each round of the event loop, in the order of asking: all that is ready besides has its turn in between.

    When thousands of agents come back at once, each has a dictionary of milliseconds; the hellos, events and blocks of the others do not wait
    until all of those are read. Bounded by the number of streams, each of which waits for one.
    """

    def __init__(self) -> None:
        self._waiting = deque[asyncio.Future[None]]()

    async def turn(self) -> None:
        loop = asyncio.get_running_loop()
        self._waiting.append(mine := loop.create_future())
        if len(self._waiting) == 1:
            loop.call_soon(self._next)
        await mine

    def _next(self) -> None:
        # Who has gone meanwhile takes nobody's time.
        while self._waiting:
            if not (first := self._waiting.popleft()).done():
                first.set_result(None)
                break
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._next)
