"""What composes a process asks of access: one guard, which knows the callers, lets them in and writes down what they change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

from switchgear.access.interceptor import GuardInterceptor
from switchgear.access.pki import Pki
from switchgear.core.clock import Clock
from switchgear.core.service import Service
from switchgear.core.tls import TlsFiles
from switchgear.store.database import Database


@dataclass(frozen=True, slots=True)
class HttpSsl:
    """What uvicorn takes for HTTPS."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Guard:
    """All None without TLS: then everything is plain and on loopback, and every caller is `local`.

    interceptor: goes into `rpc.Server(interceptors=[...])`, after those that start spans and count.
    people_credentials: TLS for the port on which callers bring a token. machine_credentials: mutual TLS for the other port, on
    which nodes and services bring certificates; `rpc.Server.also_listen` takes it, before `start`.
    tls_files: what this process's own channels take (`Endpoints.tls`); its channels go to machines' ports.
    service: serves AccessService, in the gateway's process.
    """

    interceptor: grpc.aio.ServerInterceptor
    service: Service | None = None
    people_credentials: grpc.ServerCredentials | None = None
    machine_credentials: grpc.ServerCredentials | None = None
    tls_files: TlsFiles | None = None
    http_ssl: HttpSsl | None = None
    _addresses: dict[str, str] = field(default_factory=dict)

    def listening(self, people: str, machines: str) -> None:
        """Tells where this process's ports are, once they are bound: join tokens name them. machines: `people` without TLS."""
        self._addresses.update(people=people, machines=machines)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Writes the audit log while the block runs, and what is left of it at the end. Servers start and stop inside.

        An address that was refused for lack of TLS (INSECURE_BIND, raised by the block) is written down too.
        """
        yield


def guard(database: Database, clock: Clock, pki: Pki | None) -> Guard:
    """The guard of one process. pki: what `switchgear init` made (`Pki.find(state_dir / "pki")`); None: everything is plain."""
    _ = (database, clock, pki)
    return Guard(GuardInterceptor())
