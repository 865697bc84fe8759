"""Who is calling, as the server's guard has proved it. Servicers ask here and never believe a request about its sender."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from switchgear.core.errors import PermissionDenied, Reason


class Kind(StrEnum):
    """How somebody is known."""

    #: By nothing: a call that needs no proof, or whose proof is in the request.
    NOBODY = ""
    #: By loopback alone: an installation without TLS.
    LOCAL = "local"
    #: By a bearer token.
    USER = "user"
    #: By a certificate of our own CA.
    NODE = "node"
    SERVICE = "service"


class Role(IntEnum):
    """What a person may do; the numbers are those of `switchgear.v1.Role`, and a higher one may all that a lower one may."""

    NONE = 0
    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class Identity:
    """name: id of the user, node or service; empty for LOCAL and NOBODY."""

    kind: Kind
    name: str = ""
    role: Role = Role.NONE

    @property
    def actor(self) -> str:
        """As the audit log and the history of nodes name it: `user:ann`, `node:gpu-01`, `service:control-plane`, `local`, or empty."""
        return f"{self.kind}:{self.name}" if self.name else str(self.kind)


LOCAL = Identity(Kind.LOCAL, role=Role.ADMIN)
NOBODY = Identity(Kind.NOBODY)
#: Set for the time of one call, in that call's task; tasks that it starts inherit it.
_current: ContextVar[Identity] = ContextVar("identity", default=LOCAL)


def current() -> Identity:
    """Who makes the call that is being answered; LOCAL where no guard stands."""
    return _current.get()


def enter(identity: Identity) -> None:
    """From here on this call's task acts for `identity`. For the guard alone."""
    _current.set(identity)


def actor(asked: str) -> str:
    """Whom to record for a change: a person by the token, whatever the request says; a service or a local caller as it asks."""
    caller = current()
    return caller.actor if caller.kind is Kind.USER else asked


def require_node(node: str) -> None:
    """For every message in which a sender names the node `nodes/{node}` that it speaks for.

    Raises PermissionDenied (NOT_YOUR_NODE) when the caller's certificate is another node's. Services and local callers may speak
    for any node.
    """
    caller = current()
    if caller.kind in (Kind.LOCAL, Kind.SERVICE) or (caller.kind is Kind.NODE and node == f"nodes/{caller.name}"):
        return
    raise PermissionDenied(
        f"{caller.actor or 'an unknown caller'} may not speak for {node}; join that node with a token of its own: `switchgear join-token`",
        Reason.NOT_YOUR_NODE,
        node=node[:100],
        caller=caller.actor,
    )
