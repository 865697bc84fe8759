"""The scheduler's loop: observe, decide, write down, command."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from switchgear.core.errors import Unavailable
from switchgear.scheduler.decide import Decisions, Snapshot, decide, wanted
from switchgear.scheduler.engines.base import Engine
from switchgear.scheduler.model import Observation
from switchgear.scheduler.repository import Repository
from switchgear.scheduler.warm import warm_kinds

log = logging.getLogger(__name__)

#: When nodes were last heard is for people: not every heartbeat is worth a write to the disk.
LAST_SEEN_INTERVAL_S = 5.0
RETRY_DELAY_S = 1.0


class Reconciler:
    """Makes the stored nodes and jobs agree with what the engine sees, and the engine run what is stored.

    wake: set by whoever changes something, so that the next pass comes at once.
    interval_s: the longest time between two passes: silence and the grace of ended jobs come by time alone.
    seen: called with what each pass leaves behind.
    """

    def __init__(
        self,
        repository: Repository,
        engine: Engine,
        wake: asyncio.Event,
        *,
        interval_s: float,
        seen: Callable[[Snapshot], None],
    ) -> None:
        self._repository = repository
        self._engine = engine
        self._wake = wake
        self._interval_s = interval_s
        self._seen = seen
        self._settled: tuple[int, Observation] | None = None
        self._last_seen_s = repository.clock.monotonic_s()

    async def run(self) -> None:
        """Runs until cancelled; a pass that fails is logged and tried again."""
        while True:
            self._wake.clear()
            try:
                await self.reconcile()
                await self._save_last_seen()
            except Exception as error:
                if not isinstance(error, Unavailable):  # the database has told of its outage
                    log.exception("a pass of the scheduler failed; trying again")
                await asyncio.sleep(RETRY_DELAY_S)
                continue
            try:
                # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the wake-up.
                async with asyncio.timeout(self._interval_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def reconcile(self) -> None:
        """One pass. Nothing happens in a second one unless something has changed."""
        observed = self._engine.observe()
        if self._settled == (await self._repository.revision(), observed):
            return
        revision, snapshot = await self._repository.snapshot()
        decisions = decide(snapshot, observed, self._repository.clock.unix_ns())
        changes = bool(decisions)
        if changes:
            # Decided anew on what nobody else can change meanwhile: a person may have cordoned a node just now, and a launcher that
            # has just been started must not be overlooked.
            async with self._repository.write() as transaction:
                fresh = await transaction.snapshot()
                decisions = decide(fresh, self._engine.observe(), transaction.now_unix_ns)
                for name in sorted(decisions.forgotten):
                    await transaction.forget_node(name)
                for node in decisions.nodes:
                    await transaction.put_node(node)
                for job in decisions.jobs:
                    await transaction.put_job(job)
            revision, snapshot = await self._repository.snapshot()
            _tell(decisions)
        self._seen(snapshot)
        self._engine.want(wanted(snapshot.jobs), warm_kinds(snapshot))
        # What was written may allow more (a node is back for a job that had excluded it), and a job that has just ended
        # changes what is wanted by the passing of time alone.
        restless = changes or any(job.ended for job in snapshot.jobs)
        self._settled = None if restless else (revision, observed)

    async def _save_last_seen(self) -> None:
        now_s = self._repository.clock.monotonic_s()
        if now_s - self._last_seen_s >= LAST_SEEN_INTERVAL_S:
            self._last_seen_s = now_s
            if heard := self._engine.last_heard():
                await self._repository.save_last_seen(heard)


def _tell(decisions: Decisions) -> None:
    for name in sorted(decisions.forgotten):
        log.info("node forgotten", extra={"node": name})
    for node in decisions.nodes:
        log.info("node", extra={"node": node.name, "state": node.state.value, "reason": node.reason})
    for job in decisions.jobs:
        log.info(
            "job",
            extra={"job": job.name, "state": job.state.value, "epoch": job.placement.epoch, "reason": job.message},
        )
