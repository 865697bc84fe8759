"""The imports' table: what was known of each node when it was looked at last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import JSON, BigInteger, Boolean, String, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from switchgear.collector.imports.rules import Baseline
from switchgear.store.base import Base

#: Node and source, `nodes/{node}` and `scrape/{name}` or `otlp`.
Origin = tuple[str, str]


class ImportRow(Base):
    __tablename__ = "collector_imports"

    node: Mapped[str] = mapped_column(String(80), primary_key=True)
    source: Mapped[str] = mapped_column(String(64), primary_key=True)
    begin_unix_ns: Mapped[int] = mapped_column(BigInteger)
    #: Of the newest event.
    sequence: Mapped[int] = mapped_column(BigInteger)
    #: It was told that nothing comes any more.
    silent: Mapped[bool] = mapped_column(Boolean)
    known: Mapped[dict[str, float]] = mapped_column(JSON)


async def baselines(session: AsyncSession) -> dict[Origin, Baseline]:
    return {
        (row.node, row.source): Baseline(row.begin_unix_ns, row.sequence, row.silent, dict(row.known))
        for row in await session.scalars(select(ImportRow))
    }


async def save(session: AsyncSession, changed: Mapping[Origin, Baseline]) -> None:
    """Call it in a `write` transaction."""
    for (node, source), baseline in changed.items():
        await session.merge(
            ImportRow(
                node=node,
                source=source,
                begin_unix_ns=baseline.begin_unix_ns,
                sequence=baseline.sequence,
                silent=baseline.silent,
                known=baseline.values,
            )
        )


async def forget(session: AsyncSession, origins: Iterable[Origin]) -> None:
    """Call it in a `write` transaction."""
    for origin in origins:
        if (row := await session.get(ImportRow, origin)) is not None:
            await session.delete(row)
