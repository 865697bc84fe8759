"""Nodes that a run had to give up, closed in Slurm, or the command for it told, as the operator's policy has it."""

from __future__ import annotations

import asyncio
import logging
import shlex
from collections.abc import Callable

from switchgear.core.errors import SwitchgearError, Unavailable
from switchgear.core.modes import Mode
from switchgear.core.text import printable
from switchgear.slurm.client import Slurm

log = logging.getLogger(__name__)

PREFIX = "switchgear: "
#: As much as `sinfo -R` shows in a wide terminal; the whole story is in the run's own output.
REASON_LENGTH_MAX = 160
#: What draining may take at the end of a run: the programs of Slurm wait 10 s for a controller.
FINISH_S_MAX = 25.0
#: A controller that does not answer is asked again so much later.
RETRY_S = 5.0


def reason_of(why: str) -> str:
    """As Slurm is to show it."""
    return PREFIX + printable(why)[: REASON_LENGTH_MAX - len(PREFIX)].strip()


def command_of(node: str, why: str) -> str:
    """What an operator types."""
    return f"scontrol update nodename={shlex.quote(node)} state=drain reason={shlex.quote(reason_of(why))}"


class Drains:
    """Takes nodes at once and drains them one by one, since a controller that is away takes seconds to say nothing."""

    def __init__(self, slurm: Slurm, mode: Mode, tell: Callable[[str], None]) -> None:
        self._slurm, self._mode, self._tell = slurm, mode, tell
        #: Slurm's names of the nodes, and why; no more than the allocation has.
        self.nodes: dict[str, str] = {}
        self._done: set[str] = set()
        self._news = asyncio.Event()
        self._draining = asyncio.Lock()

    def put(self, node: str, why: str) -> None:
        if node and node not in self.nodes:
            self.nodes[node] = why
            self._news.set()

    async def run(self) -> None:
        """Drains what comes, as soon as Slurm answers; until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            while not await self._drain_all():  # noqa: ASYNC110  # nobody tells when Slurm is back
                await asyncio.sleep(RETRY_S)

    async def finish(self) -> None:
        """What is not drained yet, as far as Slurm answers in time."""
        try:
            async with asyncio.timeout(FINISH_S_MAX):
                await self._drain_all()
        except TimeoutError:
            pass
        for node in self.nodes.keys() - self._done:
            self._tell(f"switchgear: Slurm does not answer; advice: {command_of(node, self.nodes[node])}")

    async def _drain_all(self) -> bool:
        """False when Slurm did not answer for one of them."""
        async with self._draining:
            for node in [node for node in self.nodes if node not in self._done]:
                try:
                    await self._drain(node, self.nodes[node])
                except Unavailable:
                    return False
                self._done.add(node)
            return True

    async def _drain(self, node: str, why: str) -> None:
        """Raises Unavailable when Slurm does not answer."""
        if self._mode is Mode.OBSERVE:
            return
        if self._mode is Mode.ADVISE:
            self._tell(f"switchgear: advice: {command_of(node, why)}")
            return
        try:
            if any(found.name == node and found.is_drained for found in await self._slurm.nodes([node])):
                return  # whoever did that has a reason of their own
            await self._slurm.drain(node, reason_of(why))
            self._tell(f"switchgear: {node} is drained: {reason_of(why)}")
        except Unavailable:
            raise
        except SwitchgearError as error:
            self._tell(f"switchgear: {node} cannot be drained ({error.message}); advice: {command_of(node, why)}")
