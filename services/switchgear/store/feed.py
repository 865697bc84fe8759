"""How a `Watch*` call follows the writes of a service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TypeVar

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
    """Wakes the watchers of one service.

    poll_s: how soon the writes of other replicas are seen; those of this process wake at once through `changed`.
    """

    def __init__(self, database: Database, service: str, *, poll_s: float = 1.0) -> None:
        self._database = database
        self._service = service
        self._poll_s = poll_s
        self._wake = asyncio.Event()

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
            async with self._database.read() as session:
                current = await current_revision(session, self._service)
                if not 0 <= after <= current:
                    raise OutOfRange(
                        f"revision {after} is unknown, the newest is {current}; list again and watch from the list's revision",
                        Reason.REVISION_UNKNOWN,
                        revision=str(after),
                        newest=str(current),
                    )
                rows = await page(session, after, _PAGE_SIZE) if current > after else ()
            for revision, row in rows:
                after = revision
                yield revision, row
            if len(rows) == _PAGE_SIZE:
                continue
            if current > after or not caught_up:
                caught_up, after = True, current
                yield current, None
            try:
                async with asyncio.timeout(self._poll_s):
                    await wake.wait()
            except TimeoutError:
                pass
