"""How a process becomes the one that acts, and notices that it no longer is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from switchgear.core.clock import Clock
from switchgear.core.errors import Aborted, Reason, Unavailable
from switchgear.store import leases
from switchgear.store.database import Database
from switchgear.store.leases import Lease

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A process that may act once it has the leases of these names.

    holder: unique among those that may want them at the same time. One that comes back under the same name after a crash fences
    off its former self and waits for nobody.
    clock: of expiries on SQLite; PostgreSQL has its own. The holder itself counts on the event loop's, which never jumps.
    duration_s: after a crash nobody acts for so long, and a process that is starved for longer loses its place to one that
    stands by. renew_s: a third of it, so that one renewal may be late. give_up_s: who has not renewed for so long acts no more, for
    it may be cut off from a database in which another has taken its place. It outlasts a restart of PostgreSQL; the launchers' leases
    that it granted until then end before its successor, duration_s later at the earliest, gives up their nodes.
    """

    database: Database
    clock: Clock
    names: Sequence[str]
    holder: str
    duration_s: float = 6.0
    renew_s: float = 2.0
    give_up_s: float = 8.0

    @asynccontextmanager
    async def holding(self) -> AsyncIterator[None]:
        """Waits for the leases; in the block every write of the database is made under them.

        The block is cancelled when somebody else has taken one of them, with Aborted (LEASE_LOST) in a group, or when they could not
        be renewed for give_up_s, with Aborted alone.
        """
        begun_s, held = await self._acquired()
        self.database.write_under(held)
        patience = asyncio.timeout_at(begun_s + self.give_up_s)
        try:
            async with patience, asyncio.TaskGroup() as tasks:
                renewing = tasks.create_task(self._renew(held, patience))
                yield
                renewing.cancel()
        except TimeoutError as error:
            if not patience.expired():
                raise
            raise Aborted(
                f"{', '.join(self.names)}: the leases could not be renewed for {self.give_up_s:g} s, so another process may act by "
                "now; see that the database is reachable from here, and start again",
                Reason.LEASE_LOST,
            ) from error
        finally:
            await self._release(held)

    async def _acquired(self) -> tuple[float, list[Lease]]:
        """The leases, and when they were asked for, on the event loop's clock."""
        told = False
        while True:
            begun_s = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(self.give_up_s / 2):
                    held = await self._acquire_all()
            # One that stands by for a holder whose database has gone is needed when it is back.
            except Unavailable:
                pass  # the database has told of its outage
            except Exception:
                log.exception("cannot take the leases; trying again")
            else:
                if held is not None:
                    return begun_s, held
                if not told:
                    log.warning("stands by: another process holds %s", ", ".join(self.names))
                    told = True
            await asyncio.sleep(self.renew_s)

    async def _acquire_all(self) -> list[Lease] | None:
        """All or none, in one order, so that two processes that want some of the same do not wait for each other."""
        held = list[Lease]()
        async with self.database.write_unfenced() as session:
            now_unix_ns = await leases.now_unix_ns(session, self.clock)
            for name in sorted(self.names):
                lease = await leases.acquire(
                    session, name, self.holder, duration_s=self.duration_s, now_unix_ns=now_unix_ns
                )
                if lease is None:
                    await session.rollback()
                    return None
                held.append(lease)
        return held

    async def _renew(self, held: Sequence[Lease], patience: asyncio.Timeout) -> None:
        while True:
            await asyncio.sleep(self.renew_s)
            # The end of a renewal would not do: its lease counts from a moment before that.
            begun_s = asyncio.get_running_loop().time()
            try:
                # A second attempt may find another connection, where the first waits for an answer that never comes.
                async with asyncio.timeout(self.give_up_s / 2), self.database.write_unfenced() as session:
                    now_unix_ns = await leases.now_unix_ns(session, self.clock)
                    for lease in held:
                        await leases.renew(session, lease, duration_s=self.duration_s, now_unix_ns=now_unix_ns)
            except Aborted:
                raise
            except Unavailable:
                pass
            except Exception:
                log.exception("cannot renew the leases; trying again")
            else:
                if patience.expired():
                    return  # too late: the block is being cancelled
                patience.reschedule(begun_s + self.give_up_s)

    async def _release(self, held: Sequence[Lease]) -> None:
        try:
            async with asyncio.timeout(self.give_up_s / 2), self.database.write_unfenced() as session:
                for lease in held:
                    await leases.release(session, lease)
        except Exception as error:
            bug = not isinstance(error, Unavailable | TimeoutError)
            log.warning("cannot release the leases; they expire by themselves", exc_info=bug)
