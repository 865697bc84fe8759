"""The tables of what a plan needs beside nodes and jobs: queues, reservations, past use, and how long jobs ran."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from switchgear.scheduler.evidence_store import newest_attempts
from switchgear.scheduler.model import (
    FINAL_STATES,
    EndedRun,
    JobRecord,
    JobState,
    QueueRecord,
    ReservationRecord,
    Rules,
    Usage,
)
from switchgear.scheduler.planning import decayed
from switchgear.scheduler.tables import JobRow, QueueRow, ReservationRow, RunRow, UsageRow

#: Run times are learned from these; older ones tell of jobs that nobody submits any more.
RUNS_MAX = 5000
#: Users that are told apart in fair share; beyond it those that used the least are forgotten.
USAGE_MAX = 10_000


async def load_rules(session: AsyncSession) -> Rules:
    """All that is stored, but `Rules.ended`."""
    columns = RunRow.user, RunRow.key, RunRow.queue, RunRow.gpus, RunRow.seconds, RunRow.end_unix_ns
    newest = select(*columns, RunRow.submit_unix_ns).order_by(RunRow.end_unix_ns.desc(), RunRow.job).limit(RUNS_MAX)
    runs = [EndedRun(*row) for row in await session.execute(newest)]
    usage = await session.scalars(select(UsageRow).order_by(UsageRow.queue, UsageRow.user))
    return Rules(
        tuple(await queues(session)),
        tuple(await reservations(session)),
        tuple(reversed(runs)),
        await newest_attempts(session),
        tuple(Usage(row.queue, row.user, row.gpu_s, row.time_unix_ns) for row in usage),
    )


async def states_of(session: AsyncSession, jobs: Collection[str]) -> dict[str, JobState | None]:
    """Of those of the jobs that have ended, their state; None of those that are not known."""
    found: dict[str, JobState | None] = dict.fromkeys(jobs)
    listed = sorted(jobs)
    for begin in range(0, len(listed), 500):  # parameters of one statement are few on SQLite
        rows = await session.execute(
            select(JobRow.name, JobRow.state).where(JobRow.name.in_(listed[begin : begin + 500]))
        )
        found.update({name: JobState(state) for name, state in rows})
    return {name: state for name, state in found.items() if state is None or state in FINAL_STATES}


async def queues(session: AsyncSession) -> list[QueueRecord]:
    """In name order."""
    return [
        QueueRecord(row.name, row.parent, row.guaranteed_gpus, row.limit_gpus, row.weight, row.keeps)
        for row in await session.scalars(select(QueueRow).order_by(QueueRow.name))
    ]


async def save_queue(session: AsyncSession, queue: QueueRecord) -> None:
    await session.merge(QueueRow(**asdict(queue)))
    await session.flush()


async def delete_queue(session: AsyncSession, name: str) -> None:
    await session.execute(delete(QueueRow).where(QueueRow.name == name))


async def reservations(session: AsyncSession) -> list[ReservationRecord]:
    """In name order."""
    return [
        ReservationRecord(
            row.name,
            tuple(row.nodes),
            row.start_unix_ns,
            row.end_unix_ns,
            tuple(row.queues),
            tuple(row.jobs),
            row.reason,
        )
        for row in await session.scalars(select(ReservationRow).order_by(ReservationRow.name))
    ]


async def save_reservation(session: AsyncSession, reservation: ReservationRecord) -> None:
    await session.merge(ReservationRow(**asdict(reservation)))
    await session.flush()


async def delete_reservation(session: AsyncSession, name: str) -> None:
    await session.execute(delete(ReservationRow).where(ReservationRow.name == name))


async def forget_reservations(session: AsyncSession, now_unix_ns: int) -> None:
    """Those whose end is a day ago."""
    await session.execute(delete(ReservationRow).where(ReservationRow.end_unix_ns < now_unix_ns - 86_400_000_000_000))


async def book_end(session: AsyncSession, job: JobRecord, run: EndedRun, half_life_s: float) -> None:
    """Keeps what a job that has ended used, and, when it ended by itself, how long it ran."""
    row = await session.get(UsageRow, (run.queue, run.user))
    before = 0.0 if row is None else decayed(row.gpu_s, row.time_unix_ns, run.end_unix_ns, half_life_s)
    await session.merge(
        UsageRow(queue=run.queue, user=run.user, gpu_s=before + run.gpus * run.seconds, time_unix_ns=run.end_unix_ns)
    )
    if job.state is not JobState.CANCELLED:
        await session.merge(RunRow(job=job.name, create_revision=job.create_revision, **asdict(run)))
    await session.flush()
    await _forget(session)


async def _forget(session: AsyncSession) -> None:
    oldest = await session.scalar(
        select(RunRow.end_unix_ns).order_by(RunRow.end_unix_ns.desc()).offset(RUNS_MAX).limit(1)
    )
    if oldest is not None:
        await session.execute(delete(RunRow).where(RunRow.end_unix_ns <= oldest))
    if (await session.scalar(select(func.count()).select_from(UsageRow)) or 0) > USAGE_MAX:
        least = await session.scalar(select(UsageRow.gpu_s).order_by(UsageRow.gpu_s).limit(1))
        await session.execute(delete(UsageRow).where(UsageRow.gpu_s <= least))
