"""The router in front of all replicas: an asyncio reverse proxy that holds requests while no replica can take them.

It runs inside `switchgear up`, or as `switchgear router`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry

from switchgear.core import rpc
from switchgear.core.clock import Clock, SystemClock
from switchgear.core.errors import FailedPrecondition, Reason
from switchgear.core.tls import TlsFiles
from switchgear.serve import http
from switchgear.serve.api_keys import ApiKeys
from switchgear.serve.proxy import Proxy
from switchgear.serve.router_link import RouterLink
from switchgear.serve.switchboard import Limits

DEFAULT_LISTEN = "127.0.0.1:7090"


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """autoscaler: HOST:PORT. listen: HOST:PORT, port 0 takes a free one.

    tls: how it proves itself to the autoscaler and to replicas, which then speak HTTPS; None: both are plain, on loopback.
    listen_tls: certificate and key that clients see; None: plain HTTP, on loopback only.
    key_file: keys of clients, see `api_keys.read`; None: no client needs one, on loopback only.
    connections_max: more clients at a time are answered 503; it exceeds `limits.held_requests`, since a held request has one.
    grace_s: how long requests may take to be finished at the end.
    """

    autoscaler: str
    listen: str = DEFAULT_LISTEN
    tls: TlsFiles | None = None
    listen_tls: TlsFiles | None = None
    key_file: Path | None = None
    limits: Limits = field(default_factory=Limits)
    connections_max: int = 2000
    grace_s: float = 30.0


@asynccontextmanager
async def serve(settings: RouterSettings, registry: CollectorRegistry) -> AsyncIterator[str]:
    """Routes until the block ends, then finishes what is in flight; gives the address with the port that was taken.

    registry: gets the router's metrics, and is shown at `/metrics` when clients need no key.
    Raises FailedPrecondition when the port is taken, certificates or keys cannot be used, or the address is beyond loopback without
    TLS or without keys.
    """
    clock = SystemClock()
    keys = _keys(settings, clock)
    proxy = Proxy(settings.limits, registry, clock, settings.tls, keys)
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


def _keys(settings: RouterSettings, clock: Clock) -> ApiKeys | None:
    if settings.key_file is not None:
        return ApiKeys(settings.key_file, clock)
    host, _ = rpc.split_address(settings.listen)
    if not rpc.is_loopback(host):
        raise FailedPrecondition(
            f"refusing to listen on {host!r}: without keys anyone who reaches it could use the models; use 127.0.0.1, or write keys into "
            "a file and name it: `switchgear router --api-key-file FILE`, `switchgear up --router-key-file FILE`",
            Reason.INSECURE_BIND,
            host=host,
        )
    return None
