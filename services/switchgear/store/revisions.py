"""The number that every write of a service takes, so that lists and watches fit together.

The row of a service stays locked until its transaction ends: writes of one service commit in the order of their numbers,
and a watcher that has seen one has seen all before it.
"""

from __future__ import annotations

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from switchgear.store.tables import RevisionRow

_ADVANCE = text(
    "INSERT INTO revisions (service, value) VALUES (:service, :by) "
    "ON CONFLICT (service) DO UPDATE SET value = revisions.value + :by RETURNING value"
)


async def next_revision(session: AsyncSession, service: str) -> int:
    """A number greater than all before it; call it in a `write` transaction. Counts from 1."""
    return await _advance(session, service, 1)


async def next_revisions(session: AsyncSession, service: str, count: int) -> range:
    """So many such numbers at once."""
    last = await _advance(session, service, count)
    return range(last - count + 1, last + 1)


async def lock_revision(session: AsyncSession, service: str) -> int:
    """The newest number; other writers of the service wait until this transaction ends. What is read next stays true."""
    return await _advance(session, service, 0)


async def current_revision(session: AsyncSession, service: str) -> int:
    """The number of the newest write that this session sees; 0 when there was none."""
    value = await session.scalar(select(RevisionRow.value).where(RevisionRow.service == service))
    return value or 0


async def current_revisions(session: AsyncSession, *services: str) -> tuple[int, ...]:
    """As `current_revision` for each, all of one moment."""
    rows = await session.execute(
        select(RevisionRow.service, RevisionRow.value).where(RevisionRow.service.in_(services))
    )
    values = {row.service: row.value for row in rows}
    return tuple(values.get(service, 0) for service in services)


async def _advance(session: AsyncSession, service: str, by: int) -> int:
    result = await session.execute(_ADVANCE, {"service": service, "by": by})
    return int(result.scalar_one())
