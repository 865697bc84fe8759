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
    """commit: stores a batch, raising when it could not. Events of one stream are committed in the order given."""

    def __init__(self, commit: Callable[[Sequence[Event]], Awaitable[None]]) -> None:
        self._commit = commit
        self._queue: asyncio.Queue[tuple[Event, Callable[[Event], None]]] = asyncio.Queue(QUEUE_MAX)
        # Kept over a restart of `run`: what was taken from the queue and not committed.
        self._batch: list[tuple[Event, Callable[[Event], None]]] = []

    async def put(self, event: Event, committed: Callable[[Event], None]) -> None:
        """Queues an event; `committed` is called with it afterwards. Waits while the store lags behind."""
        await self._queue.put((event, committed))

    async def run(self) -> None:
        """Commits until cancelled. While the store is away it tries again and loses nothing."""
        while True:
            if not self._batch:
                self._batch.append(await self._queue.get())
            while len(self._batch) < BATCH_MAX and not self._queue.empty():
                self._batch.append(self._queue.get_nowait())
            try:
                await self._commit([event for event, _ in self._batch])
            except Exception:
                log.exception("cannot store %d events; trying again", len(self._batch))
                await asyncio.sleep(_RETRY_S)
                continue
            for event, committed in self._batch:
                committed(event)
            self._batch.clear()
