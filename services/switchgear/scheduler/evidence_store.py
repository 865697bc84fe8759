"""The table of what attempts that are over tell."""

from __future__ import annotations

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from switchgear.scheduler.model import AttemptRecord
from switchgear.scheduler.tables import EvidenceRow

#: A few days of a busy cluster; older ones tell of programs and nodes that have changed since.
ATTEMPTS_MAX = 2000


async def newest_attempts(session: AsyncSession) -> tuple[AttemptRecord, ...]:
    """In the order in which they were told."""
    rows = await session.execute(
        select(
            EvidenceRow.job,
            EvidenceRow.create_revision,
            EvidenceRow.generation,
            EvidenceRow.alike,
            EvidenceRow.nodes,
            EvidenceRow.gpu_model,
            EvidenceRow.steps_per_s,
            EvidenceRow.held_up_by,
        )
        .order_by(EvidenceRow.told_unix_ns.desc(), EvidenceRow.job, EvidenceRow.generation.desc())
        .limit(ATTEMPTS_MAX)
    )
    found = [
        AttemptRecord(job, create_revision, generation, tuple(alike), tuple(nodes), *rest)
        for job, create_revision, generation, alike, nodes, *rest in rows
    ]
    return tuple(reversed(found))


async def add_attempt(session: AsyncSession, told: AttemptRecord, now_unix_ns: int) -> bool:
    """Keeps it, or adds to what is kept of it; whether anything is new."""
    row = await session.get(EvidenceRow, (told.job, told.create_revision, told.generation))
    if row is None:
        row = EvidenceRow(
            job=told.job,
            create_revision=told.create_revision,
            generation=told.generation,
            alike=list(told.alike),
            nodes=list(told.nodes),
            gpu_model=told.gpu_model,
            steps_per_s=told.steps_per_s,
            held_up_by=told.held_up_by,
            told_unix_ns=now_unix_ns,
        )
        session.add(row)
        await session.flush()
        await _forget(session)
        return True
    if told.nodes:
        row.alike, row.nodes, row.gpu_model = list(told.alike), list(told.nodes), told.gpu_model
    row.steps_per_s = told.steps_per_s or row.steps_per_s
    row.held_up_by = told.held_up_by or row.held_up_by
    changed = session.is_modified(row)
    await session.flush()
    return changed


async def forgive(session: AsyncSession, node: str) -> None:
    """Somebody has looked after the node and lets it serve again: what it held up before counts no more."""
    await session.execute(update(EvidenceRow).where(EvidenceRow.held_up_by == node).values(held_up_by=""))


async def _forget(session: AsyncSession) -> None:
    oldest = await session.scalar(
        select(EvidenceRow.told_unix_ns).order_by(EvidenceRow.told_unix_ns.desc()).offset(ATTEMPTS_MAX).limit(1)
    )
    if oldest is not None:
        await session.execute(delete(EvidenceRow).where(EvidenceRow.told_unix_ns <= oldest))
