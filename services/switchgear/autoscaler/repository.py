"""What is written about services and replicas: every write takes a revision, and whoever listens is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from sqlalchemy.ext.asyncio import AsyncSession

from switchgear.autoscaler import store
from switchgear.autoscaler.model import ReplicaRecord, ReplicaState, ServiceRecord
from switchgear.autoscaler.replicas import ENDED_MAX
from switchgear.core.clock import Clock
from switchgear.core.errors import AlreadyExists, NotFound, Reason, ResourceExhausted
from switchgear.store.database import Database
from switchgear.store.feed import ChangeFeed
from switchgear.store.revisions import current_revision, lock_revision, next_revision

#: Every pass looks at all services, and every routing table has them all.
SERVICES_MAX = 1000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All services in name order and all replicas, those of a service together and oldest first, at a revision."""

    revision: int
    services: tuple[ServiceRecord, ...]
    replicas: tuple[ReplicaRecord, ...]

    def by_service(self) -> dict[str, list[ReplicaRecord]]:
        found: dict[str, list[ReplicaRecord]] = {service.name: [] for service in self.services}
        for one in self.replicas:
            found[one.service].append(one)
        return found


@dataclass(slots=True)
class Transaction:
    """One write. Nobody else writes while it is open, so what it reads stays true."""

    session: AsyncSession
    revision: int
    now_unix_ns: int

    async def snapshot(self) -> Snapshot:
        return await _snapshot(self.session, self.revision)

    async def service(self, name: str) -> ServiceRecord:
        """Raises NotFound."""
        service = await store.get_service(self.session, name)
        if service is None:
            raise NotFound(name)
        return service

    async def add_service(self, service: ServiceRecord) -> ServiceRecord:
        """Raises AlreadyExists, and ResourceExhausted when there are too many."""
        if existing := await store.get_service(self.session, service.name):
            remedy = (
                "is being deleted; wait until it is gone" if existing.deleting else "exists already; choose another id"
            )
            raise AlreadyExists(f"{service.name} {remedy}", Reason.ALREADY_EXISTS, name=service.name)
        if await store.count_services(self.session) >= SERVICES_MAX:
            raise ResourceExhausted(
                f"there are {SERVICES_MAX} inference services, which is the limit; delete some",
                Reason.LIMIT_EXCEEDED,
                limit=str(SERVICES_MAX),
            )
        number = await store.last_number(self.session, service.name)
        return await self.put_service(replace(service, last_number=number))

    async def put_service(self, service: ServiceRecord) -> ServiceRecord:
        after = replace(service, revision=await self._next())
        await store.save_service(self.session, after)
        return after

    async def put_replica(self, replica: ReplicaRecord) -> None:
        """Write its service after it: watchers of services learn so how many are READY."""
        revision = await self._next()
        begins = replica.state is ReplicaState.DRAINING and not replica.drain_revision
        after = replace(replica, revision=revision, drain_revision=revision if begins else replica.drain_revision)
        await store.save_replica(self.session, after)
        if after.ended:
            await store.forget_ended_replicas(self.session, after.service, ENDED_MAX)

    async def delete_service(self, service: ServiceRecord) -> None:
        await store.delete_service(self.session, service, await self._next())

    async def _next(self) -> int:
        self.revision = await next_revision(self.session, store.SERVICE)
        return self.revision


@dataclass(slots=True)
class Repository:
    """The autoscaler's view of the database."""

    database: Database
    clock: Clock
    feed: ChangeFeed = field(init=False)
    #: Called after each write has been committed.
    listeners: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.feed = ChangeFeed(self.database, store.SERVICE)
        self.listeners.append(self.feed.changed)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Transaction]:
        async with self.database.write() as session:
            revision = await lock_revision(session, store.SERVICE)
            transaction = Transaction(session, revision, self.clock.unix_ns())
            yield transaction
        if transaction.revision != revision:
            for listener in self.listeners:
                listener()

    async def snapshot(self, known: Snapshot | None = None) -> Snapshot:
        """All that is stored now; `known` itself when it is still that."""
        async with self.database.read() as session:
            revision = await current_revision(session, store.SERVICE)
            if known is not None and known.revision == revision:
                return known
            return await _snapshot(session, revision)


async def _snapshot(session: AsyncSession, revision: int) -> Snapshot:
    services = await store.services_after_name(session, "")
    return Snapshot(revision, tuple(services), tuple(await store.all_replicas(session)))
