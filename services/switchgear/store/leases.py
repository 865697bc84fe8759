"""Who may act, when several replicas could.

Expiry decides only when another may take over; a holder may sleep past it, so that a late write of the old holder fails is decided by
the token (`fence`). Expiries are compared on one clock, see `now_unix_ns`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from switchgear.core.clock import Clock
from switchgear.core.errors import Aborted, Reason
from switchgear.store.tables import LeaseRow

_ENSURE = text(
    "INSERT INTO leases (name, holder, token, expire_time_unix_ns) VALUES (:name, '', 0, 0) ON CONFLICT DO NOTHING"
)


# Not now(): that is when the transaction began, and it may have waited since.
_DATABASE_NOW = text("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000000 AS bigint)")


async def now_unix_ns(session: AsyncSession, clock: Clock) -> int:
    """The time by which expiries are written and judged: the clock of the PostgreSQL server, since those of the machines that want the
    lease differ; `clock` on SQLite, which has one machine."""
    if session.get_bind().dialect.name != "postgresql":
        return clock.unix_ns()
    found = await session.scalar(_DATABASE_NOW)
    return int(found)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to act under `name`. Of two leases of a name the one with the greater token is the newer."""

    name: str
    holder: str
    token: int
    expire_time_unix_ns: int


async def acquire(
    session: AsyncSession, name: str, holder: str, *, duration_s: float, now_unix_ns: int
) -> Lease | None:
    """The lease with a new token, or None while another holder's has not expired.

    A holder that acquires again (after a restart) fences off its former self.
    """
    # One that stands by asks every other second: it locks the row, which waits for the holder's writers, only when it may win.
    seen = await session.scalar(select(LeaseRow).where(LeaseRow.name == name))
    if seen is not None and _taken(seen, holder, now_unix_ns):
        return None
    await session.execute(_ENSURE, {"name": name})
    row = await _locked(session, name)
    if row is None or _taken(row, holder, now_unix_ns):
        return None
    row.holder = holder
    row.token += 1
    row.expire_time_unix_ns = now_unix_ns + int(duration_s * 1e9)
    return Lease(name, holder, row.token, row.expire_time_unix_ns)


async def renew(session: AsyncSession, lease: Lease, *, duration_s: float, now_unix_ns: int) -> Lease:
    """The same lease with a later expiry; it waits for no writer. Raises Aborted (LEASE_LOST) when somebody else has taken it."""
    expire_time_unix_ns = now_unix_ns + int(duration_s * 1e9)
    renewed = await session.execute(
        update(LeaseRow)
        .where(LeaseRow.name == lease.name, LeaseRow.token == lease.token, LeaseRow.holder == lease.holder)
        .values(expire_time_unix_ns=expire_time_unix_ns)
        .returning(LeaseRow.name)
    )
    if renewed.scalar_one_or_none() is None:
        raise _lost(lease, await session.scalar(select(LeaseRow.holder).where(LeaseRow.name == lease.name)))
    return replace(lease, expire_time_unix_ns=expire_time_unix_ns)


async def fence(session: AsyncSession, *leases: Lease) -> None:
    """Call it in the transaction of every write under the leases, first: nobody can take one of them until that has ended.

    Writers under one lease do not wait for each other, nor for its renewal.
    Raises Aborted (LEASE_LOST) when somebody else has taken one.
    """
    rows = await session.scalars(
        select(LeaseRow)
        .where(LeaseRow.name.in_([lease.name for lease in leases]))
        # A takeover locks the row itself and so waits; a renewal changes no key and does not.
        .with_for_update(read=True, key_share=True)
        .execution_options(populate_existing=True)
    )
    held = {row.name: row for row in rows}
    for lease in leases:
        row = held.get(lease.name)
        if row is None or (row.token, row.holder) != (lease.token, lease.holder):
            raise _lost(lease, row.holder if row else None)


async def release(session: AsyncSession, lease: Lease) -> None:
    """Another may acquire it at once; nothing happens when another has. The token stays: it only ever grows."""
    row = await _locked(session, lease.name)
    if row is not None and row.token == lease.token:
        row.holder = ""
        row.expire_time_unix_ns = 0


def _taken(row: LeaseRow, holder: str, now_unix_ns: int) -> bool:
    return row.holder not in ("", holder) and row.expire_time_unix_ns > now_unix_ns


def _lost(lease: Lease, holder: str | None) -> Aborted:
    return Aborted(
        f"lease {lease.name} was taken over by {holder or 'nobody yet'}; stop acting and acquire it again",
        Reason.LEASE_LOST,
        lease=lease.name,
        token=str(lease.token),
    )


async def _locked(session: AsyncSession, name: str) -> LeaseRow | None:
    return await session.scalar(
        select(LeaseRow).where(LeaseRow.name == name).with_for_update().execution_options(populate_existing=True)
    )
