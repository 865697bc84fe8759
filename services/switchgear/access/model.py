"""Values of access: who holds a token, and what the audit log says."""

from __future__ import annotations

from dataclasses import dataclass

from switchgear.core.identity import Role


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token without its secret. token_id: as in `tokens/{token}`; digest: of the secret, see `secret.digest`."""

    token_id: str
    digest: bytes
    user: str
    role: Role
    create_time_unix_ns: int
    expire_time_unix_ns: int
    revoke_time_unix_ns: int | None = None
    #: Order of creation; 0 until it is stored.
    create_revision: int = 0


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A right to one node certificate. node: `nodes/{node}` that may use it; empty: any that has not joined yet."""

    token_id: str
    digest: bytes
    node: str
    expire_time_unix_ns: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the audit log, as in `switchgear.v1.AuditEntry`. refused: nobody was let in, so nothing can have changed."""

    time_unix_ns: int
    actor: str
    role: Role
    method: str
    resource: str
    outcome: str
    message: str
    peer: str
    trace_id: str
    refused: bool
    count: int = 1
    #: Counts up in the order of writing; 0 until it is stored.
    ordinal: int = 0
