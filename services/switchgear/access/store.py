"""Tables of access: tokens, join tokens, nodes that have joined, and the audit log."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import BigInteger, Boolean, Index, Integer, LargeBinary, String, and_, delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from switchgear.access import secret
from switchgear.access.model import Entry, JoinToken, Token
from switchgear.core.errors import NotFound, PermissionDenied, Reason, ResourceExhausted
from switchgear.core.identity import Role
from switchgear.core.text import printable
from switchgear.store.base import Base
from switchgear.store.revisions import lock_revision, next_revision

SERVICE = "access"
#: All of them are in the memory of every process, a few hundred bytes each.
TOKENS_MAX = 1000
JOIN_TOKENS_MAX = 1000
#: So long tokens that are of no use any more stay listed.
KEEP_ENDED_NS = 30 * 86400 * 1_000_000_000
#: Rows of the audit log. Refusals have shares of their own, so that a flood of them pushes out no record of a change, and one of
#: callers whom nobody knows none of an actor who was refused. Each of the two has as many.
MUTATIONS_MAX = 100_000
REFUSALS_MAX = 10_000


class TokenRow(Base):
    __tablename__ = "access_tokens"

    token_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    user: Mapped[str] = mapped_column(String(63))
    role: Mapped[int] = mapped_column(Integer)
    create_revision: Mapped[int] = mapped_column(BigInteger, unique=True)
    create_time_unix_ns: Mapped[int] = mapped_column(BigInteger)
    expire_time_unix_ns: Mapped[int] = mapped_column(BigInteger)
    revoke_time_unix_ns: Mapped[int | None] = mapped_column(BigInteger)


class JoinTokenRow(Base):
    __tablename__ = "access_join_tokens"

    token_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    node: Mapped[str] = mapped_column(String(80))
    expire_time_unix_ns: Mapped[int] = mapped_column(BigInteger)
    use_time_unix_ns: Mapped[int | None] = mapped_column(BigInteger)


class NodeRow(Base):
    """A node that has a certificate, until that expires."""

    __tablename__ = "access_nodes"

    node: Mapped[str] = mapped_column(String(80), primary_key=True)
    expire_time_unix_ns: Mapped[int] = mapped_column(BigInteger)


class EntryRow(Base):
    __tablename__ = "audit_entries"

    ordinal: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    time_unix_ns: Mapped[int] = mapped_column(BigInteger)
    actor: Mapped[str] = mapped_column(String(80))
    role: Mapped[int] = mapped_column(Integer)
    method: Mapped[str] = mapped_column(String(200))
    resource: Mapped[str] = mapped_column(String(200))
    outcome: Mapped[str] = mapped_column(String(32))
    message: Mapped[str] = mapped_column(String(500))
    peer: Mapped[str] = mapped_column(String(100))
    trace_id: Mapped[str] = mapped_column(String(32))
    refused: Mapped[bool] = mapped_column(Boolean)
    count: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (Index("ix_audit_entries_refused_ordinal", "refused", "ordinal"),)


async def add_token(session: AsyncSession, token: Token) -> Token:
    """Raises ResourceExhausted when there are TOKENS_MAX."""
    revision = await next_revision(session, SERVICE)
    gone = token.create_time_unix_ns - KEEP_ENDED_NS
    await session.execute(
        delete(TokenRow).where(or_(TokenRow.expire_time_unix_ns < gone, TokenRow.revoke_time_unix_ns < gone))
    )
    if (await session.scalar(select(func.count()).select_from(TokenRow)) or 0) >= TOKENS_MAX:
        raise ResourceExhausted(
            f"there are {TOKENS_MAX} tokens, which is the limit; those that were revoked or expired leave after 30 days",
            Reason.LIMIT_EXCEEDED,
            limit=str(TOKENS_MAX),
        )
    session.add(
        TokenRow(
            token_id=token.token_id,
            digest=token.digest,
            user=token.user,
            role=token.role.value,
            create_revision=revision,
            create_time_unix_ns=token.create_time_unix_ns,
            expire_time_unix_ns=token.expire_time_unix_ns,
            revoke_time_unix_ns=None,
        )
    )
    await session.flush()
    return await get_token(session, token.token_id)


async def get_token(session: AsyncSession, token_id: str) -> Token:
    """Raises NotFound."""
    row = await session.get(TokenRow, token_id)
    if row is None:
        raise NotFound(f"tokens/{token_id}")
    return _token(row)


async def tokens_before(session: AsyncSession, before: int | None, limit: int) -> list[Token]:
    """Newest first, those before that creation."""
    query = select(TokenRow).order_by(TokenRow.create_revision.desc()).limit(limit)
    if before is not None:
        query = query.where(TokenRow.create_revision < before)
    return [_token(row) for row in await session.scalars(query)]


async def revoke_token(session: AsyncSession, token_id: str, now_unix_ns: int) -> Token:
    """Again changes nothing. Raises NotFound."""
    await session.execute(
        update(TokenRow)
        .where(TokenRow.token_id == token_id, TokenRow.revoke_time_unix_ns.is_(None))
        .values(revoke_time_unix_ns=now_unix_ns)
    )
    return await get_token(session, token_id)


async def add_join_token(session: AsyncSession, token: JoinToken, now_unix_ns: int) -> None:
    """Raises ResourceExhausted when JOIN_TOKENS_MAX wait to be used."""
    await lock_revision(session, SERVICE)
    await session.execute(delete(JoinTokenRow).where(JoinTokenRow.expire_time_unix_ns < now_unix_ns - KEEP_ENDED_NS))
    usable = (JoinTokenRow.use_time_unix_ns.is_(None)) & (JoinTokenRow.expire_time_unix_ns > now_unix_ns)
    if (await session.scalar(select(func.count()).select_from(JoinTokenRow).where(usable)) or 0) >= JOIN_TOKENS_MAX:
        raise ResourceExhausted(
            f"{JOIN_TOKENS_MAX} join tokens wait to be used, which is the limit; use them or let them expire",
            Reason.LIMIT_EXCEEDED,
            limit=str(JOIN_TOKENS_MAX),
        )
    session.add(
        JoinTokenRow(
            token_id=token.token_id,
            digest=token.digest,
            node=token.node,
            expire_time_unix_ns=token.expire_time_unix_ns,
            use_time_unix_ns=None,
        )
    )


async def use_join_token(session: AsyncSession, token_id: str, digest: bytes, node: str, now_unix_ns: int) -> None:
    """Uses up the join token for that node. Of two at once one has it.

    Raises PermissionDenied (JOIN_TOKEN_UNUSABLE) when there is none, it was used, has expired, names another node, or names none
    and the node has joined already.
    """
    await lock_revision(session, SERVICE)
    row = await session.get(JoinTokenRow, token_id)
    if row is None or not secret.same(row.digest, digest):
        why = "there is no such join token"
    elif row.use_time_unix_ns is not None:
        why = "this join token was used already"
    elif row.expire_time_unix_ns <= now_unix_ns:
        why = "this join token has expired"
    elif row.node and row.node != node:
        why = f"this join token is for {row.node}, not for {node}"
    elif not row.node and await _has_joined(session, node, now_unix_ns):
        # Else whoever holds a token for any node could take the name, and so the jobs, of one that is there.
        why = f"{node} has joined already, and only a token that names it lets it join again"
    else:
        row.use_time_unix_ns = now_unix_ns
        return
    raise PermissionDenied(
        f"{why}; make another with `switchgear join-token --node {node.removeprefix('nodes/')}`",
        Reason.JOIN_TOKEN_UNUSABLE,
        node=node,
    )


async def note_node(session: AsyncSession, node: str, expire_time_unix_ns: int, now_unix_ns: int) -> None:
    """The node has a certificate until then."""
    await session.execute(delete(NodeRow).where(NodeRow.expire_time_unix_ns <= now_unix_ns))
    await session.merge(NodeRow(node=node, expire_time_unix_ns=expire_time_unix_ns))


async def _has_joined(session: AsyncSession, node: str, now_unix_ns: int) -> bool:
    row = await session.get(NodeRow, node)
    return row is not None and row.expire_time_unix_ns > now_unix_ns


async def add_entries(session: AsyncSession, entries: Sequence[Entry]) -> list[int]:
    """Appends to the audit log; returns the ordinals."""
    ordinals = [await next_revision(session, SERVICE) for _ in entries]
    session.add_all(_entry_row(entry, ordinal) for entry, ordinal in zip(entries, ordinals, strict=True))
    return ordinals


async def count_more(session: AsyncSession, ordinal: int, more: int) -> None:
    """An entry stands for so many more of its kind."""
    await session.execute(update(EntryRow).where(EntryRow.ordinal == ordinal).values(count=EntryRow.count + more))


async def entries_before(session: AsyncSession, before: int | None, limit: int) -> list[Entry]:
    """Newest first."""
    query = select(EntryRow).order_by(EntryRow.ordinal.desc()).limit(limit)
    if before is not None:
        query = query.where(EntryRow.ordinal < before)
    return [_entry(row) for row in await session.scalars(query)]


async def prune(session: AsyncSession, mutations_max: int = MUTATIONS_MAX, refusals_max: int = REFUSALS_MAX) -> None:
    """Forgets the oldest entries beyond the bounds."""
    refused = EntryRow.refused.is_(True)
    for kind, keep in (
        (EntryRow.refused.is_(False), mutations_max),
        (and_(refused, EntryRow.actor == ""), refusals_max),
        (and_(refused, EntryRow.actor != ""), refusals_max),
    ):
        newest_too_many = await session.scalar(
            select(EntryRow.ordinal).where(kind).order_by(EntryRow.ordinal.desc()).offset(keep).limit(1)
        )
        if newest_too_many is not None:
            await session.execute(delete(EntryRow).where(kind, EntryRow.ordinal <= newest_too_many))


def _token(row: TokenRow) -> Token:
    return Token(
        row.token_id,
        row.digest,
        row.user,
        Role(row.role),
        row.create_time_unix_ns,
        row.expire_time_unix_ns,
        row.revoke_time_unix_ns,
        row.create_revision,
    )


def _entry(row: EntryRow) -> Entry:
    return Entry(
        row.time_unix_ns,
        row.actor,
        Role(row.role),
        row.method,
        row.resource,
        row.outcome,
        row.message,
        row.peer,
        row.trace_id,
        row.refused,
        row.count,
        row.ordinal,
    )


def _entry_row(entry: Entry, ordinal: int) -> EntryRow:
    return EntryRow(
        ordinal=ordinal,
        time_unix_ns=entry.time_unix_ns,
        actor=_text(entry.actor, 80),
        role=entry.role.value,
        method=_text(entry.method, 200),
        resource=_text(entry.resource, 200),
        outcome=entry.outcome,
        message=_text(entry.message, 500),
        peer=_text(entry.peer, 100),
        trace_id=_text(entry.trace_id, 32),
        refused=entry.refused,
        count=entry.count,
    )


def _text(value: str, length: int) -> str:
    """Often the choice of a caller: cut first, since it may be megabytes, and then of characters that a table can show."""
    return printable(value[:length])
