"""Events of all streams into the store, many in one transaction; told as committed only when they are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from switchgear.collector.model import Event

log = logging.getLogger(__name__)

#: Events in memory that wait for the store. When it is full, streams are read no further: agents keep theirs on disk.
QUEUE_MAX = 2000
BATCH_MAX = 500
_RETRY_S = 0.5


class EventWriter:
    """Events of one stream are committed in the order given.

    commit: stores a batch whole, or raises and stores nothing. refused: whether such an error is about the events themselves,
    so that trying again is of no use. dropped: called for each event that is given up for that.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Event]], Awaitable[None]],
        refused: Callable[[Exception], bool],
        dropped: Callable[[], None],
    ) -> None:
        self._commit = commit
        self._refused = refused
        self._dropped = dropped
        self._queue: asyncio.Queue[tuple[Event, Callable[[Event], None]]] = asyncio.Queue(QUEUE_MAX)
        # Kept over a restart of `run`: what was taken from the queue and not committed.
        self._batch: list[tuple[Event, Callable[[Event], None]]] = []

    @property
    def waiting(self) -> int:
        """Events that are not stored yet."""
        return self._queue.qsize() + len(self._batch)

    async def put(self, event: Event, committed: Callable[[Event], None]) -> None:
        """Queues an event; `committed` is called with it when it needs no other try. Waits while the store lags behind."""
        await self._queue.put((event, committed))

    async def run(self) -> None:
        """Commits until cancelled. While the store is away it tries again and loses nothing.

        One event that the store does not take costs itself alone: its batch is halved until it stands by itself.
        """
        size = BATCH_MAX
        while True:
            if not self._batch:
                self._batch.append(await self._queue.get())
            while len(self._batch) < BATCH_MAX and not self._queue.empty():
                self._batch.append(self._queue.get_nowait())
            part = self._batch[:size]
            try:
                await self._commit([event for event, _ in part])
            except Exception as error:
                if not self._refused(error):
                    log.exception("cannot store %d events; trying again", len(part))
                    await asyncio.sleep(_RETRY_S)
                    continue
                if len(part) > 1:
                    size = len(part) // 2
                    continue
                log.exception("dropping an event that cannot be stored", extra={"event": repr(part[0][0])})
                self._dropped()
            for event, committed in part:
                committed(event)
            del self._batch[: len(part)]
            size = min(2 * size, BATCH_MAX)
