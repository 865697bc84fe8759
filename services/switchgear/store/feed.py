"""How a `Watch*` call follows the writes of a service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from switchgear.core.errors import OutOfRange, Reason
from switchgear.store.database import Database
from switchgear.store.revisions import current_revision

T = TypeVar("T")
#: `page(session, after, limit)`: rows with revision > after in revision order, at most `limit`, each with its revision.
Page = Callable[[AsyncSession, int, int], Awaitable[Sequence[tuple[int, T]]]]

#: Rows in memory for each watcher at a time.
_PAGE_SIZE = 200


class ChangeFeed:
    """Wakes the watchers of one service. Those at the same revision share what is read for them, so that thousands cost as one.

    poll_s: how soon the writes of other replicas are seen; those of this process wake at once through `changed`.
    """

    def __init__(self, database: Database, service: str, *, poll_s: float = 1.0) -> None:
        self._database = database
        self._service = service
        self._poll_s = poll_s
        self._wake = asyncio.Event()
        #: Under way, by what is read and since which wake: a read that began before a write does not do for who was woken by it.
        self._reads: dict[tuple[Page[Any], int, asyncio.Event], asyncio.Task[tuple[int, Sequence[Any]]]] = {}

    def changed(self) -> None:
        """Call it after a write has been committed."""
        self._wake.set()
        self._wake = asyncio.Event()

    async def watch(self, after: int, page: Page[T]) -> AsyncGenerator[tuple[int, T | None]]:
        """Rows that change after revision `after`, in revision order, for ever.

        `(revision, None)` is a bookmark: the watcher has all up to that revision. One comes when the watcher has first
        caught up, and one whenever the revision moves on without a row for it.
        Raises OutOfRange (REVISION_UNKNOWN) when `after` is negative or newer than the newest write.
        """
        caught_up = False
        while True:
            wake = self._wake  # taken before the read: a write after it is never slept through
            current, rows = await self._shared(page, after, wake)
            for revision, row in rows:
                after = revision
                yield revision, row
            if len(rows) == _PAGE_SIZE:
                continue
            if current > after or not caught_up:
                caught_up, after = True, current
                yield current, None
            try:
                # At whole multiples, all watchers together.
                now_s = asyncio.get_running_loop().time()
                async with asyncio.timeout_at((now_s // self._poll_s + 1) * self._poll_s):
                    await wake.wait()
            except TimeoutError:
                pass

    async def _shared(self, page: Page[T], after: int, wake: asyncio.Event) -> tuple[int, Sequence[tuple[int, T]]]:
        key = page, after, wake
        if (reading := self._reads.get(key)) is None:
            reading = self._reads[key] = asyncio.create_task(self._read(page, after))
            reading.add_done_callback(lambda done: self._read_ended(key, done))
        # A watcher that hangs up takes nothing from the others.
        return await asyncio.shield(reading)

    def _read_ended(self, key: tuple[Page[Any], int, asyncio.Event], done: asyncio.Task[Any]) -> None:
        del self._reads[key]
        if not done.cancelled():
            done.exception()  # who waited has it; nobody may have

    async def _read(self, page: Page[T], after: int) -> tuple[int, Sequence[tuple[int, T]]]:
        """The newest revision, and the rows behind `after`."""
        async with self._database.read() as session:
            current = await current_revision(session, self._service)
            if not 0 <= after <= current:
                raise OutOfRange(
                    f"revision {after} is unknown, the newest is {current}; list again and watch from the list's revision",
                    Reason.REVISION_UNKNOWN,
                    revision=str(after),
                    newest=str(current),
                )
            return current, await page(session, after, _PAGE_SIZE) if current > after else ()
