"""Nodes whose agents are expected to speak, in memory and in the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

log = logging.getLogger(__name__)

#: In one transaction. A fleet that comes for the first time is stored in a few.
BATCH_MAX = 1000
_RETRY_S = 0.5


class ExpectedNodes:
    """New ones are stored soon, many at a time: no stream waits for the database before its samples count.

    save: stores nodes in one transaction, those that are there already too.
    """

    def __init__(self, save: Callable[[Sequence[str]], Awaitable[None]]) -> None:
        self._save = save
        self.nodes: set[str] = set()
        self._new: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()

    def stored(self, nodes: Iterable[str]) -> None:
        """These are in the store."""
        self.nodes.update(nodes)

    def add(self, node: str) -> None:
        if node not in self.nodes:
            self.nodes.add(node)
            self._new[node] = None
            self._wake.set()

    def discard(self, node: str) -> None:
        self.nodes.discard(node)
        self._new.pop(node, None)

    async def save_new(self) -> None:
        """Returns when all that were added before are in the store. Raises what the store raises."""
        async with self._turn:
            while batch := list(self._new)[:BATCH_MAX]:
                await self._save(batch)
                for node in batch:
                    self._new.pop(node, None)

    async def run(self) -> None:
        """Stores what is added, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self.save_new()
            except Exception:
                log.exception("cannot store which nodes are here; trying again")
                self._wake.set()
                await asyncio.sleep(_RETRY_S)
