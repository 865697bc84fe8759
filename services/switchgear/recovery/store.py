"""Recovery's own tables: the state of each job as the machine left it, and its records for lists and watches."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import BigInteger, Boolean, String, delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from switchgear.core.errors import FailedPrecondition, Reason
from switchgear.recovery import model as m
from switchgear.recovery.ledger import Ledger
from switchgear.store.base import Base, Json
from switchgear.store.revisions import next_revision

log = logging.getLogger(__name__)

SERVICE = "recovery"
#: Records that are kept for each job; a job that fails more often than this has other worries than its history.
ATTEMPTS_MAX = 1000
INCIDENTS_MAX = 1000
CHECKPOINTS_MAX = 1000
#: Ended jobs that are kept with their records: as many as the scheduler keeps.
JOBS_ENDED_MAX = 10_000

_STATE = TypeAdapter(m.JobState)
_ATTEMPT = TypeAdapter(m.Attempt)
_INCIDENT = TypeAdapter(m.Incident)
_CHECKPOINT = TypeAdapter(m.Checkpoint)
_LEDGER = TypeAdapter(Ledger)


class RecoveryJobRow(Base):
    __tablename__ = "recovery_jobs"

    job: Mapped[str] = mapped_column(String(80), primary_key=True)
    state: Mapped[Any] = mapped_column(Json)
    #: Nothing is left to do: ended, and every call about it confirmed.
    ended: Mapped[bool] = mapped_column(Boolean, index=True)
    #: Null while the job has not ended.
    end_time_unix_ns: Mapped[int | None] = mapped_column(BigInteger, index=True)


class AttemptRow(Base):
    __tablename__ = "attempts"

    job: Mapped[str] = mapped_column(String(80), primary_key=True)
    generation: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    attempt: Mapped[Any] = mapped_column(Json)


class IncidentRow(Base):
    __tablename__ = "incidents"

    incident_id: Mapped[str] = mapped_column(String(80), primary_key=True)
    job: Mapped[str] = mapped_column(String(80), index=True)
    incident: Mapped[Any] = mapped_column(Json)
    create_revision: Mapped[int] = mapped_column(BigInteger, index=True, unique=True)
    revision: Mapped[int] = mapped_column(BigInteger, index=True)


class CheckpointRow(Base):
    __tablename__ = "checkpoints"

    job: Mapped[str] = mapped_column(String(80), primary_key=True)
    checkpoint_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    checkpoint: Mapped[Any] = mapped_column(Json)
    commit_time_unix_ns: Mapped[int] = mapped_column(BigInteger)


class CursorRow(Base):
    """How far a stream of another service has been dealt with."""

    __tablename__ = "recovery_cursors"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger)


def checkpoint_id(path: str) -> str:
    """A checkpoint's id in its resource name: the same for the same path."""
    return hashlib.sha256(path.encode()).hexdigest()[:16]


async def save(session: AsyncSession, state: m.JobState, records: Sequence[m.Effect]) -> None:
    """Writes the state and the records of one step, in one transaction."""
    over = state.phase is m.Phase.ENDED
    row = RecoveryJobRow(
        job=state.job,
        state=_STATE.dump_python(state, mode="json", exclude={"watches"}),
        ended=over and not state.outbox,
        end_time_unix_ns=state.end_ns if over else None,
    )
    await session.merge(row)
    for record in records:
        match record:
            case m.SaveAttempt(attempt):
                dumped = _ATTEMPT.dump_python(attempt, mode="json")
                await session.merge(AttemptRow(job=state.job, generation=attempt.generation, attempt=dumped))
                old = attempt.generation - ATTEMPTS_MAX
                await session.execute(
                    delete(AttemptRow).where(AttemptRow.job == state.job, AttemptRow.generation <= old)
                )
            case m.SaveIncident(incident):
                await _save_incident(session, incident)
            case m.SaveCheckpoint(checkpoint):
                await session.merge(
                    CheckpointRow(
                        job=state.job,
                        checkpoint_id=checkpoint_id(checkpoint.path),
                        checkpoint=_CHECKPOINT.dump_python(checkpoint, mode="json"),
                        commit_time_unix_ns=checkpoint.commit_ns,
                    )
                )
            case _:
                pass
    await session.flush()
    if any(isinstance(record, m.SaveCheckpoint) for record in records):
        await _forget_old_checkpoints(session, state.job)
    if row.ended:
        await _forget_old_jobs(session)


async def _save_incident(session: AsyncSession, incident: m.Incident) -> None:
    revision = await next_revision(session, SERVICE)
    row = await session.get(IncidentRow, incident.incident_id)
    if row is None:
        row = IncidentRow(incident_id=incident.incident_id, job=incident.job, create_revision=revision)
        session.add(row)
        await _forget_old_incidents(session, incident.job)
    row.incident, row.revision = _INCIDENT.dump_python(incident, mode="json"), revision
    await session.flush()


async def _forget_old_incidents(session: AsyncSession, job: str) -> None:
    """Makes room for one more."""
    mine = select(IncidentRow.create_revision).where(IncidentRow.job == job)
    with session.no_autoflush:
        newest_to_go = await session.scalar(
            mine.order_by(IncidentRow.create_revision.desc()).offset(INCIDENTS_MAX - 1).limit(1)
        )
        if newest_to_go is not None:
            old = IncidentRow.create_revision <= newest_to_go
            await session.execute(delete(IncidentRow).where(IncidentRow.job == job, old))


