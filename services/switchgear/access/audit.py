"""The audit log's way into the store.

A change is written before its caller hears that it was made. A crash between the change's own commit and that write loses the
entry, and the caller has no answer then. Refusals are counted in memory and written once a second; a crash loses the last of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from switchgear.access import store
from switchgear.access.model import Entry
from switchgear.core.clock import Clock
from switchgear.core.errors import Reason, ResourceExhausted, Unavailable
from switchgear.store.database import Database

log = logging.getLogger(__name__)

#: Changes that wait for the store; then changes are refused until it keeps up.
WAITING_MAX = 1000
#: Kinds of refusals in a window, each with a line of its own; what comes beyond shares one line. Of callers whom nobody knows there
#: are as many as there are addresses, so these share a bound; of actors there are no more than tokens and nodes.
ANONYMOUS_KINDS_MAX = 200
HOST_KINDS_MAX = 5
ACTOR_KINDS_MAX = 20
#: So long refusals of a kind count on the same line.
WINDOW_S = 60.0
FLUSH_S = 1.0
PRUNE_S = 60.0
#: A store that takes longer is down: the caller is told so instead of waiting.
WRITE_TIMEOUT_S = 10.0


class _Refusals:
    """Refusals of one kind in one window. unwritten: how many the store does not know; ordinal: of its line there."""

    __slots__ = ("first", "ordinal", "unwritten")

    def __init__(self, first: Entry) -> None:
        self.first, self.unwritten, self.ordinal = first, 0, 0


class AuditLog:
    """Of one process and event loop. `run` writes; what is left when it is cancelled is for `flush`.

    It writes under no lease: what has happened is true whoever acts now, and the last entries come when the leases are released.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._waiting: list[tuple[Entry, asyncio.Future[None]]] = []
        self._refusals: dict[tuple[str, ...], _Refusals] = {}
        #: How many of them there are of an actor, of a host, and of all hosts.
        self._kinds = Counter[tuple[str, ...]]()
        self._window_s = clock.monotonic_s()
        self._wake = asyncio.Event()
        self._flushing = asyncio.Lock()

    def require_room(self) -> None:
        """Before a change is made. Raises ResourceExhausted when too many entries wait for the store."""
        if len(self._waiting) >= WAITING_MAX:
            raise ResourceExhausted(
                "the audit log is behind; try again in a moment", Reason.LIMIT_EXCEEDED, limit=str(WAITING_MAX)
            )

    def put(self, entry: Entry) -> asyncio.Future[None]:
        """Queues an entry; the future is done once it is stored, and fails when it could not be."""
        stored = asyncio.get_running_loop().create_future()
        stored.add_done_callback(lambda done: done.cancelled() or done.exception())  # its caller may be gone
        self._waiting.append((entry, stored))
        self._wake.set()
        return stored

    async def write(self, entry: Entry) -> None:
        """Returns once the entry is stored. Raises Unavailable when it cannot be."""
        try:
            await asyncio.wait_for(self.put(entry), WRITE_TIMEOUT_S)
        except Exception as error:
            raise Unavailable(
                "it was done, but the audit log could not be written; send the same request with the same request_id again",
                Reason.DATABASE_UNUSABLE,
            ) from error

    def refuse(self, entry: Entry) -> None:
        """Counts somebody who was not let in.

        An entry without an actor has nothing in its method that the caller could choose: else one caller would have as many kinds
        as it likes, and hide the others.
        """
        kind: tuple[str, ...] = (entry.actor, entry.peer, entry.method, entry.outcome)
        if entry.actor:
            kind += (entry.resource, entry.message)
        for group in _groups(kind):
            bound = _bound(group)
            if kind not in self._refusals and self._kinds[group] >= bound:
                message = f"more than {bound} kinds of refused calls within {WINDOW_S:.0f} s; these are the others"
                peer = "".join(group[1:])
                kind, entry = group, replace(entry, method="", resource="", message=message, peer=peer, trace_id="")
        if kind not in self._refusals:
            self._refusals[kind] = _Refusals(entry)
            self._kinds.update(_groups(kind))
        self._refusals[kind].unwritten += entry.count

    async def run(self) -> None:
        """Writes until cancelled."""
        prune_s = self._clock.monotonic_s() + PRUNE_S
        while True:
            try:
                async with asyncio.timeout(FLUSH_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            try:
                await self.flush()
                if self._clock.monotonic_s() >= prune_s:
                    prune_s = self._clock.monotonic_s() + PRUNE_S
                    async with self._database.write_unfenced() as session:
                        await store.prune(session)
            except Exception:
                log.exception("cannot write the audit log; trying again")
                await asyncio.sleep(FLUSH_S)

    async def flush(self) -> None:
        """Stores all that waits. Raises what the store raises; refusals stay counted then, and `write` has told its callers."""
        async with self._flushing:
            self._wake.clear()
            batch, self._waiting = self._waiting, []
            refusals = [(kind, kind.unwritten) for kind in self._refusals.values() if kind.unwritten]
            if not batch and not refusals:
                return
            try:
                await self._store([entry for entry, _ in batch], refusals)
            except asyncio.CancelledError:
                self._waiting[:0] = batch
                raise
            except Exception as error:
                for entry, stored in batch:
                    log.error("not in the audit log: %s", entry)
                    if not stored.done():
                        stored.set_exception(Unavailable(str(error), Reason.DATABASE_UNUSABLE))
                raise
            for _, stored in batch:
                if not stored.done():
                    stored.set_result(None)
            self._end_window()

    async def _store(self, entries: Sequence[Entry], refusals: Sequence[tuple[_Refusals, int]]) -> None:
        new = [(kind, count) for kind, count in refusals if not kind.ordinal]
        async with self._database.write_unfenced() as session:
            firsts = [replace(kind.first, count=count) for kind, count in new]
            ordinals = await store.add_entries(session, [*entries, *firsts])
            for kind, count in refusals:
                if kind.ordinal:
                    await store.count_more(session, kind.ordinal, count)
        for kind, count in refusals:
            kind.unwritten -= count
        for (kind, _), ordinal in zip(new, ordinals[len(entries) :], strict=True):
            kind.ordinal = ordinal

    def _end_window(self) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - self._window_s >= WINDOW_S:
            self._window_s = now_s
            self._refusals = {key: kind for key, kind in self._refusals.items() if kind.unwritten}
            self._kinds = Counter(group for key in self._refusals for group in _groups(key))


def _groups(kind: tuple[str, ...]) -> Sequence[tuple[str, ...]]:
    """Whose bounds a kind counts towards, narrowest first: an actor's, or a host's and that of all hosts."""
    if kind[0] or len(kind) == 1:
        return [kind[:1]]
    return [kind[:2], kind[:1]]


def _bound(group: tuple[str, ...]) -> int:
    if group[0]:
        return ACTOR_KINDS_MAX
    return ANONYMOUS_KINDS_MAX if len(group) == 1 else HOST_KINDS_MAX
