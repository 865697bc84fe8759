"""The scheduler's loop: observe, decide, write down, command."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from switchgear.core.errors import Unavailable
from switchgear.scheduler.decide import Decisions, Planned, Snapshot, decide, upheld, wanted
from switchgear.scheduler.engines.base import Engine
from switchgear.scheduler.model import JobRecord, JobState, Observation
from switchgear.scheduler.planning import View
from switchgear.scheduler.repository import Repository
from switchgear.scheduler.turns import due_unix_ns
from switchgear.scheduler.warm import warm_kinds

log = logging.getLogger(__name__)

#: When nodes were last heard is for people: not every heartbeat is worth a write to the disk.
LAST_SEEN_INTERVAL_S = 5.0
RETRY_DELAY_S = 1.0
#: While jobs wait: shares decay, waits grow long, and sentences about jobs that were left for later are written.
REPLAN_S = 10.0
#: A write does not hold up others for longer than a few tenths of a second.
JOBS_PER_WRITE_MAX = 200
#: A pass that took long is followed by as long a rest, up to this: what else the process does needs the processor too.
REST_S_MAX = 2.0


async def never() -> bool:
    return False


class Reconciler:
    """Makes the stored nodes and jobs agree with what the engine sees, and the engine run what is stored.

    wake: set by whoever changes something, so that the next pass comes at once.
    interval_s: the longest time between two passes: silence and the grace of ended jobs come by time alone.
    seen: called with what each pass leaves behind, and how long it took. decided: with each plan that starts or preempts somebody, in a thread.
    cordons_lost: see `Rules`.
    """

    def __init__(
        self,
        repository: Repository,
        engine: Engine,
        wake: asyncio.Event,
        *,
        interval_s: float,
        seen: Callable[[Snapshot, float], None],
        decided: Callable[[Planned], None] = lambda _: None,
        cordons_lost: Callable[[], Awaitable[bool]] = never,
    ) -> None:
        self._repository = repository
        self._engine = engine
        self._wake = wake
        self._interval_s = interval_s
        self._seen, self._decided, self._cordons_lost = seen, decided, cordons_lost
        self._settled: tuple[int, Observation] | None = None
        #: What is settled is looked at again then, whatever happens or does not.
        self._due_unix_ns = 0
        self._view = View(repository.policy)
        self._last_seen_s = repository.clock.monotonic_s()

    async def run(self) -> None:
        """Runs until cancelled; a pass that fails is logged and tried again."""
        self._repository.cache.clear()
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            try:
                start_s = loop.time()
                await self.reconcile()
                await self._save_last_seen()
                if (took_s := loop.time() - start_s) > self._interval_s / 2:
                    await asyncio.sleep(min(took_s, REST_S_MAX))
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
        """One pass. Nothing happens in a second one unless something has changed, or time has come for something."""
        observed, now_unix_ns = self._engine.observe(), self._repository.clock.unix_ns()
        if now_unix_ns < self._due_unix_ns and self._settled == (await self._repository.revision(), observed):
            return
        begin_s = asyncio.get_running_loop().time()
        revision, snapshot = await self._repository.snapshot()
        snapshot = replace(snapshot, rules=replace(snapshot.rules, cordons_lost=await self._cordons_lost()))
        read_revision = revision
        # In a thread: heartbeats are taken and calls answered while it thinks.
        decisions = await asyncio.to_thread(decide, snapshot, observed, now_unix_ns, self._view)
        before, restless = snapshot, False
        if decisions:
            decisions, planned_revision, revision = await self._write(decisions, snapshot, observed)
            # What came while it thought is still to be planned.
            restless = planned_revision != read_revision
            _, snapshot = await self._repository.snapshot()
            _tell(decisions)
            if decisions.planned and (decisions.planned.decisions.starts or decisions.planned.decisions.preemptions):
                await asyncio.to_thread(self._decided, decisions.planned)
        self._seen(snapshot, asyncio.get_running_loop().time() - begin_s)
        self._engine.want(wanted(snapshot.jobs, snapshot.nodes), warm_kinds(snapshot))
        # What was written may allow more (a node is back for a job that had excluded it), and a job that has just ended
        # changes what is wanted by the passing of time alone.
        restless |= _stirred(decisions, before) or any(job.ended for job in snapshot.jobs)
        self._settled = None if restless else (revision, observed)
        due = due_unix_ns(snapshot.jobs, snapshot.rules, now_unix_ns)
        waiting = any(job.state is JobState.PENDING for job in snapshot.jobs)
        replan = now_unix_ns + int(REPLAN_S * 1e9) if waiting else None
        self._due_unix_ns = min((time for time in (due, replan) if time is not None), default=1 << 63)

    async def _write(
        self, decisions: Decisions, snapshot: Snapshot, observed: Observation
    ) -> tuple[Decisions, int, int]:
        """Writes what still holds; answers with it, and with the revisions before and after it.

        In several transactions, between which others have their turn.
        """
        written: dict[str, JobRecord] = {}
        begin = end = 0
        for at in range(0, max(1, len(decisions.jobs)), JOBS_PER_WRITE_MAX):
            part = replace(decisions, jobs=decisions.jobs[at : at + JOBS_PER_WRITE_MAX])
            if at:
                part = replace(part, nodes=(), forgotten=frozenset())
            async with self._repository.write() as transaction:
                # Between two of ours somebody else may have written: that counts as if it had come before the first.
                begin = transaction.revision if transaction.revision != end else begin
                fresh = await transaction.snapshot()
                part = upheld(
                    part,
                    snapshot,
                    fresh,
                    seen_before=observed,
                    seen=self._engine.observe(),
                    written=written,
                )
                # Before the nodes: what is written of them here is what they are in the snapshot.
                written |= {job.name: job for job in await transaction.put_jobs(part.jobs, fresh)}
                for name in sorted(part.forgotten):
                    await transaction.forget_node(name)
                for node in part.nodes:
                    await transaction.put_node(node)
            end = transaction.revision
        return replace(decisions, jobs=tuple(written.values())), begin, end

    async def _save_last_seen(self) -> None:
        now_s = self._repository.clock.monotonic_s()
        if now_s - self._last_seen_s >= LAST_SEEN_INTERVAL_S:
            self._last_seen_s = now_s
            if heard := self._engine.last_heard():
                await self._repository.save_last_seen(heard)


def _stirred(decisions: Decisions, before: Snapshot) -> bool:
    """Whether more than sentences about jobs that wait was written, or some of what was decided did not hold any more."""
    jobs = {job.name: job for job in before.jobs}
    planned = decisions.planned.decisions if decisions.planned else None
    return bool(
        decisions.nodes
        or decisions.forgotten
        or (planned and (planned.starts or planned.preemptions))
        or any(job.state is not jobs[job.name].state or job.turn != jobs[job.name].turn for job in decisions.jobs)
    )


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
