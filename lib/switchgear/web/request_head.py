"""A bound on how long an HTTP connection may take to say what it wants. uvicorn has none before the first answer."""

from __future__ import annotations

import asyncio
from typing import Any

#: From the beginning of a connection, or of a later request on it, to the end of that request's head. Whoever stays below the servers'
#: bound of connections, which are 1,000 and more, is then gone before anybody is turned away for them.
HEAD_S_MAX = 10.0


class PromptHead(asyncio.Protocol):
    """To be put in front of one of uvicorn's protocols: `class Prompt(PromptHead, H11Protocol)`.

    It cuts off a client that connects and says nothing, or begins a request and does not end its head. What a request's body and answer
    take, and an idle connection between two requests, are bounded elsewhere.
    """

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    #: The newest request, as uvicorn has it from the end of its head on.
    cycle: Any
    _newest: Any = None
    _cutting_off: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not self._newest:
            self._newest = self.cycle
            self._stop_waiting()
        # Data behind an answered request begin the next one, or are the rest of a body that was refused.
        if self._cutting_off is None and (self.cycle is None or self.cycle.response_complete):
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        # Not `close`, which over TLS would wait for the client once more.
        self._cutting_off = self.loop.call_later(HEAD_S_MAX, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._cutting_off is not None:
            self._cutting_off.cancel()
            self._cutting_off = None
