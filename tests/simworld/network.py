"""Streams between launchers and recovery as gRPC keeps them: in order, cut as a whole, each end learning of it by itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from simworld.kernel import Kernel

#: A peer that does not answer is given up after the ping interval and its time-out (`core.rpc`).
KEEPALIVE_S = (5.0, 15.0)
#: A closed connection is noticed.
CLOSE_S = (0.001, 0.2)
LATENCY_S = (0.001, 0.03)


class Link:
    """The network of one node. While it is down nothing arrives; what was sent waits as TCP does."""

    def __init__(self) -> None:
        self.up = True
        self.held: list[Callable[[], None]] = []

    def heal(self, kernel: Kernel) -> None:
        self.up = True
        held, self.held = self.held, []
        for deliver in held:
            kernel.after(kernel.between(*LATENCY_S), deliver)


class Pipe:
    """One direction of a stream. Messages arrive in the order in which they were sent, or not at all."""

    def __init__(self, kernel: Kernel, link: Link, take: Callable[[object], None]) -> None:
        self._kernel, self._link, self._take = kernel, link, take
        self._messages: deque[object] = deque()
        self.closed = False

    def send(self, message: object) -> None:
        self._messages.append(message)
        self._kernel.after(self._kernel.between(*LATENCY_S), self._deliver)

    def _deliver(self) -> None:
        if not self._link.up:
            self._link.held.append(self._deliver)
        elif not self.closed:
            self._take(self._messages.popleft())


class Stream:
    """A stream between a launcher (client) and recovery (server). Either end closes; the other learns of it later."""

    def __init__(self, kernel: Kernel, link: Link, node: str, client: Callable[[object], None]) -> None:
        self.node = node
        self._kernel, self._link = kernel, link
        self.up = Pipe(kernel, link, self._arrived)
        self.down = Pipe(kernel, link, client)
        self.server_takes: Callable[[object], None] = lambda _: None
        self.on_client_end: Callable[[], None] = lambda: None
        self.on_server_end: Callable[[], None] = lambda: None
        self.client_open = self.server_open = True
        #: As the hello on this stream has it.
        self.launcher_id, self.epoch = "", 0

    def _arrived(self, message: object) -> None:
        self.server_takes(message)

    def close_client(self) -> None:
        """What the client has sent may still arrive."""
        if self.client_open:
            self.client_open = False
            self.down.closed = True
            self.up.closed = self.up.closed or self._kernel.chance(0.5)
            self._kernel.after(self._noticed_after_s(), self._server_learns)

    def close_server(self) -> None:
        if self.server_open:
            self.server_open = False
            self.up.closed = True
            self._kernel.after(self._noticed_after_s(), self._client_learns)

    def break_silently(self) -> None:
        """The link is down: each end gives up after its own keepalive, unless the link is up again by then."""
        for learns in (self._server_learns, self._client_learns):
            self._kernel.after(self._kernel.between(*KEEPALIVE_S), partial(self._if_still_down, learns))

    def break_loudly(self) -> None:
        """Something on the way resets the connection: both ends learn of it at once."""
        self._server_learns()
        self._client_learns()

    def _if_still_down(self, learns: Callable[[], None]) -> None:
        if not self._link.up:
            learns()

    def _noticed_after_s(self) -> float:
        return self._kernel.between(*(CLOSE_S if self._link.up else KEEPALIVE_S))

    def _server_learns(self) -> None:
        if self.server_open:
            self.server_open = False
            self.up.closed = True
            self.on_server_end()
            self._kernel.after(self._noticed_after_s(), self._client_learns)

    def _client_learns(self) -> None:
        if self.client_open:
            self.client_open = False
            self.down.closed = True
            self.on_client_end()
            self._kernel.after(self._noticed_after_s(), self._server_learns)