async def _forget_old_checkpoints(session: AsyncSession, job: str) -> None:
    mine = CheckpointRow.job == job
    if (await session.scalar(select(func.count()).select_from(CheckpointRow).where(mine)) or 0) <= CHECKPOINTS_MAX:
        return
    keep = (
        select(CheckpointRow.checkpoint_id)
        .where(mine)
        .order_by(CheckpointRow.commit_time_unix_ns.desc())
        .limit(CHECKPOINTS_MAX)
    )
    await session.execute(delete(CheckpointRow).where(mine, CheckpointRow.checkpoint_id.not_in(keep)))


async def _forget_old_jobs(session: AsyncSession) -> None:
    ended = select(RecoveryJobRow.job).where(RecoveryJobRow.ended)
    old = ended.order_by(RecoveryJobRow.end_time_unix_ns.desc(), RecoveryJobRow.job).offset(JOBS_ENDED_MAX)
    for job in (await session.scalars(old)).all():
        await forget(session, job)


async def forget(session: AsyncSession, job: str) -> None:
    """Deletes all that is known of a job."""
    for table in (AttemptRow, IncidentRow, CheckpointRow, RecoveryJobRow):
        await session.execute(delete(table).where(table.job == job))


async def running(session: AsyncSession) -> list[m.JobState]:
    """The states of all jobs that have not ended, or that still have calls to make; unreadable ones are left out and logged."""
    states = []
    for row in await session.scalars(select(RecoveryJobRow).where(RecoveryJobRow.ended.is_(False))):
        try:
            states.append(_state(row))
        except FailedPrecondition as error:
            log.error("cannot care for a job", extra={"job": row.job, "error": error.message})
    return states


def _state(row: RecoveryJobRow) -> m.JobState:
    try:
        return _STATE.validate_python(row.state)
    except ValidationError as error:
        raise FailedPrecondition(
            f"what is stored of {row.job} was not written by this version of Switchgear; cancel the job or run the version "
            f"that wrote it ({error.error_count()} fields do not fit)",
            Reason.STATE_NEWER,
            job=row.job,
        ) from error


async def ended_ledgers(session: AsyncSession, owner: str) -> AsyncIterator[tuple[str, Ledger]]:
    """The ledgers of all training jobs that are kept and have nothing left to do; of those from before there were any, none.

    owner: field of `Spec` that comes with each ledger; empty in what earlier versions wrote. Only this part of each state is read, a hundred at a time, so that others get their turn: there may be 10,000 of them.
    """
    state = RecoveryJobRow.state
    query = select(RecoveryJobRow.job, state["spec"][owner].as_string(), state["ledger"]).where(
        RecoveryJobRow.ended, state["spec"]["inference"].as_boolean().is_not(True)
    )
    async for rows in (await session.stream(query)).partitions(100):
        for job, name, dumped in rows:
            try:
                if dumped is not None:
                    yield name or "", _LEDGER.validate_python(dumped)
            except ValidationError as error:
                unfit = f"{error.error_count()} fields do not fit"
                log.error("cannot read what a job cost", extra={"job": job, "error": unfit})


async def signal_cursor(session: AsyncSession) -> int:
    """Revision of the newest signal that has been dealt with."""
    return await session.scalar(select(CursorRow.value).where(CursorRow.name == "signals")) or 0


async def move_signal_cursor(session: AsyncSession, revision: int) -> None:
    await session.merge(CursorRow(name="signals", value=revision))


async def state_of(session: AsyncSession, job: str) -> m.JobState | None:
    """Raises FailedPrecondition (STATE_NEWER) when it cannot be read."""
    row = await session.get(RecoveryJobRow, job)
    return None if row is None else _state(row)


async def attempts(session: AsyncSession, job: str, after: int, limit: int) -> list[m.Attempt]:
    """Attempts with generation > after, oldest first."""
    query = (
        select(AttemptRow)
        .where(AttemptRow.job == job, AttemptRow.generation > after)
        .order_by(AttemptRow.generation)
        .limit(limit)
    )
    return [_ATTEMPT.validate_python(row.attempt) for row in await session.scalars(query)]


async def checkpoints(session: AsyncSession, job: str) -> list[m.Checkpoint]:
    """All checkpoints of the job that are remembered, newest step first; those of unknown step last."""
    rows = await session.scalars(select(CheckpointRow).where(CheckpointRow.job == job))
    found = [_CHECKPOINT.validate_python(row.checkpoint) for row in rows]
    return sorted(found, key=lambda c: (-1 if c.step is None else c.step, c.commit_ns, c.path), reverse=True)


async def incident(session: AsyncSession, incident_id: str) -> m.Incident | None:
    row = await session.get(IncidentRow, incident_id)
    return None if row is None else _INCIDENT.validate_python(row.incident)


async def incidents(session: AsyncSession, job: str, before: int | None, limit: int) -> list[tuple[int, m.Incident]]:
    """Incidents with their creation revision, newest first, older than `before`; all jobs when `job` is empty."""
    query = select(IncidentRow).order_by(IncidentRow.create_revision.desc()).limit(limit)
    if job:
        query = query.where(IncidentRow.job == job)
    if before is not None:
        query = query.where(IncidentRow.create_revision < before)
    return [(row.create_revision, _INCIDENT.validate_python(row.incident)) for row in await session.scalars(query)]


async def incidents_after(session: AsyncSession, after: int, limit: int) -> list[tuple[int, m.Incident]]:
    """Incidents that changed after a revision, in revision order."""
    query = select(IncidentRow).where(IncidentRow.revision > after).order_by(IncidentRow.revision).limit(limit)
    return [(row.revision, _INCIDENT.validate_python(row.incident)) for row in await session.scalars(query)]
