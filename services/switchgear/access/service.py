"""AccessService: tokens, join tokens and the audit log over gRPC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from switchgear.access import secret, store
from switchgear.access.audit import AuditLog
from switchgear.access.model import Entry, JoinToken, Token
from switchgear.access.pki import Pki, public_key_of
from switchgear.core import identity, names
from switchgear.core.clock import Clock
from switchgear.core.errors import AlreadyExists, FailedPrecondition, Invalid, PermissionDenied, Reason
from switchgear.core.identity import Identity, Kind, Role
from switchgear.core.joining import Invitation
from switchgear.core.service import Endpoints
from switchgear.store import paging
from switchgear.store.database import Database
from switchgear.store.requests import once
from switchgear.v1 import access_service_pb2 as pb
from switchgear.v1 import access_service_pb2_grpc as pb_grpc

Context = grpc.aio.ServicerContext[Any, Any]

_DAY_S = 86400
VALID_DAYS_DEFAULT, VALID_DAYS_MAX = 90, 366
JOIN_VALID_S_DEFAULT, JOIN_VALID_S_MAX = 3600, 7 * _DAY_S


class AccessService(pb_grpc.AccessServiceServicer):
    """See `core.service.Service`. addresses: of the people's and the machines' port, known once they are bound."""

    service_names: Sequence[str] = ("switchgear.v1.AccessService",)

    def __init__(
        self,
        database: Database,
        clock: Clock,
        log: AuditLog,
        pki: Pki | None,
        addresses: Callable[[], tuple[str, str]],
    ) -> None:
        self._database = database
        self._clock = clock
        self._log = log
        self._pki = pki
        self._addresses = addresses

    def register(self, server: grpc.aio.Server) -> None:
        pb_grpc.add_AccessServiceServicer_to_server(self, server)

    async def run(self, endpoints: Endpoints) -> None:
        """It has no loop of its own: the guard's writes the audit log."""

    async def CreateToken(self, request: pb.CreateTokenRequest, context: Context) -> pb.CreateTokenResponse:
        self._require_pki()
        days = _within(request.valid_days, VALID_DAYS_DEFAULT, VALID_DAYS_MAX, "valid_days")
        role = _role(request.role)
        user = names.check_id(request.user, "user")
        now = self._clock.unix_ns()
        text, token_id, digest = secret.create(secret.BEARER)
        token = Token(token_id, digest, user, role, now, now + days * _DAY_S * 1_000_000_000)
        async with self._database.write() as session:

            async def act() -> pb.CreateTokenResponse:
                return pb.CreateTokenResponse(token=_token(await store.add_token(session, token)))

            # What is remembered of a request is in the database: the secret must not be.
            response = await once(session, request.request_id, request, pb.CreateTokenResponse, act, now_unix_ns=now)
        if response.token.name != f"tokens/{token_id}":
            raise _made_before(f"revoke {response.token.name} and create another")
        response.secret = text
        return response

    async def ListTokens(self, request: pb.ListTokensRequest, context: Context) -> pb.ListTokensResponse:
        size = paging.page_size(request.page_size)
        before = paging.after_number("tokens", request.page_token)
        async with self._database.read() as session:
            found = await store.tokens_before(session, before, size + 1)
        page = found[:size]
        return pb.ListTokensResponse(
            tokens=[_token(token) for token in page],
            next_page_token=paging.page_token("tokens", page[-1].create_revision) if len(found) > size else "",
        )

    async def RevokeToken(self, request: pb.RevokeTokenRequest, context: Context) -> pb.Token:
        (token_id,) = names.parse(request.name, "tokens/*")
        now = self._clock.unix_ns()
        async with self._database.write() as session:

            async def act() -> pb.Token:
                return _token(await store.revoke_token(session, token_id, now))

            return await once(session, request.request_id, request, pb.Token, act, now_unix_ns=now)

    async def CreateJoinToken(self, request: pb.CreateJoinTokenRequest, context: Context) -> pb.CreateJoinTokenResponse:
        pki = self._require_pki()
        seconds = _within(request.valid_seconds, JOIN_VALID_S_DEFAULT, JOIN_VALID_S_MAX, "valid_seconds")
        if request.node:
            names.parse(request.node, "nodes/*")
        now = self._clock.unix_ns()
        text, token_id, digest = secret.create(secret.JOIN)
        expire = now + seconds * 1_000_000_000
        made = False
        async with self._database.write() as session:

            async def act() -> pb.CreateJoinTokenResponse:
                nonlocal made
                made = True
                await store.add_join_token(session, JoinToken(token_id, digest, request.node, expire), now)
                return pb.CreateJoinTokenResponse(expire_time=_time(expire))

            response = await once(
                session, request.request_id, request, pb.CreateJoinTokenResponse, act, now_unix_ns=now
            )
        if not made:
            raise _made_before("make another; this one expires unused")
        people, machines = (_reachable(address, pki) for address in self._addresses())
        response.join_token = Invitation(text, people, pki.ca.read_text(), machines).encode()
        return response

    async def EnrollNode(self, request: pb.EnrollNodeRequest, context: Context) -> pb.EnrollNodeResponse:
        pki = self._require_pki()
        (node,) = names.parse(request.node, "nodes/*")
        parsed = secret.parse(secret.JOIN, request.secret)
        if parsed is None:
            raise PermissionDenied(
                "this has not the form of a join token's secret; make one with `switchgear join-token`",
                Reason.JOIN_TOKEN_UNUSABLE,
            )
        public_key = public_key_of(request.certificate_request)
        now = self._clock.unix_ns()
        certificate, expire = pki.sign_node(request.node, public_key, now)
        async with self._database.write() as session:
            await store.use_join_token(session, *parsed, request.node, now)
            await store.note_node(session, request.node, expire, now)
        identity.enter(Identity(Kind.NODE, node))
        return pb.EnrollNodeResponse(certificate=certificate, ca_certificate=pki.ca.read_text())

    async def ListAuditEntries(
        self, request: pb.ListAuditEntriesRequest, context: Context
    ) -> pb.ListAuditEntriesResponse:
        size = paging.page_size(request.page_size)
        before = paging.after_number("auditEntries", request.page_token)
        await self._log.flush()  # what this process has counted so far is part of the answer
        async with self._database.read() as session:
            found = await store.entries_before(session, before, size + 1)
        entries = [_entry(entry) for entry in found[:size]]
        count = paging.fitting(entries)
        more = len(found) > count
        return pb.ListAuditEntriesResponse(
            entries=entries[:count],
            next_page_token=paging.page_token("auditEntries", found[count - 1].ordinal) if more else "",
        )

    def _require_pki(self) -> Pki:
        if self._pki is None:
            raise FailedPrecondition(
                "this control plane runs without TLS, so there are no tokens; run `switchgear init` and start it again",
                Reason.TLS_FILES,
            )
        return self._pki


