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
#: From one server to the next without having been taken in: more than a ring that is being changed has.
HOPS_MAX = 4
_REFUSALS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


class Homing:
    """Where to dial next, of servers that send those whom they do not serve to another: home, or where it pointed last.

    address: HOST:PORT to dial now.
    """

    def __init__(self, home: str) -> None:
        self._home = self.address = home
        self._pointed = home
        self._hops = 0

    def redirected(self, address: str) -> None:
        """The server that was dialled names another one. Servers that point at each other lead home, after HOPS_MAX of them."""
        self._hops += 1
        self._pointed = self.address = address
        if self._hops > HOPS_MAX:
            log.warning(
                "sent on %d times, at last to %s: the servers do not agree who serves whom", self._hops, address
            )
            self.lost()

    def lost(self) -> None:
        """The connection broke, or there was none: the other one may know, or be back sooner."""
        self._hops = 0
        self.address = self._pointed if self.address == self._home else self._home


async def keep_connected(what: str, connect: Callable[[], Awaitable[str | None]], clock: Clock) -> None:
    """Calls `connect` again and again, with growing, jittered waits in between, until cancelled.

    connect: returns when the connection has ended, with the reason if it knows one.
    """
    backoff_s = BACKOFF_S_MIN
    told = ""
    while True:
        start_s = clock.monotonic_s()
        wait_s_max = BACKOFF_S_MAX
        why = "closed by the server"
        # As a task of its own: a TaskGroup within it may hide our cancellation behind an error that comes at the same moment, or leave its own
        # count of cancellations behind (python/cpython issue 116720).
        connection = asyncio.ensure_future(connect())
        try:
            await asyncio.wait([connection])
        finally:
            connection.cancel()
            await asyncio.gather(connection, return_exceptions=True)
        try:
            why = why if connection.cancelled() else connection.result() or why
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
