"""What receivers were told: one row for each node of which something is open to them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from sqlalchemy import JSON, BigInteger, String, delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from switchgear.collector.webhooks.alerts import Alert
from switchgear.store.base import Base


class WebhookRow(Base):
    __tablename__ = "collector_webhooks"

    webhook: Mapped[str] = mapped_column(String(64), primary_key=True)
    node: Mapped[str] = mapped_column(String(80), primary_key=True)
    told: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    time_unix_ns: Mapped[int] = mapped_column(BigInteger)


async def told(session: AsyncSession, webhook: str) -> list[tuple[str, tuple[Alert, ...], int]]:
    """Node, what its receiver was told, and when."""
    rows = await session.scalars(select(WebhookRow).where(WebhookRow.webhook == webhook))
    return [(row.node, tuple(Alert(**item) for item in row.told), row.time_unix_ns) for row in rows]


async def save(
    session: AsyncSession, webhook: str, changed: Iterable[tuple[str, Collection[Alert]]], time_unix_ns: int
) -> None:
    """Call it in a `write` transaction."""
    for node, alerts in changed:
        if not alerts:
            await session.execute(delete(WebhookRow).where(WebhookRow.webhook == webhook, WebhookRow.node == node))
            continue
        items = [
            {"labels": dict(one.labels), "annotations": dict(one.annotations), "begin_unix_ns": one.begin_unix_ns}
            for one in alerts
        ]
        await session.merge(WebhookRow(webhook=webhook, node=node, told=items, time_unix_ns=time_unix_ns))


async def keep_only(session: AsyncSession, webhooks: Collection[str], own: Callable[[str], bool]) -> None:
    """Forgets what receivers that are no longer there were told of nodes that are own. Call it in a `write` transaction.

    Of others another collector tells, whose receivers may be others.
    """
    for row in await session.scalars(select(WebhookRow).where(WebhookRow.webhook.not_in(webhooks))):
        if own(row.node):
            await session.delete(row)
