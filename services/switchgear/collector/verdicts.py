"""Keeps the verdicts of all nodes: what happens to nodes goes into the table, and time ends what it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice

from sqlalchemy.ext.asyncio import AsyncSession

from switchgear.collector import health, health_store
from switchgear.collector.health import NodeHealth
from switchgear.collector.model import Event, Signal
from switchgear.core.clock import Clock
from switchgear.core.errors import NotFound, Unavailable
from switchgear.store.database import Database
from switchgear.store.feed import ChangeFeed

log = logging.getLogger(__name__)

_TICK_S = 0.5
#: Nodes that come at once are stored in one transaction; a fleet that comes for the first time in a few.
_BATCH_MAX = 1000
#: After as long the scheduler forgets a node too.
FORGET_S = 7 * 24 * 3600.0
_FORGET_EVERY_S = 60.0


class Verdicts:
    """own: whether this collector takes in `nodes/{node}`; of others only what the database shows is known here.

    feed: told of each change, once it is committed. cleared: told of what an operator ends: node, GPU and why.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        own: Callable[[str], bool],
        cleared: Callable[[str, int | None, str], None] = lambda *_: None,
    ) -> None:
        self._database, self._clock, self._own, self._cleared = database, clock, own, cleared
        self.feed = ChangeFeed(database, health_store.SERVICE)
        #: Nodes that were heard and whose rows do not know it yet: boot_id and epoch of the agent, or "" twice.
        self._heard: dict[str, tuple[str, str]] = {}
        self._turn = asyncio.Lock()

    def heard(self, node: str, boot_id: str = "", epoch: str = "") -> None:
        """The node's agent has come, or, without boot_id and epoch, somebody else tells of the node. Stored soon."""
        if boot_id or node not in self._heard:
            # As they are stored, or a longer one would look like another each time.
            self._heard[node] = (
                boot_id.replace("\0", "")[: health_store.IDS_CHARS_MAX],
                epoch.replace("\0", "")[: health_store.IDS_CHARS_MAX],
            )

    async def save_heard(self) -> None:
        """Returns when what was heard before is stored: an agent's boot is to be known before what happened in it. Raises what the store raises."""
        async with self._turn:
            while self._heard:
                await self._save(dict(islice(self._heard.items(), _BATCH_MAX)))

    async def raised(self, session: AsyncSession, found: Sequence[tuple[Event, Signal]]) -> None:
        """Signals that are new, oldest first, with their events, within the transaction that stores them. Call `changed` behind it."""
        by_node: dict[str, list[tuple[Event, Signal]]] = {}
        for event, signal in found:
            by_node.setdefault(event.node, []).append((event, signal))
        now = self._clock.unix_ns()
        await health_store.change(session, by_node, lambda one: _after(one, by_node, now), now)

    async def silent(self, session: AsyncSession, signals: Sequence[Signal]) -> None:
        """As `raised`, of NODE_SILENT."""
        by_node, now = {signal.node: signal for signal in signals}, self._clock.unix_ns()
        await health_store.change(session, by_node, lambda one: health.silent(one, by_node[one.node], now), now)

    async def clear(self, session: AsyncSession, node: str, gpu: int | None, why: str) -> NodeHealth:
        """Ends what is open on the node, or on one GPU. Call it in a `write` transaction and `changed` behind it. Raises NotFound."""
        now = self._clock.unix_ns()
        if await health_store.health_of(session, node) is None:
            raise NotFound(f"{node}/health", f"nothing is known of {node}; `switchgear health` lists all nodes")
        await health_store.change(session, [node], lambda one: health.cleared(one, gpu, why, now), now)
        self._cleared(node, gpu, why)
        found = await health_store.health_of(session, node)
        assert found is not None  # noqa: S101 - it was there in this transaction
        return found

    def changed(self) -> None:
        """A transaction with changes has been committed."""
        self.feed.changed()

    async def run(self) -> None:
        """Until cancelled."""
        restarted, forget_s = False, self._clock.monotonic_s()
        while True:
            restarted = restarted or await self._tried(self._restart)
            await self._tried(self.save_heard)
            await self._tried(self.expire)
            if self._clock.monotonic_s() >= forget_s:
                await self._tried(self.forget)
                forget_s = self._clock.monotonic_s() + _FORGET_EVERY_S
            await asyncio.sleep(_TICK_S)

    async def expire(self) -> None:
        """Ends what time has ended."""
        now = self._clock.unix_ns()
        async with self._database.read() as session:
            nodes = await health_store.expired(session, now)
        if not nodes:
            return
        async with self._database.write() as session:
            changed = await health_store.change(session, nodes, lambda one: health.passed(one, now), now)
        self._tell(changed)

    async def forget(self) -> None:
        """Drops nodes that have been silent for FORGET_S."""
        now = self._clock.unix_ns()
        async with self._database.write() as session:
            changed = await health_store.forget(session, now - round(FORGET_S * 1e9), now)
        self._tell(changed)

    async def _save(self, batch: Mapping[str, tuple[str, str]]) -> None:
        now = self._clock.unix_ns()
        async with self._database.write() as session:
            changed = await health_store.change(
                session, batch, lambda one: health.heard(one, *batch[one.node], now), now
            )
        for node, said in batch.items():
            if self._heard.get(node) == said:
                del self._heard[node]
        self._tell(changed)

    async def _restart(self) -> None:
        now = self._clock.unix_ns()
        async with self._database.read() as session:
            nodes = [node for node in await health_store.ailing(session) if self._own(node)]
        for begin in range(0, len(nodes), _BATCH_MAX):
            async with self._database.write() as session:
                part = nodes[begin : begin + _BATCH_MAX]
                changed = await health_store.change(session, part, lambda one: health.restarted(one, now), now)
            self._tell(changed)

    def _tell(self, changed: Sequence[NodeHealth]) -> None:
        if changed:
            self.feed.changed()

    async def _tried(self, step: Callable[[], Awaitable[None]]) -> bool:
        try:
            await step()
        except Unavailable as error:
            log.debug("cannot store what is known of nodes' health: %s", error)  # the database tells it itself, once
            return False
        except Exception:
            log.exception("cannot store what is known of nodes' health; trying again")
            return False
        return True


def _after(one: NodeHealth, by_node: Mapping[str, Sequence[tuple[Event, Signal]]], now_unix_ns: int) -> NodeHealth:
    for event, signal in by_node[one.node]:
        one = health.told(one, event, signal, now_unix_ns)
    return one
