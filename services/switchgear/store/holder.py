"""How a process becomes the one that acts, and notices that it no longer is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from switchgear.core.clock import Clock
from switchgear.core.errors import Aborted
from switchgear.store import leases
from switchgear.store.database import Database
from switchgear.store.leases import Lease

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A process that may act once it has the leases of these names.

    holder: unique among those that may want them at the same time. One that comes back under the same name after a crash fences
    off its former self and waits for nobody.
    duration_s: after a crash nobody acts for so long, and a process that is starved for longer loses its place to one that
    stands by. renew_s: a third of it, so that one renewal may be late.
    """

    database: Database
    clock: Clock
    names: Sequence[str]
    holder: str
    duration_s: float = 6.0
    renew_s: float = 2.0

    @asynccontextmanager
    async def holding(self) -> AsyncIterator[None]:
        """Waits for the leases; in the block every write of the database is made under them.

        The block is cancelled, and Aborted (LEASE_LOST) raised in a group, when somebody else has taken one of them.
        """
        held = await self._acquired()
        self.database.write_under(held)
        try:
            async with asyncio.TaskGroup() as tasks:
                renewing = tasks.create_task(self._renew(held))
                yield
                renewing.cancel()
        finally:
            await self._release(held)

    async def _acquired(self) -> list[Lease]:
        told = False
        while (held := await self._acquire_all()) is None:
            if not told:
                log.warning("stands by: another process holds %s", ", ".join(self.names))
                told = True
            await asyncio.sleep(self.renew_s)
        return held

    async def _acquire_all(self) -> list[Lease] | None:
        """All or none, in one order, so that two processes that want some of the same do not wait for each other."""
        held = list[Lease]()
        async with self.database.write_unfenced() as session:
            for name in sorted(self.names):
                lease = await leases.acquire(
                    session, name, self.holder, duration_s=self.duration_s, now_unix_ns=self.clock.unix_ns()
                )
                if lease is None:
                    await session.rollback()
                    return None
                held.append(lease)
        return held

    async def _renew(self, held: Sequence[Lease]) -> None:
        while True:
            await asyncio.sleep(self.renew_s)
            try:
                async with self.database.write_unfenced() as session:
                    for lease in held:
                        await leases.renew(session, lease, duration_s=self.duration_s, now_unix_ns=self.clock.unix_ns())
            except Aborted:
                raise
            except Exception:
                # Nobody else can take a lease of a database that does not answer; when it does again, the token decides.
                log.exception("cannot renew the leases; trying again")

    async def _release(self, held: Sequence[Lease]) -> None:
        try:
            async with self.database.write_unfenced() as session:
                for lease in held:
                    await leases.release(session, lease)
        except Exception:
            log.warning("cannot release the leases; they expire by themselves", exc_info=True)
