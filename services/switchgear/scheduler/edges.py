"""What the scheduler's gRPC edges share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import grpc.aio
from google.protobuf.message import Message

from switchgear.core import identity
from switchgear.scheduler.repository import Repository, Transaction
from switchgear.scheduler.translate import clean
from switchgear.store.requests import once

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
M = TypeVar("M", bound=Message)

REASON_LENGTH_MAX = 1000
ACTOR_LENGTH_MAX = 200


async def mutate(
    repository: Repository,
    request_id: str,
    request: Message,
    response_type: type[M],
    act: Callable[[Transaction], Awaitable[M]],
) -> M:
    """What `act` answers, in one write; once for a request_id."""
    async with repository.write() as transaction:
        return await once(
            transaction.session,
            request_id,
            request,
            response_type,
            lambda: act(transaction),
            now_unix_ns=transaction.now_unix_ns,
        )


def actor_of(actor: str) -> str:
    """Whom to record for a change; `actor` is what the request says."""
    return clean(identity.actor(actor), ACTOR_LENGTH_MAX) or "user"
