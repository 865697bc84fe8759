"""The scheduler's records in memory: of ten thousand nodes and as many jobs a pass reads only what was written since the one before."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncSession

from switchgear.scheduler import rules_store, store
from switchgear.scheduler.decide import FINISH_GRACE_S, Snapshot
from switchgear.scheduler.model import JobRecord, NodeRecord, Rules
from switchgear.store.revisions import current_revisions

#: Rows of one read; a changed record is read again with the next one.
_ROWS_MAX = 100_000


class RecordCache:
    """All nodes, the jobs that count, and the rules. What of it is old is told by counters that are written together with what they count."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self.clear()

    def clear(self) -> None:
        """The next snapshot is read anew."""
        self._revision = self._rules_revision = self._deletions = -1
        self._nodes: dict[str, NodeRecord] = {}
        self._jobs: dict[str, JobRecord] = {}
        self._rules = Rules()

    def seen(self, last_seen_unix_ns: Mapping[str, int]) -> None:
        """When nodes were last heard, which is written without a revision."""
        for name, time_unix_ns in last_seen_unix_ns.items():
            if node := self._nodes.get(name):
                self._nodes[name] = replace(node, last_seen_unix_ns=time_unix_ns)

    async def snapshot(self, session: AsyncSession, now_unix_ns: int) -> tuple[int, Snapshot]:
        """All that counts, as committed; at least as new as what the session sees. session: nothing was written in it yet."""
        async with self._lock:
            # Counters first: what is written before the rows are read is read again with the next snapshot, and nothing is missed.
            counters = store.SERVICE, store.RULES, store.DELETIONS
            revision, rules_revision, deletions = await current_revisions(session, *counters)
            if revision > self._revision:
                await self._read(session, now_unix_ns)
                self._revision = revision
            if deletions > self._deletions:
                left = await store.node_names(session)
                self._nodes = {name: node for name, node in self._nodes.items() if name in left}
                self._deletions = deletions
            if rules_revision > self._rules_revision:
                self._rules = await rules_store.load_rules(session)
                self._rules_revision = rules_revision
            rules = self._rules
            since_unix_ns = now_unix_ns - int(FINISH_GRACE_S * 1e9)
            self._jobs = {
                name: job
                for name, job in self._jobs.items()
                if job.end_time_unix_ns is None or job.end_time_unix_ns > since_unix_ns
            }
            waited_for = {one.job for job in self._jobs.values() if not job.ended for one in job.turn.waits_for}
            if gone := waited_for - self._jobs.keys():
                rules = replace(rules, ended=await rules_store.states_of(session, gone))
            return self._revision, Snapshot(tuple(self._nodes.values()), tuple(self._jobs.values()), rules)

    async def _read(self, session: AsyncSession, now_unix_ns: int) -> None:
        if self._revision < 0:
            since_unix_ns = now_unix_ns - int(FINISH_GRACE_S * 1e9)
            nodes = await store.nodes_after_name(session, "")
            jobs = await store.jobs_ended_after(session, since_unix_ns)
        else:
            nodes = await store.nodes_after_revision(session, self._revision, _ROWS_MAX)
            jobs = await store.jobs_after_revision(session, self._revision, _ROWS_MAX)
        self._nodes.update((node.name, node) for node in nodes)
        self._jobs.update((job.name, job) for job in jobs)
