"""The autoscaler's tables, and how its values go in and out of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import BigInteger, Boolean, Double, Integer, Select, String, Text, delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from switchgear.autoscaler.model import FINAL_STATES, ReplicaRecord, ReplicaState, ServiceRecord, ServiceSpec
from switchgear.autoscaler.scaling import Memory
from switchgear.store.base import Base, Json

SERVICE = "autoscaler"
#: Services whose last number is remembered after they were deleted: as many as the jobs that the scheduler remembers.
NUMBERS_MAX = 10_000

_SPEC = TypeAdapter(ServiceSpec)


class InferenceServiceRow(Base):
    __tablename__ = "inference_services"

    name: Mapped[str] = mapped_column(String(80), primary_key=True)
    spec: Mapped[Any] = mapped_column(Json)
    desired: Mapped[int] = mapped_column(Integer)
    advised: Mapped[int | None] = mapped_column(Integer)
    cause: Mapped[str] = mapped_column(String(16))
    decision: Mapped[str] = mapped_column(Text)
    decide_time_unix_ns: Mapped[int] = mapped_column(BigInteger)
    hindrance: Mapped[str] = mapped_column(Text)
    deleting: Mapped[bool] = mapped_column(Boolean)
    create_time_unix_ns: Mapped[int] = mapped_column(BigInteger)
    last_number: Mapped[int] = mapped_column(BigInteger)
    outdated_number: Mapped[int] = mapped_column(BigInteger, server_default="0")
    revision: Mapped[int] = mapped_column(BigInteger, index=True)


class ReplicaRow(Base):
    __tablename__ = "replicas"

    service: Mapped[str] = mapped_column(String(80), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(120))
    job: Mapped[str] = mapped_column(String(80))
    state: Mapped[str] = mapped_column(String(16))
    message: Mapped[str] = mapped_column(Text)
    node: Mapped[str] = mapped_column(String(80))
    address: Mapped[str] = mapped_column(Text)
    create_time_unix_ns: Mapped[int] = mapped_column(BigInteger)
    ready_time_unix_ns: Mapped[int | None] = mapped_column(BigInteger)
    drain_time_unix_ns: Mapped[int | None] = mapped_column(BigInteger)
    drain_revision: Mapped[int] = mapped_column(BigInteger)
    end_time_unix_ns: Mapped[int | None] = mapped_column(BigInteger)
    revision: Mapped[int] = mapped_column(BigInteger)


class ReplicaNumberRow(Base):
    """The newest number of a service that was deleted: one of the same name goes on from there."""

    __tablename__ = "replica_numbers"

    service: Mapped[str] = mapped_column(String(80), primary_key=True)
    last_number: Mapped[int] = mapped_column(BigInteger)
    revision: Mapped[int] = mapped_column(BigInteger, index=True)


class ScalingMemoryRow(Base):
    """What the live policy of a service has learned; no resource, so it has no revision."""

    __tablename__ = "scaling_memories"

    service: Mapped[str] = mapped_column(String(80), primary_key=True)
    policy: Mapped[str] = mapped_column(String(80))
    learned: Mapped[Any] = mapped_column(Json)
    now_s: Mapped[float] = mapped_column(Double)
    unix_s: Mapped[float] = mapped_column(Double)


async def get_service(session: AsyncSession, name: str) -> ServiceRecord | None:
    row = await session.get(InferenceServiceRow, name)
    return None if row is None else _service(row)


async def services_after_name(session: AsyncSession, after: str, limit: int | None = None) -> list[ServiceRecord]:
    """Services in name order."""
    query = select(InferenceServiceRow).where(InferenceServiceRow.name > after).order_by(InferenceServiceRow.name)
    return [_service(row) for row in await session.scalars(query.limit(limit))]


async def services_after_revision(session: AsyncSession, after: int, limit: int) -> list[ServiceRecord]:
    """Services in the order of their newest write."""
    changed = select(InferenceServiceRow).where(InferenceServiceRow.revision > after)
    rows = await session.scalars(changed.order_by(InferenceServiceRow.revision).limit(limit))
    return [_service(row) for row in rows]


async def count_services(session: AsyncSession) -> int:
    return await session.scalar(select(func.count()).select_from(InferenceServiceRow)) or 0


async def save_service(session: AsyncSession, service: ServiceRecord) -> None:
    await session.merge(
        InferenceServiceRow(
            name=service.name,
            spec=_SPEC.dump_python(service.spec, mode="json"),
            desired=service.desired,
            advised=service.advised,
            cause=service.cause,
            decision=service.decision,
            decide_time_unix_ns=service.decide_time_unix_ns,
            hindrance=service.hindrance,
            deleting=service.deleting,
            create_time_unix_ns=service.create_time_unix_ns,
            last_number=service.last_number,
            outdated_number=service.outdated_number,
            revision=service.revision,
        )
    )
    await session.flush()


async def delete_service(session: AsyncSession, service: ServiceRecord, revision: int) -> None:
    """Deletes a service with its replicas, and remembers its last number."""
    await session.execute(delete(ReplicaRow).where(ReplicaRow.service == service.name))
    await session.execute(delete(ScalingMemoryRow).where(ScalingMemoryRow.service == service.name))
    await session.execute(delete(InferenceServiceRow).where(InferenceServiceRow.name == service.name))
    await session.merge(ReplicaNumberRow(service=service.name, last_number=service.last_number, revision=revision))
    await session.flush()
    newest = select(ReplicaNumberRow.revision).order_by(ReplicaNumberRow.revision.desc())
    oldest_kept = await session.scalar(newest.offset(NUMBERS_MAX - 1).limit(1))
    if oldest_kept is not None:
        await session.execute(delete(ReplicaNumberRow).where(ReplicaNumberRow.revision < oldest_kept))


async def all_memories(session: AsyncSession) -> dict[str, Memory]:
    """By service."""
    rows = await session.scalars(select(ScalingMemoryRow))
    return {row.service: Memory(row.policy, row.learned, row.now_s, row.unix_s) for row in rows}


async def save_memory(session: AsyncSession, service: str, memory: Memory) -> None:
    await session.merge(
        ScalingMemoryRow(
            service=service, policy=memory.policy, learned=memory.learned, now_s=memory.now_s, unix_s=memory.unix_s
        )
    )


async def last_number(session: AsyncSession, service: str) -> int:
    """The newest number of a deleted service of that name; 0 when there was none."""
    row = await session.get(ReplicaNumberRow, service)
    return row.last_number if row else 0


async def get_replica(session: AsyncSession, service: str, number: int) -> ReplicaRecord | None:
    row = await session.get(ReplicaRow, (service, number))
    return None if row is None else _replica(row)


async def all_replicas(session: AsyncSession) -> list[ReplicaRecord]:
    """All that are kept, those of a service together, oldest first."""
    return await _replicas(session, select(ReplicaRow).order_by(ReplicaRow.service, ReplicaRow.number))


async def replicas_before(session: AsyncSession, service: str, number: int | None, limit: int) -> list[ReplicaRecord]:
    """Replicas of a service with a lower number, newest first; all when None."""
    query = select(ReplicaRow).where(ReplicaRow.service == service).order_by(ReplicaRow.number.desc()).limit(limit)
    return await _replicas(session, query if number is None else query.where(ReplicaRow.number < number))


async def ready_replicas(session: AsyncSession, services: Iterable[str]) -> dict[str, int]:
    """READY replicas by service; those that have none are left out."""
    counted = select(ReplicaRow.service, func.count()).where(
        ReplicaRow.state == ReplicaState.READY.value, ReplicaRow.service.in_(list(services))
    )
    rows = await session.execute(counted.group_by(ReplicaRow.service))
    return {service: int(count) for service, count in rows}


async def save_replica(session: AsyncSession, replica: ReplicaRecord) -> None:
    await session.merge(
        ReplicaRow(
            service=replica.service,
            number=replica.number,
            name=replica.name,
            job=replica.job,
            state=replica.state.value,
            message=replica.message,
            node=replica.node,
            address=replica.address,
            create_time_unix_ns=replica.create_time_unix_ns,
            ready_time_unix_ns=replica.ready_time_unix_ns,
            drain_time_unix_ns=replica.drain_time_unix_ns,
            drain_revision=replica.drain_revision,
            end_time_unix_ns=replica.end_time_unix_ns,
            revision=replica.revision,
        )
    )
    await session.flush()


async def forget_ended_replicas(session: AsyncSession, service: str, keep: int) -> None:
    """Deletes all ended replicas of a service but the newest."""
    ended = ReplicaRow.state.in_([state.value for state in FINAL_STATES])
    mine = select(ReplicaRow.number).where(ReplicaRow.service == service, ended)
    newest_to_go = await session.scalar(mine.order_by(ReplicaRow.number.desc()).offset(keep).limit(1))
    if newest_to_go is not None:
        old = ReplicaRow.number <= newest_to_go
        await session.execute(delete(ReplicaRow).where(ReplicaRow.service == service, ended, old))


async def _replicas(session: AsyncSession, query: Select[ReplicaRow]) -> list[ReplicaRecord]:
    rows: Sequence[ReplicaRow] = (await session.scalars(query)).all()
    return [_replica(row) for row in rows]


def _service(row: InferenceServiceRow) -> ServiceRecord:
    return ServiceRecord(
        name=row.name,
        spec=_SPEC.validate_python(row.spec),
        create_time_unix_ns=row.create_time_unix_ns,
        desired=row.desired,
        advised=row.advised,
        cause=row.cause,
        decision=row.decision,
        decide_time_unix_ns=row.decide_time_unix_ns,
        hindrance=row.hindrance,
        deleting=row.deleting,
        last_number=row.last_number,
        outdated_number=row.outdated_number,
        revision=row.revision,
    )


def _replica(row: ReplicaRow) -> ReplicaRecord:
    return ReplicaRecord(
        service=row.service,
        number=row.number,
        name=row.name,
        job=row.job,
        create_time_unix_ns=row.create_time_unix_ns,
        state=ReplicaState(row.state),
        message=row.message,
        node=row.node,
        address=row.address,
        ready_time_unix_ns=row.ready_time_unix_ns,
        drain_time_unix_ns=row.drain_time_unix_ns,
        drain_revision=row.drain_revision,
        end_time_unix_ns=row.end_time_unix_ns,
        revision=row.revision,
    )