def _reachable(address: str, pki: Pki) -> str:
    """The address as others reach it: a server that listens on all addresses is found by the certificate's first name."""
    host, _, port = address.rpartition(":")
    if not address or host.strip("[]") not in ("0.0.0.0", "::"):
        return address
    host = pki.hosts()[0]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _made_before(remedy: str) -> AlreadyExists:
    return AlreadyExists(
        f"this request made a token before, and its secret is not kept to be shown again; {remedy}",
        Reason.ALREADY_EXISTS,
    )


def _within(value: int, default: int, maximum: int, field: str) -> int:
    if not 0 <= value <= maximum:
        raise Invalid(f"{field} must be 1 to {maximum}, or 0 for {default}", Reason.BAD_FIELD, field=field)
    return value or default


def _role(number: int) -> Role:
    if number not in (Role.VIEWER, Role.OPERATOR, Role.ADMIN):
        raise Invalid("role must be VIEWER, OPERATOR or ADMIN", Reason.BAD_FIELD, field="role")
    return Role(number)


def _token(token: Token) -> pb.Token:
    return pb.Token(
        name=f"tokens/{token.token_id}",
        user=token.user,
        role=pb.Role.Name(token.role.value),
        create_time=_time(token.create_time_unix_ns),
        expire_time=_time(token.expire_time_unix_ns),
        revoke_time=None if token.revoke_time_unix_ns is None else _time(token.revoke_time_unix_ns),
    )


def _entry(entry: Entry) -> pb.AuditEntry:
    return pb.AuditEntry(
        name=f"auditEntries/{entry.ordinal}",
        time=_time(entry.time_unix_ns),
        actor=entry.actor,
        role=pb.Role.Name(entry.role.value),
        method=entry.method,
        resource=entry.resource,
        outcome=entry.outcome,
        message=entry.message,
        peer=entry.peer,
        trace_id=entry.trace_id,
        count=entry.count,
    )


def _time(unix_ns: int) -> Timestamp:
    return Timestamp(seconds=unix_ns // 1_000_000_000, nanos=unix_ns % 1_000_000_000)
