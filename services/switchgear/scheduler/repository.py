"""What is written about nodes and jobs: every write takes a revision, and whoever listens is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from sqlalchemy.ext.asyncio import AsyncSession

from switchgear.core.clock import Clock
from switchgear.core.errors import AlreadyExists, NotFound, Reason, ResourceExhausted
from switchgear.planner.model import Policy
from switchgear.scheduler import evidence_store, rules_store, store
from switchgear.scheduler import jobs as job_life
from switchgear.scheduler.cache import RecordCache
from switchgear.scheduler.decide import Snapshot
from switchgear.scheduler.model import AttemptRecord, EndedRun, JobRecord, NodeRecord, NodeState, Rules
from switchgear.scheduler.planning import gpus_of, key_of
from switchgear.scheduler.store import SERVICE
from switchgear.store.database import Database
from switchgear.store.feed import ChangeFeed
from switchgear.store.revisions import current_revision, lock_revision, next_revision, next_revisions

#: Every pass of the scheduler reads all jobs that have not ended.
JOBS_ALIVE_MAX = 10_000
#: History for people; a year of a job every hour.
JOBS_ENDED_MAX = 10_000


@dataclass(slots=True)
class Transaction:
    """One write. Nobody else writes while it is open, so what it reads stays true."""

    session: AsyncSession
    revision: int
    now_unix_ns: int
    cache: RecordCache
    half_life_s: float
    with_news: Callable[[Rules], Rules]
    #: Jobs that were written: as they were, None when they were created, and as they are.
    jobs_changed: list[tuple[JobRecord | None, JobRecord]] = field(default_factory=list)

    async def node(self, name: str) -> NodeRecord:
        """Raises NotFound."""
        node = await store.get_node(self.session, name)
        if node is None:
            raise NotFound(name)
        return node

    async def job(self, name: str) -> JobRecord:
        """Raises NotFound."""
        job = await store.get_job(self.session, name)
        if job is None:
            raise NotFound(name)
        return job

    async def snapshot(self) -> Snapshot:
        """All that counts now. Before anything is written in this transaction."""
        snapshot = (await self.cache.snapshot(self.session, self.now_unix_ns))[1]
        return replace(snapshot, rules=self.with_news(snapshot.rules))

    async def put_node(self, node: NodeRecord, *, healthy_anew: bool = False) -> NodeRecord:
        """Writes the node, if it differs from what is stored, and answers with it as stored.

        healthy_anew: whoever excluded it may have it again, although it may have been HEALTHY all the time.
        """
        before = await store.get_node(self.session, node.name)
        if node == before and not healthy_anew:
            return node
        if before and node.standing is NodeState.HEALTHY and before.standing is not NodeState.HEALTHY:
            await evidence_store.forgive(self.session, node.name)
            await self.rules_changed()
        return await self._write_node(before, node, healthy_anew=healthy_anew)

    async def forget_node(self, name: str) -> None:
        """Deletes the node; if its agent comes back, it is a new one."""
        await store.delete_node(self.session, name)
        await next_revision(self.session, store.DELETIONS)
        await self.next_revision()

    async def put_job(self, job: JobRecord) -> JobRecord:
        """Writes the job, if it differs from what is stored, and the nodes whose GPUs it takes or frees."""
        before = await store.get_job(self.session, job.name)
        if job == before:
            return job
        job = job_life.timed(before, job, self.now_unix_ns)
        revision = await self.next_revision()
        after = replace(job, revision=revision, create_revision=job.create_revision or revision)
        await store.save_job(self.session, after)
        self.jobs_changed.append((before, after))
        held, holds = _holding(before), _holding(after)
        for name in sorted({*held, *holds}):
            node = await store.get_node(self.session, name)
            if node is not None and held.get(name) != holds.get(name):
                await self._write_node(node, node)
        if after.ended and not (before and before.ended):
            await self._book_end(after)
            await store.forget_ended_jobs(self.session, JOBS_ENDED_MAX)
        return after

    async def _book_end(self, job: JobRecord) -> None:
        spec, ran_s = job.spec, job.turn.ran_s(self.now_unix_ns)
        if ran_s > 0:
            run = EndedRun(
                spec.user, key_of(spec), spec.queue, gpus_of(job), ran_s, self.now_unix_ns, job.create_time_unix_ns
            )
            await rules_store.book_end(self.session, job, run, self.half_life_s)
            await next_revision(self.session, store.RULES)

    async def add_attempt(self, told: AttemptRecord) -> None:
        if await evidence_store.add_attempt(self.session, told, self.now_unix_ns):
            await self.rules_changed()

    async def rules_changed(self) -> None:
        """What `rules_store` reads was written; the next pass goes by it."""
        await next_revision(self.session, store.RULES)
        await self.next_revision()

    async def put_jobs(self, jobs: Sequence[JobRecord], known: Snapshot) -> list[JobRecord]:
        """As `put_job` for each, in a few statements. known: what `snapshot` answered in this transaction, with all of them."""
        before = {job.name: job for job in known.jobs}
        nodes = {node.name: node for node in known.nodes}
        timed = [job_life.timed(before[job.name], job, self.now_unix_ns) for job in jobs if job != before[job.name]]
        touched = sorted(
            {
                name
                for job in timed
                for held, holds in [(_holding(before[job.name]), _holding(job))]
                for name in {*held, *holds}
                if name in nodes and held.get(name) != holds.get(name)
            }
        )
        if not timed:
            return []
        revisions = iter(await next_revisions(self.session, SERVICE, len(timed) + len(touched)))
        written = [replace(job, revision=next(revisions)) for job in timed]
        await store.update_jobs(self.session, written)
        await store.update_nodes(self.session, [replace(nodes[name], revision=next(revisions)) for name in touched])
        self.revision += len(timed) + len(touched)
        for job in written:
            self.jobs_changed.append((before[job.name], job))
            if job.ended:
                await self._book_end(job)
        if any(job.ended for job in written):
            await store.forget_ended_jobs(self.session, JOBS_ENDED_MAX)
        return written

    async def add_job(self, job: JobRecord) -> JobRecord:
        """Raises AlreadyExists, and ResourceExhausted when too many jobs have not ended."""
        if await store.get_job(self.session, job.name) is not None:
            raise AlreadyExists(
                f"{job.name} exists already; choose another job_id or leave it out",
                Reason.ALREADY_EXISTS,
                name=job.name,
            )
        if await store.count_jobs_alive(self.session) >= JOBS_ALIVE_MAX:
            raise ResourceExhausted(
                f"{JOBS_ALIVE_MAX} jobs have not ended yet; wait or cancel some",
                Reason.LIMIT_EXCEEDED,
                limit=str(JOBS_ALIVE_MAX),
            )
        return await self.put_job(job)

    async def _write_node(
        self, before: NodeRecord | None, node: NodeRecord, *, healthy_anew: bool = False
    ) -> NodeRecord:
        revision = await self.next_revision()
        healthy_anew |= node.state is NodeState.HEALTHY and (before is None or before.state is not NodeState.HEALTHY)
        after = replace(node, revision=revision, healthy_revision=revision if healthy_anew else node.healthy_revision)
        await store.save_node(self.session, after)
        return after

    async def next_revision(self) -> int:
        """For a write of something else."""
        self.revision = await next_revision(self.session, SERVICE)
        return self.revision


@dataclass(slots=True)
class Repository:
    """The scheduler's view of the database."""

    database: Database
    clock: Clock
    policy: Policy = field(default_factory=Policy)
    cache: RecordCache = field(default_factory=RecordCache)
    #: Adds what is known of nodes now and stored nowhere.
    with_news: Callable[[Rules], Rules] = lambda rules: rules
    feed: ChangeFeed = field(init=False)
    #: Called after each write has been committed.
    listeners: list[Callable[[], None]] = field(default_factory=list)
    #: Called for each job of such a write with what it was, what it is, and when.
    job_listeners: list[Callable[[JobRecord | None, JobRecord, int], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.feed = ChangeFeed(self.database, SERVICE)
        self.listeners.append(self.feed.changed)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Transaction]:
        async with self.database.write() as session:
            revision = await lock_revision(session, SERVICE)
            transaction = Transaction(
                session, revision, self.clock.unix_ns(), self.cache, self.policy.half_life_s, self.with_news
            )
            yield transaction
        if transaction.revision != revision:
            for before, after in transaction.jobs_changed:
                for job_listener in self.job_listeners:
                    job_listener(before, after, transaction.now_unix_ns)
            for listener in self.listeners:
                listener()

    async def snapshot(self) -> tuple[int, Snapshot]:
        """All that counts now, with its revision."""
        async with self.database.read() as session:
            revision, snapshot = await self.cache.snapshot(session, self.clock.unix_ns())
        return revision, replace(snapshot, rules=self.with_news(snapshot.rules))

    async def revision(self) -> int:
        async with self.database.read() as session:
            return await current_revision(session, SERVICE)

    async def save_last_seen(self, last_seen_unix_ns: Mapping[str, int]) -> None:
        """Writes when nodes were last heard, without a revision."""
        async with self.write() as transaction:
            await store.save_last_seen(transaction.session, last_seen_unix_ns)
        self.cache.seen(last_seen_unix_ns)


def _holding(job: JobRecord | None) -> dict[str, tuple[int, ...]]:
    if job is None or job.ended:
        return {}
    return {seat.node: seat.gpu_indices for seat in job.placement.nodes}
