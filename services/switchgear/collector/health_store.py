"""The table of nodes' health: one row a node, with what is open on it. Revisions are its own, beside those of signals."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import JSON, BigInteger, String, Text, delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from switchgear.collector.health import Condition, NodeHealth, NodeVerdict, Subject, forgotten
from switchgear.collector.model import Severity
from switchgear.core.errors import OutOfRange, Reason
from switchgear.store.base import Base
from switchgear.store.revisions import current_revision, lock_revision, next_revisions
from switchgear.store.tables import RevisionRow

log = logging.getLogger(__name__)

SERVICE = "collector-health"
#: Its revision is the newest at which a node went that nobody is told of any more.
_COMPACTED = "collector-health-compacted"
#: Twice what the scheduler has; a row is some 100 bytes, and up to 50 KiB while everything on the node is broken.
NODES_MAX = 20_000
#: In one statement; SQLite's variables end at 32,766.
_AT_ONCE = 1000
#: Of boot_id and epoch.
IDS_CHARS_MAX = 128


class HealthRow(Base):
    __tablename__ = "collector_health"

    node: Mapped[str] = mapped_column(String(80), primary_key=True)
    revision: Mapped[int] = mapped_column(BigInteger, unique=True, index=True)
    verdict: Mapped[str] = mapped_column(String(16))
    since_unix_ns: Mapped[int] = mapped_column(BigInteger)
    #: Of the agent that was heard last.
    boot_id: Mapped[str] = mapped_column(String(IDS_CHARS_MAX))
    epoch: Mapped[str] = mapped_column(String(IDS_CHARS_MAX))
    change: Mapped[str] = mapped_column(Text)
    conditions: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    #: When the first of them ends by itself.
    expires_unix_ns: Mapped[int | None] = mapped_column(BigInteger, index=True)


async def change(
    session: AsyncSession, nodes: Iterable[str], step: Callable[[NodeHealth], NodeHealth], now_unix_ns: int
) -> list[NodeHealth]:
    """Takes one step for each of these nodes, known or new; returns those whose health is new. Call it in a `write` transaction."""
    await lock_revision(session, SERVICE)
    wanted = list(nodes)
    rows = {
        row.node: row
        for begin in range(0, len(wanted), _AT_ONCE)
        for row in await session.scalars(
            select(HealthRow)
            .where(HealthRow.node.in_(wanted[begin : begin + _AT_ONCE]))
            # What this session has read before the lock may be old.
            .execution_options(populate_existing=True)
        )
    }
    told, quiet = list[NodeHealth](), list[NodeHealth]()
    for node in wanted:
        before = _health(rows[node]) if node in rows else None
        after = step(before or NodeHealth(node, since_unix_ns=now_unix_ns))
        if before is None or _shown(before) != _shown(after):
            told.append(after)
        elif before != after:
            quiet.append(after)
    if added := [health for health in told if health.node not in rows]:
        room = NODES_MAX - (await session.scalar(select(func.count()).select_from(HealthRow)) or 0)
        if len(added) > room:
            log.error("%d nodes are judged and no more are: %d are left out", NODES_MAX, len(added) - max(0, room))
            left_out = {health.node for health in added[max(0, room) :]}
            told = [health for health in told if health.node not in left_out]
    if told:
        for revision, health in zip(await next_revisions(session, SERVICE, len(told)), told, strict=True):
            row = rows.get(health.node)
            if row is None:
                row = HealthRow(node=health.node)
                session.add(row)
            row.revision = revision
            _write(row, health)
    for health in quiet:
        _write(rows[health.node], health)
    return told


async def health_of(session: AsyncSession, node: str) -> NodeHealth | None:
    row = await session.get(HealthRow, node)
    return None if row is None or row.verdict == NodeVerdict.FORGOTTEN else _health(row)


async def by_name(
    session: AsyncSession, after: str, verdicts: Sequence[NodeVerdict], limit: int
) -> Sequence[NodeHealth]:
    """In name order. verdicts: only these; empty: all."""
    query = select(HealthRow).where(HealthRow.node > after, HealthRow.verdict != NodeVerdict.FORGOTTEN.value)
    if verdicts:
        query = query.where(HealthRow.verdict.in_([verdict.value for verdict in verdicts]))
    return [_health(row) for row in await session.scalars(query.order_by(HealthRow.node).limit(limit))]


async def after_revision(session: AsyncSession, revision: int, limit: int) -> list[tuple[int, NodeHealth]]:
    """Nodes that changed later, oldest change first, the forgotten ones too."""
    rows = await session.scalars(
        select(HealthRow).where(HealthRow.revision > revision).order_by(HealthRow.revision).limit(limit)
    )
    return [(row.revision, _health(row)) for row in rows]


async def require_whole(session: AsyncSession, revision: int) -> None:
    """Raises OutOfRange (REVISION_UNKNOWN) when nodes went since that nobody is told of any more. Who knows nothing (0) misses nothing."""
    if 0 < revision < await current_revision(session, _COMPACTED):
        raise OutOfRange(
            f"nodes have been forgotten since revision {revision}; list again and watch from the list's revision",
            Reason.REVISION_UNKNOWN,
            revision=str(revision),
        )


async def expired(session: AsyncSession, now_unix_ns: int) -> list[str]:
    """Nodes with a condition that ends by itself by now; some of them when they are many."""
    query = select(HealthRow.node).where(HealthRow.expires_unix_ns <= now_unix_ns)
    return list(await session.scalars(query.order_by(HealthRow.expires_unix_ns).limit(_AT_ONCE)))


async def ailing(session: AsyncSession) -> list[str]:
    """Nodes with something open."""
    well = (NodeVerdict.HEALTHY.value, NodeVerdict.FORGOTTEN.value)
    return list(await session.scalars(select(HealthRow.node).where(HealthRow.verdict.not_in(well))))


async def forget(session: AsyncSession, silent_before_unix_ns: int, now_unix_ns: int) -> list[NodeHealth]:
    """Nodes that fell silent before this time are no longer listed; those that have not been for as long go, and nobody is told of them.

    Call it in a `write` transaction. Returns what is forgotten now.
    """
    await lock_revision(session, SERVICE)
    old = HealthRow.since_unix_ns < silent_before_unix_ns
    gone = (HealthRow.verdict == NodeVerdict.FORGOTTEN.value) & old
    if newest := await session.scalar(select(func.max(HealthRow.revision)).where(gone)):
        await session.execute(delete(HealthRow).where(gone))
        compacted = max(newest, await current_revision(session, _COMPACTED))
        await session.merge(RevisionRow(service=_COMPACTED, value=compacted))
    silent = await session.scalars(
        select(HealthRow.node).where((HealthRow.verdict == NodeVerdict.SILENT.value) & old).limit(_AT_ONCE)
    )
    return await change(session, list(silent), lambda health: forgotten(health, now_unix_ns), now_unix_ns)


def _shown(health: NodeHealth) -> tuple[object, ...]:
    return health.verdict, health.change, health.conditions


def _write(row: HealthRow, health: NodeHealth) -> None:
    row.verdict = health.verdict.value
    row.since_unix_ns = health.since_unix_ns
    row.boot_id, row.epoch = health.boot_id, health.epoch
    row.change = health.change
    row.conditions = [asdict(condition) for condition in health.conditions]
    row.expires_unix_ns = health.expires_unix_ns


def _health(row: HealthRow) -> NodeHealth:
    return NodeHealth(
        row.node,
        NodeVerdict(row.verdict),
        row.since_unix_ns,
        row.boot_id,
        row.epoch,
        row.change,
        tuple(_condition(item) for item in row.conditions),
    )


def _condition(item: dict[str, Any]) -> Condition:
    return Condition(**(item | {"subject": Subject(**item["subject"]), "severity": Severity(item["severity"])}))
