"""A guarded server with real TLS on loopback, and whoever calls it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from switchgear.access import pki as authority
from switchgear.access import secret, store
from switchgear.access.guard import Guard, guard
from switchgear.access.model import Token
from switchgear.access.pki import Pki
from switchgear.core import identity, rpc
from switchgear.core.clock import Clock, ManualClock
from switchgear.core.identity import Role
from switchgear.core.service import Service
from switchgear.core.tls import NodeFiles, TlsFiles
from switchgear.store.database import Database
from switchgear.v1 import access_service_pb2 as pb
from switchgear.v1 import access_service_pb2_grpc as pb_grpc
from switchgear.v1 import fleet_service_pb2 as fleet_pb
from switchgear.v1 import fleet_service_pb2_grpc as fleet_grpc

DAY_NS = 86400 * 1_000_000_000


class Fleet(fleet_grpc.FleetServiceServicer):
    """Answers with who it takes the caller for."""

    def __init__(self) -> None:
        self.news: asyncio.Queue[int] = asyncio.Queue()

    async def GetNode(self, request: fleet_pb.GetNodeRequest, context: Any) -> fleet_pb.Node:  # noqa: N802
        return fleet_pb.Node(name=request.name, actor=identity.current().actor)

    async def CordonNode(self, request: fleet_pb.CordonNodeRequest, context: Any) -> fleet_pb.Node:  # noqa: N802
        if request.name == "nodes/broken":
            raise ValueError("the disk is on fire")
        return fleet_pb.Node(name=request.name, actor=identity.actor(request.actor))

    async def WatchNodes(  # noqa: N802
        self, request: fleet_pb.WatchNodesRequest, context: Any
    ) -> AsyncIterator[fleet_pb.WatchNodesResponse]:
        """One answer at once and one each time that `world.news` has something."""
        yield fleet_pb.WatchNodesResponse(node=fleet_pb.Node(actor=identity.current().actor))
        while True:
            yield fleet_pb.WatchNodesResponse(revision=await self.news.get())


@dataclass
class World:
    """people, machines: addresses; the same without TLS. news: what `Fleet` tells those who watch."""

    database: Database
    clock: Clock
    pki: Pki | None
    guard: Guard
    people: str
    machines: str
    news: asyncio.Queue[int]

    def channel(self, token: str = "", files: TlsFiles | None = None) -> grpc.aio.Channel:
        """A person's channel with a token, or a machine's with its files."""
        if self.pki is None:
            return rpc.channel(self.people)
        if files:
            return rpc.channel(self.machines, files)
        credentials = TlsFiles(self.pki.ca).channel_credentials()
        if token:
            credentials = grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token))
        return grpc.aio.secure_channel(self.people, credentials)

    async def token(self, user: str, role: Role, days: int = 1) -> str:
        return await add_token(self.database, self.clock, user, role, days)

    async def node(self, name: str, folder: Path) -> TlsFiles:
        files = await self.guard.own_node(f"nodes/{name}", folder / name)
        assert files
        return files

    async def audit(self) -> list[pb.AuditEntry]:
        """Newest first, as an admin reads it."""
        async with self.channel(await self.token("auditor", Role.ADMIN)) as channel:
            stub: Any = pb_grpc.AccessServiceStub(channel)
            return list((await stub.ListAuditEntries(pb.ListAuditEntriesRequest())).entries)


async def add_token(database: Database, clock: Clock, user: str, role: Role, days: int = 1) -> str:
    text, token_id, digest = secret.create(secret.BEARER)
    now = clock.unix_ns()
    async with database.write() as session:
        await store.add_token(session, Token(token_id, digest, user, role, now, now + days * DAY_NS))
    return text


@asynccontextmanager
async def serving(
    database: Database, folder: Path | None, services: Sequence[Service] = (), clock: Clock | None = None
) -> AsyncIterator[World]:
    """folder: of the PKI, made here; None: without TLS. services: instead of `Fleet`."""
    clock = clock or ManualClock()
    if folder:
        authority.create(folder, [], clock.unix_ns())
    pki = Pki.find(folder) if folder else None
    one = guard(database, clock, pki)
    fleet = Fleet()
    server = rpc.Server([one.interceptor], outermost=one.outermost)
    if not services:
        fleet_grpc.add_FleetServiceServicer_to_server(fleet, server.grpc)
    for service in (*services, one.service):
        service.register(server.grpc)
    async with one.running():
        machines = server.also_listen("127.0.0.1:0", one.machine_credentials) if one.machine_credentials else ""
        people = await server.start("127.0.0.1:0", ["switchgear.v1.FleetService"], one.people_credentials)
        one.listening(people, machines)
        try:
            yield World(database, clock, pki, one, people, machines or people, fleet.news)
        finally:
            await server.stop(0)


def request_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A certificate request as an agent makes it."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "anything")])
    built = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return built.public_bytes(serialization.Encoding.DER)


def foreign_files(folder: Path, node: str, believed: Pki, now_unix_ns: int) -> TlsFiles:
    """A certificate of that node from a CA of one's own, held by somebody who believes ours."""
    authority.create(folder / "pki", [], now_unix_ns)
    other = Pki.find(folder / "pki")
    assert other
    other.node_files(f"nodes/{node}", folder / "tls", now_unix_ns)
    files = NodeFiles(folder / "tls")
    return TlsFiles(believed.ca, files.certificate, files.key)
