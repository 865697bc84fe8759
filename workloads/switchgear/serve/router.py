"""The router in front of all replicas: an asyncio reverse proxy that holds requests while no replica can take them.

It runs inside `switchgear up`, or as `switchgear router`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from switchgear.core.clock import SystemClock
from switchgear.core.tls import TlsFiles
from switchgear.serve import http
from switchgear.serve.proxy import Proxy
from switchgear.serve.router_link import RouterLink
from switchgear.serve.switchboard import Limits

DEFAULT_LISTEN = "127.0.0.1:7090"


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """autoscaler: HOST:PORT. listen: HOST:PORT, port 0 takes a free one.

    tls: how it proves itself to the autoscaler and to replicas, which then speak HTTPS; None: both are plain, on loopback.
    listen_tls: certificate and key that clients see; None: plain HTTP, on loopback only.
    connections_max: more clients at a time are answered 503; it exceeds `limits.held_requests`, since a held request has one.
    grace_s: how long requests may take to be finished at the end.
    """

    autoscaler: str
    listen: str = DEFAULT_LISTEN
    tls: TlsFiles | None = None
    listen_tls: TlsFiles | None = None
    limits: Limits = field(default_factory=Limits)
    connections_max: int = 2000
    grace_s: float = 30.0


@asynccontextmanager
async def serve(settings: RouterSettings, registry: CollectorRegistry) -> AsyncIterator[str]:
    """Routes until the block ends, then finishes what is in flight; gives the address with the port that was taken.

    registry: gets the router's metrics, and is shown at `/metrics`.
    Raises FailedPrecondition when the port is taken, a certificate cannot be used, or the address is beyond loopback without TLS.
    """
    clock = SystemClock()
    proxy = Proxy(settings.limits, registry, clock, settings.tls)
    link = asyncio.create_task(RouterLink(settings.autoscaler, settings.tls, proxy, clock).run())
    try:
        async with http.listening(
            proxy.app(),
            settings.listen,
            tls=settings.listen_tls,
            client_certificates=False,
            connections_max=settings.connections_max,
            grace_s=settings.grace_s,
        ) as address:
            yield address
    finally:
        # After the last answer: held requests need the newest table until then.
        link.cancel()
        await asyncio.gather(link, return_exceptions=True)
        await proxy.close()
