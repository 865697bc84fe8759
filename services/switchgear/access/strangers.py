"""Notices who is turned away in the TLS handshake of the machines' port, where no handler of ours runs.

gRPC asks for the server's certificates at the begin of each handshake. That is the moment to look which connections are there; one
that is gone a little later without having made a call was refused, or went away by itself. Nothing here is in the way of a handshake:
looking is limited to a small share of the time, so in a storm of connections some are missed. gRPC clients come back for ever, so
one of them is seen in the end.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio

from switchgear.access.audit import AuditLog
from switchgear.access.model import Entry
from switchgear.access.pki import Pki
from switchgear.core.clock import Clock
from switchgear.core.identity import Role

Peer = tuple[str, int]

MESSAGE = "closed before any call: no certificate, or one that our CA has not made"
#: A node that was let in calls within milliseconds; after this it is asked for.
GRACE_S = 3.0
#: After a look that took t, the next is t times this away: at most 5 % of a core.
_REST = 20
#: Connections that have not called yet, and peers that called lately; beyond it the oldest are not looked after.
PEERS_MAX = 1000
_SWEEP_S = 1.0


class Strangers:
    """Of one machines' port. `look` runs in gRPC's threads, all else in the event loop."""

    def __init__(self, log: AuditLog, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._port = 0
        self._lock = threading.Lock()
        self._rest_until_s = 0.0
        #: Sockets of this process that were looked at: inode -> peer, None for what is no connection of our port.
        self._sockets: dict[str, Peer | None] = {}
        #: Peers that have not called, and since when they are known.
        self._silent: dict[Peer, float] = {}
        self._callers: dict[Peer, None] = {}
        #: Tells `called` of every call. It goes before all others: then it sees also what no handler of ours does.
        self.interceptor: grpc.aio.ServerInterceptor = _EveryCall(self.called)

    def credentials(self, pki: Pki) -> grpc.ServerCredentials:
        """Mutual TLS: a client without a certificate of our CA gets no further than the handshake."""
        look: Any = self.look  # gRPC takes None for "no change"; its types do not
        return grpc.dynamic_ssl_server_credentials(pki.configuration(), look, require_client_authentication=True)

    def watch(self, port: int) -> None:
        """Which port this is about, once it is bound."""
        self._port = port

    def called(self, peer: str) -> None:
        """A call came from there, so it was let in. peer: as gRPC writes it."""
        known = split_peer(peer)
        if known is None:
            return
        with self._lock:
            self._silent.pop(known, None)
            self._callers[known] = None
            while len(self._callers) > PEERS_MAX:
                del self._callers[next(iter(self._callers))]

    def look(self) -> None:
        """Called at the begin of each handshake; None means that the server's certificates stay what they are."""
        if self._port and time.monotonic() >= self._rest_until_s and self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()

    async def run(self) -> None:
        """Reports those who were turned away, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            for host, _ in await asyncio.to_thread(self.gone):
                self._log.refuse(
                    Entry(
                        time_unix_ns=self._clock.unix_ns(),
                        actor="",
                        role=Role.NONE,
                        method="",
                        resource="",
                        outcome="UNAUTHENTICATED",
                        message=MESSAGE,
                        peer=host,
                        trace_id="",
                        refused=True,
                    )
                )

    def gone(self) -> list[Peer]:
        """Peers that came at least GRACE_S ago, never called and have left; each is told once."""
        due_s = time.monotonic() - GRACE_S
        with self._lock:
            due = [peer for peer, since_s in self._silent.items() if since_s <= due_s]
            if not due:
                return []
            self._look()
            here = set(self._sockets.values())
            gone = [peer for peer in due if peer not in here]
            for peer in gone:
                del self._silent[peer]
        return gone

    def _look(self) -> None:
        begin_s = time.monotonic()
        sockets: dict[str, Peer | None] = {}
        for file in os.listdir("/proc/self/fd"):  # noqa: PTH208 - of many, and only the name is wanted
            try:
                inode = str(Path.readlink(Path("/proc/self/fd", file)))
                if inode.startswith("socket:"):
                    sockets[inode] = self._sockets[inode] if inode in self._sockets else self._peer(int(file))
            except OSError:
                continue  # closed meanwhile
            if inode in sockets and inode not in self._sockets and (peer := sockets[inode]) is not None:
                self._appeared(peer, begin_s)
        self._sockets = sockets
        end_s = time.monotonic()
        self._rest_until_s = end_s + _REST * (end_s - begin_s)

    def _appeared(self, peer: Peer, now_s: float) -> None:
        if peer not in self._callers and len(self._silent) < PEERS_MAX:
            self._silent[peer] = now_s

    def _peer(self, descriptor: int) -> Peer | None:
        # A duplicate: closing it leaves gRPC's own open.
        with socket.socket(fileno=os.dup(descriptor)) as one:
            if one.family not in (socket.AF_INET, socket.AF_INET6) or one.getsockname()[1] != self._port:
                return None
            host, port = one.getpeername()[:2]
            return str(host).removeprefix("::ffff:"), int(port)


def split_peer(peer: str) -> Peer | None:
    """Host and port of `ipv4:127.0.0.1:5000` or `ipv6:%5B::1%5D:5000`; None for another kind, as a Unix socket."""
    kind, _, rest = peer.partition(":")
    host, _, port = unquote(rest).rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return None
    return host.strip("[]").removeprefix("::ffff:"), int(port)


class _EveryCall(grpc.aio.ServerInterceptor):
    """Health checks and calls of methods that nobody has come from somebody who was let in, too."""

    def __init__(self, called: Callable[[str], None]) -> None:
        self._called = called

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return grpc.stream_stream_rpc_method_handler(self._unknown)
        kind = handler.request_streaming, handler.response_streaming
        inner = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            self._called(context.peer())
            async for response in inner(request, context):
                yield response

        async def call(request: Any, context: Any) -> Any:
            self._called(context.peer())
            return await inner(request, context)

        # Of what streams, health alone is no async generator.
        noted = stream if inspect.isasyncgenfunction(inner) else call
        return _MAKE[kind](noted, handler.request_deserializer, handler.response_serializer)

    async def _unknown(self, _: Any, context: Any) -> None:
        self._called(context.peer())
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this server has no such method")


#: By whether requests and responses are streams.
_MAKE: dict[tuple[bool, bool], Callable[..., grpc.RpcMethodHandler[Any, Any]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
