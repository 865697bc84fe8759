"""Who may act, when several replicas could.

A holder's clock may be wrong and a holder may sleep past its expiry, so expiry only decides when another may take over; that
a late write of the old holder fails is decided by the token (`fence`).
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from switchgear.core.errors import Aborted, Reason
from switchgear.store.tables import LeaseRow

_ENSURE = text(
    "INSERT INTO leases (name, holder, token, expire_time_unix_ns) VALUES (:name, '', 0, 0) ON CONFLICT DO NOTHING"
)


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
    await session.execute(_ENSURE, {"name": name})
    row = await _locked(session, name)
    if row is None or (row.holder not in ("", holder) and row.expire_time_unix_ns > now_unix_ns):
        return None
    row.holder = holder
    row.token += 1
    row.expire_time_unix_ns = now_unix_ns + int(duration_s * 1e9)
    return Lease(name, holder, row.token, row.expire_time_unix_ns)


async def renew(session: AsyncSession, lease: Lease, *, duration_s: float, now_unix_ns: int) -> Lease:
    """The same lease with a later expiry. Raises Aborted (LEASE_LOST) when somebody else has taken it."""
    row = await _held(session, lease)
    row.expire_time_unix_ns = now_unix_ns + int(duration_s * 1e9)
    return Lease(lease.name, lease.holder, lease.token, row.expire_time_unix_ns)


async def fence(session: AsyncSession, lease: Lease) -> None:
    """Call it in the transaction of every write under the lease, first: nobody can take the lease until that has ended.

    Raises Aborted (LEASE_LOST) when somebody else has taken it.
    """
    await _held(session, lease)


async def release(session: AsyncSession, lease: Lease) -> None:
    """Another may acquire it at once; nothing happens when another has. The token stays: it only ever grows."""
    row = await _locked(session, lease.name)
    if row is not None and row.token == lease.token:
        row.holder = ""
        row.expire_time_unix_ns = 0


async def _held(session: AsyncSession, lease: Lease) -> LeaseRow:
    row = await _locked(session, lease.name)
    if row is None or row.token != lease.token or row.holder != lease.holder:
        raise Aborted(
            f"lease {lease.name} was taken over by {row.holder if row and row.holder else 'nobody yet'}; stop acting and acquire it again",
            Reason.LEASE_LOST,
            lease=lease.name,
            token=str(lease.token),
        )
    return row


async def _locked(session: AsyncSession, name: str) -> LeaseRow | None:
    return await session.scalar(
        select(LeaseRow).where(LeaseRow.name == name).with_for_update().execution_options(populate_existing=True)
    )
