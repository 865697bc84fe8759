"""What composes a process asks of access: one guard, which knows the callers, lets them in and writes down what they change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
from prometheus_client import CollectorRegistry, Counter

from switchgear.access import store
from switchgear.access.audit import AuditLog
from switchgear.access.callers import Callers
from switchgear.access.interceptor import GuardInterceptor
from switchgear.access.model import Entry
from switchgear.access.people import People
from switchgear.access.pki import Pki
from switchgear.access.service import AccessService
from switchgear.access.strangers import Strangers
from switchgear.core import rpc
from switchgear.core.clock import Clock
from switchgear.core.errors import FailedPrecondition, Reason, Unauthenticated
from switchgear.core.identity import Role
from switchgear.core.service import Service
from switchgear.core.tls import TlsFiles
from switchgear.store.database import Database


class Guard:
    """All but the first three are None without TLS: then everything is plain and on loopback, and every caller is `local`.

    interceptor: goes into `rpc.Server(interceptors=[...])`, after those that start spans and count. outermost: go into
    `rpc.Server(outermost=[...])`, before all others.
    service: serves AccessService, in the gateway's process.
    people_credentials: TLS for the port on which callers bring a token. machine_credentials: mutual TLS for the other port, on
    which nodes and services bring certificates; `rpc.Server.also_listen` takes it, before `start`.
    tls_files: what this process's own channels take (`Endpoints.tls`); its channels go to machines' ports.
    http_ssl: certificate and key for HTTPS. admit_http: says who may come in by REST, see `gateway.main.Admit`.
    """

    def __init__(self, database: Database, clock: Clock, pki: Pki | None, registry: CollectorRegistry) -> None:
        self._database = database
        self._clock = clock
        self._log = AuditLog(database, clock)
        self._people = People(database, clock)
        self._strangers = Strangers(self._log, clock) if pki else None
        self._addresses = "", ""
        self._refusals = Counter(
            "switchgear_access_refused", "Calls that were not let in.", ["reason"], registry=registry
        )
        self.interceptor: grpc.aio.ServerInterceptor = GuardInterceptor(
            Callers(self._people, secure=pki is not None), self._log, clock, self._count
        )
        self.outermost: Sequence[grpc.aio.ServerInterceptor] = (self._strangers.interceptor,) if self._strangers else ()
        self.service: Service = AccessService(database, clock, self._log, pki, lambda: self._addresses)
        self.people_credentials: grpc.ServerCredentials | None = None
        self.machine_credentials: grpc.ServerCredentials | None = None
        self.tls_files: TlsFiles | None = None
        self.http_ssl: TlsFiles | None = None
        self.admit_http: Callable[[str | None, str, str, str], Awaitable[None]] | None = None
        self._pki = pki
        if pki is not None and self._strangers is not None:
            self.people_credentials = grpc.ssl_server_credentials(
                [(pki.key.read_bytes(), pki.certificate.read_bytes())]
            )
            self.machine_credentials = self._strangers.credentials(pki)
            self.tls_files = pki.tls_files
            self.http_ssl = pki.tls_files
            self.admit_http = self._admit_http

    def listening(self, people: str, machines: str = "", *, whole: bool = True) -> None:
        """Tells where this process's ports are, once they are bound: join tokens name them.

        machines: empty without TLS. whole: whether all services are here, so that an agent needs no other address.
        """
        self._addresses = people, machines if whole else ""
        if self._strangers and machines:
            self._strangers.watch(rpc.split_address(machines)[1])

    async def _admit_http(self, authorization: str | None, host: str, route: str, path: str) -> None:
        try:
            if authorization is None:
                raise Unauthenticated(
                    "there is no token; send the header `Authorization: Bearer sgt_…`", Reason.UNAUTHENTICATED
                )
            await self._people.holder(authorization)
        except Unauthenticated as error:
            self._count(error.reason)
            self._log.refuse(self._refusal(error.code, error.message, host, route, path))
            raise

    async def own_node(self, node: str, folder: Path) -> TlsFiles | None:
        """Files of the agent that runs in this very process, made when they are missing; None without TLS.

        node: `nodes/{node}`. folder: as the agent would keep them itself.
        Raises FailedPrecondition (TLS_FILES) when the CA's key is not here.
        """
        if self._pki is None:
            return None
        now = self._clock.unix_ns()
        files, expire = self._pki.node_files(node, folder, now)
        async with self._database.write() as session:
            await store.note_node(session, node, expire, now)
        return files

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Writes the audit log while the block runs, and what is left of it at the end. Servers start and stop inside.

        An address that was refused for lack of TLS (INSECURE_BIND, raised by the block) is written down too.
        """
        tasks = [asyncio.create_task(self._log.run())]
        if self._strangers:
            tasks.append(asyncio.create_task(self._strangers.run()))
        try:
            yield
        except Exception as error:
            cause = error
            while isinstance(cause, ExceptionGroup):  # a process that holds leases serves in a task group
                cause = cause.exceptions[0]
            if isinstance(cause, FailedPrecondition) and cause.reason is Reason.INSECURE_BIND:
                self._count(cause.reason)
                self._log.refuse(self._refusal(cause.code, cause.message, "", "", ""))
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._log.flush()

    def _count(self, reason: Reason) -> None:
        self._refusals.labels(reason=reason.value).inc()

    def _refusal(self, outcome: str, message: str, peer: str, method: str, resource: str) -> Entry:
        return Entry(
            time_unix_ns=self._clock.unix_ns(),
            actor="",
            role=Role.NONE,
            method=method,
            resource=resource,
            outcome=outcome,
            message=message,
            peer=peer,
            trace_id="",
            refused=True,
        )


def guard(database: Database, clock: Clock, pki: Pki | None, registry: CollectorRegistry | None = None) -> Guard:
    """The guard of one process.

    pki: what `switchgear init` made (`Pki.find(state_dir / "pki")`); None: everything is plain.
    registry: where its metrics go; a private one when left out.
    """
    return Guard(database, clock, pki, registry or CollectorRegistry())
