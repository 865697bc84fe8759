"""One rule for all lasting connections to the control plane: come back soon, but not all at once."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterator

import grpc
import grpc.aio

from switchgear.core.clock import Clock

log = logging.getLogger(__name__)

BACKOFF_S_MIN = 0.1
#: A server that is back is found within this time.
BACKOFF_S_MAX = 2.0
#: The server refused what was said: saying it again at once would not help.
REFUSED_BACKOFF_S = 10.0
# A connection that lasted this long was a good one: the next break starts with the shortest wait.
_GOOD_S = 5.0
_REFUSALS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


async def keep_connected(what: str, connect: Callable[[], Awaitable[None]], clock: Clock) -> None:
    """Calls `connect` again and again, with growing, jittered waits in between, until cancelled."""
    backoff_s = BACKOFF_S_MIN
    told = ""
    while True:
        start_s = clock.monotonic_s()
        wait_s_max = BACKOFF_S_MAX
        why = "closed by the server"
        try:
            await connect()
        except* grpc.aio.AioRpcError as group:
            error = next(_leaves(group))
            if error.code() in _REFUSALS:
                wait_s_max = backoff_s = REFUSED_BACKOFF_S
            why = f"{error.code().name} {error.details()}"
        # Once for each reason: a server that is away for a day is not worth a line every two seconds.
        log.log(logging.DEBUG if why == told else logging.WARNING, "%s lost: %s", what, why)
        told = why
        if clock.monotonic_s() - start_s > _GOOD_S:
            backoff_s, told = BACKOFF_S_MIN, ""
        await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
        backoff_s = min(2 * backoff_s, wait_s_max)


def _leaves(group: BaseExceptionGroup[grpc.aio.AioRpcError]) -> Iterator[grpc.aio.AioRpcError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
