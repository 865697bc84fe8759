"""The collector's tables: events, each once; the signals that they raised; the nodes whose agents are expected to speak."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    delete,
    func,
    select,
    tuple_,
)
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, StatementError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from switchgear.collector.model import Event, Severity, Signal
from switchgear.core.errors import OutOfRange, Reason
from switchgear.store.base import Base
from switchgear.store.revisions import lock_revision, next_revisions

SERVICE = "collector"


class EventRow(Base):
    __tablename__ = "collector_events"

    ordinal: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    node: Mapped[str] = mapped_column(String(80))
    boot_id: Mapped[str] = mapped_column(String(128))
    source: Mapped[str] = mapped_column(String(64))
    sequence: Mapped[int] = mapped_column(BigInteger)
    time_unix_ns: Mapped[int] = mapped_column(BigInteger)
    kind: Mapped[str] = mapped_column(String(64))
    gpu: Mapped[int | None] = mapped_column(Integer)
    code: Mapped[int | None] = mapped_column(Integer)
    text: Mapped[str] = mapped_column(Text)
    simulated: Mapped[bool] = mapped_column(Boolean)
    pci: Mapped[str] = mapped_column(String(16))
    detail: Mapped[dict[str, str]] = mapped_column(JSON)

    __table_args__ = (UniqueConstraint("boot_id", "source", "sequence"),)


class SignalRow(Base):
    __tablename__ = "collector_signals"

    #: Each signal takes one revision and never changes, so revisions have no gaps but those that pruning leaves at their begin.
    revision: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    signal_id: Mapped[str] = mapped_column(String(64), unique=True)
    node: Mapped[str] = mapped_column(String(80))
    gpu: Mapped[int | None] = mapped_column(Integer)
    kind: Mapped[str] = mapped_column(String(64))
    severity: Mapped[str] = mapped_column(String(16))
    action: Mapped[str] = mapped_column(String(64))
    evidence: Mapped[str] = mapped_column(Text)
    time_unix_ns: Mapped[int] = mapped_column(BigInteger)
    simulated: Mapped[bool] = mapped_column(Boolean)

    __table_args__ = (Index("ix_collector_signals_node_revision", "node", "revision"),)


class NodeRow(Base):
    """A node whose agent has streamed and whose silence has not been told; it outlives a restart of the collector."""

    __tablename__ = "collector_nodes"

    node: Mapped[str] = mapped_column(String(80), primary_key=True)


_EVENT_FIELDS = Event.__dataclass_fields__.keys()
_SIGNAL_FIELDS = Signal.__dataclass_fields__.keys()


async def add_events(
    session: AsyncSession, found: Sequence[tuple[Event, Sequence[Signal]]]
) -> tuple[int, list[Signal]]:
    """Stores the events that are new, with their signals; returns how many events, and the signals. Call it in a `write` transaction.

    Events are pruned sooner than signals, so an event that is sent again may be new while its signal is stored.
    """
    await lock_revision(session, SERVICE)
    columns = (EventRow.boot_id, EventRow.source, EventRow.sequence)
    keys = [event.key for event, _ in found]
    stored = await session.execute(select(*columns).where(tuple_(*columns).in_(keys)))
    seen: set[object] = {tuple(row) for row in stored}
    new = list[tuple[Event, Sequence[Signal]]]()
    for event, raised in found:
        if event.key not in seen:
            seen.add(event.key)
            new.append((event, raised))
    session.add_all(EventRow(**{field: getattr(event, field) for field in _EVENT_FIELDS}) for event, _ in new)
    raised_by_id = {signal.signal_id: signal for _, raised in new for signal in raised}
    told = set(await session.scalars(select(SignalRow.signal_id).where(SignalRow.signal_id.in_(raised_by_id))))
    signals = [signal for signal in raised_by_id.values() if signal.signal_id not in told]
    await add_signals(session, signals)
    return len(new), signals


def refused(error: Exception) -> bool:
    """Whether the database works and does not take these values: the same again would meet the same."""
    if isinstance(error, DBAPIError):
        # PostgreSQL's classes 22 (bad value) and 23 (violated constraint).
        sqlstate = str(getattr(error.orig, "sqlstate", None) or "")
        return isinstance(error, IntegrityError | DataError) or sqlstate[:2] in {"22", "23"}
    return isinstance(error, StatementError | ArithmeticError | LookupError | TypeError | ValueError)


async def add_signals(session: AsyncSession, signals: Sequence[Signal]) -> None:
    """Call it in a `write` transaction."""
    if signals:
        for revision, signal in zip(await next_revisions(session, SERVICE, len(signals)), signals, strict=True):
            session.add(SignalRow(revision=revision, **{field: getattr(signal, field) for field in _SIGNAL_FIELDS}))


async def signals_after(session: AsyncSession, revision: int, limit: int) -> list[tuple[int, Signal]]:
    """Signals with a greater revision, oldest first.

    Raises OutOfRange (REVISION_UNKNOWN) when some of them have been pruned.
    """
    rows = await session.scalars(
        select(SignalRow).where(SignalRow.revision > revision).order_by(SignalRow.revision).limit(limit)
    )
    signals = [(row.revision, _signal(row)) for row in rows]
    if signals and signals[0][0] > revision + 1:
        raise OutOfRange(
            f"signals after revision {revision} have been pruned; list them and watch from the list's revision",
            Reason.REVISION_UNKNOWN,
            revision=str(revision),
        )
    return signals


async def signals_before(session: AsyncSession, node: str, before: int | None, limit: int) -> list[tuple[int, Signal]]:
    """Signals with a smaller revision than `before` (None: all), newest first; of one node, or of all when it is ""."""
    query = select(SignalRow).order_by(SignalRow.revision.desc()).limit(limit)
    if before is not None:
        query = query.where(SignalRow.revision < before)
    if node:
        query = query.where(SignalRow.node == node)
    return [(row.revision, _signal(row)) for row in await session.scalars(query)]


async def expected_nodes(session: AsyncSession) -> list[str]:
    return list(await session.scalars(select(NodeRow.node).order_by(NodeRow.node)))


async def expect_nodes(session: AsyncSession, nodes: Sequence[str]) -> None:
    """Call it in a `write` transaction, with different nodes and no more than a statement has parameters."""
    await lock_revision(session, SERVICE)  # not between the delete of `add_silences` and its commit
    stored = set(await session.scalars(select(NodeRow.node).where(NodeRow.node.in_(nodes))))
    session.add_all(NodeRow(node=node) for node in nodes if node not in stored)


async def add_silences(session: AsyncSession, signals: Sequence[Signal]) -> list[Signal]:
    """Stores which nodes are silent; they are not told again before their agents have come back. Returns those that are news.

    Call it in a `write` transaction, with no more than a statement has parameters.
    """
    await lock_revision(session, SERVICE)
    nodes = [signal.node for signal in signals]
    gone = set(await session.scalars(delete(NodeRow).where(NodeRow.node.in_(nodes)).returning(NodeRow.node)))
    new = [signal for signal in signals if signal.node in gone]
    await add_signals(session, new)
    return new


async def prune(session: AsyncSession, *, events_max: int, signals_max: int) -> None:
    """Keeps the newest of both."""
    newest_event = await session.scalar(select(func.max(EventRow.ordinal))) or 0
    await session.execute(delete(EventRow).where(EventRow.ordinal <= newest_event - events_max))
    newest_signal = await session.scalar(select(func.max(SignalRow.revision))) or 0
    await session.execute(delete(SignalRow).where(SignalRow.revision <= newest_signal - signals_max))


def _signal(row: SignalRow) -> Signal:
    values = {field: getattr(row, field) for field in _SIGNAL_FIELDS}
    return Signal(**(values | {"severity": Severity(row.severity)}))
