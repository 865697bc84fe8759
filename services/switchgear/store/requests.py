"""Mutations that a client may send again (https://google.aip.dev/155)."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from google.protobuf.message import Message
from sqlalchemy import delete, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from switchgear.core.errors import Aborted, Invalid, Reason
from switchgear.store.tables import RequestRow

M = TypeVar("M", bound=Message)

#: Longer than any client retries, short enough that the table stays small.
RETENTION_S = 24 * 3600
REQUEST_ID_LENGTH_MAX = 128

_CLAIM = text(
    "INSERT INTO requests (request_type, request_id, fingerprint, response, create_time_unix_ns) "
    "VALUES (:request_type, :request_id, :fingerprint, :response, :now) ON CONFLICT DO NOTHING RETURNING request_id"
)


async def once(
    session: AsyncSession,
    request_id: str,
    request: Message,
    response_type: type[M],
    act: Callable[[], Awaitable[M]],
    *,
    now_unix_ns: int,
) -> M:
    """What `act` answers, run at most once for a request_id and type of request within 24 hours.

    Call it first in the `write` transaction in which `act` writes: both are kept or neither. An empty request_id always
    acts. A second call while the first is under way waits for it. When `act` raises, nothing is remembered.
    Raises Invalid (REQUEST_ID_REUSED) when the id came with another request before.
    """
    if not request_id:
        return await act()
    if len(request_id) > REQUEST_ID_LENGTH_MAX:
        raise Invalid(
            f"request_id must have at most {REQUEST_ID_LENGTH_MAX} characters; use a UUID",
            Reason.BAD_FIELD,
            field="request_id",
        )
    fingerprint = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
    await session.execute(
        delete(RequestRow).where(RequestRow.create_time_unix_ns < now_unix_ns - RETENTION_S * 1_000_000_000)
    )
    request_type = request.DESCRIPTOR.full_name
    mine = (RequestRow.request_type == request_type) & (RequestRow.request_id == request_id)
    claimed = await session.execute(
        _CLAIM,
        {
            "request_type": request_type,
            "request_id": request_id,
            "fingerprint": fingerprint,
            "response": b"",
            "now": now_unix_ns,
        },
    )
    if claimed.scalar_one_or_none() is None:
        earlier = (await session.execute(select(RequestRow.fingerprint, RequestRow.response).where(mine))).one_or_none()
        if earlier is None:
            raise Aborted("the same request ended a moment ago; send it again", Reason.REQUEST_ID_REUSED)
        if earlier.fingerprint != fingerprint:
            raise Invalid(
                f"request_id {request_id!r} came with another request before; use a new one for each request",
                Reason.REQUEST_ID_REUSED,
                request_id=request_id,
            )
        return response_type.FromString(earlier.response)
    response = await act()
    await session.execute(update(RequestRow).where(mine).values(response=response.SerializeToString()))
    return response
