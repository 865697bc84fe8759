"""An HTTP server as a part of a process: uvicorn, with our bounds, our certificates and no say in signals."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from switchgear.core import rpc
from switchgear.core.errors import FailedPrecondition, Reason
from switchgear.core.tls import TlsFiles
from switchgear.web.request_head import PromptHead

#: A client that keeps its connection finds it open for longer than it keeps it itself (30 s in the router).
KEEP_ALIVE_S = 75


@asynccontextmanager
async def listening(
    app: ASGIApp,
    address: str,
    *,
    tls: TlsFiles | None,
    connections_max: int,
    grace_s: float,
    client_certificates: bool = False,
) -> AsyncIterator[str]:
    """Serves until the block ends, then finishes what is in flight within `grace_s`; gives the address with the port that was taken.

    tls: our certificate and key; None: plain HTTP, on loopback only. client_certificates: only clients with a certificate of `tls.ca`
    are served. connections_max: more are answered 503 at once.
    Raises FailedPrecondition when the port is taken, a file cannot be used, or the address is beyond loopback without TLS.
    """
    host, port = rpc.split_address(address)
    if tls is None:
        rpc.require_loopback(host)
    rpc.require_free_port(host, port)
    config = uvicorn.Config(
        app,
        http=_Protocol,
        log_config=None,
        access_log=False,
        proxy_headers=False,  # nobody stands in front of us whose word on the client counts
        limit_concurrency=connections_max,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(grace_s),
    )
    if tls is not None:
        config.load()
        config.ssl = _server_context(tls, client_certificates=client_certificates)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host.strip("[]"), port), family=family) as listener:
        # asyncio does it for sockets that name their protocol, which those of this listener do not; without it the body of an
        # answer waits 40 ms for the client to confirm its head.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = _Server(config)
        serving = asyncio.create_task(server.serve([listener]))
        ready = asyncio.create_task(server.ready.wait())
        try:
            await asyncio.wait((serving, ready), return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
                raise FailedPrecondition("the HTTP server could not start; the log has the cause", Reason.INTERNAL)
            yield f"{host}:{listener.getsockname()[1]}"
        finally:
            ready.cancel()
            server.should_exit = True
            await asyncio.gather(serving, return_exceptions=True)


class _Protocol(PromptHead, H11Protocol):
    pass


class _Server(uvicorn.Server):
    """A server that leaves signals to the process that it is a part of."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.ready.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server_context(tls: TlsFiles, *, client_certificates: bool) -> ssl.SSLContext:
    """Raises FailedPrecondition (TLS_FILES) when a file cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    return _loaded(context, tls, authorities=client_certificates)


def client_context(tls: TlsFiles) -> ssl.SSLContext:
    """For the machines of our own CA. Raises FailedPrecondition (TLS_FILES) when a file cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # A replica is found by the address that its node announced, which its certificate need not name.
    context.check_hostname = False
    return _loaded(context, tls, authorities=True)


def _loaded(context: ssl.SSLContext, tls: TlsFiles, *, authorities: bool) -> ssl.SSLContext:
    try:
        if tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key)
        if authorities:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(tls.ca)
    except OSError as error:  # ssl.SSLError is one
        raise FailedPrecondition(
            f"cannot use the certificates {tls.certificate} and {tls.ca} ({error.strerror or error}); "
            "make them with `switchgear init` or join the node again",
            Reason.TLS_FILES,
        ) from error
    return context
