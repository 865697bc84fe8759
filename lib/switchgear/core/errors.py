"""One error type for the whole plane, translated once to gRPC (`core.rpc`), once to HTTP (gateway) and once to an exit code (CLI).

Raise the class whose canonical code fits, with a reason from `Reason` and a message that says what to do.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

DOMAIN = "switchgear.dev"


class Reason(StrEnum):
    """Every reason that an error of ours can carry in `google.rpc.ErrorInfo`."""

    BAD_NAME = "BAD_NAME"
    BAD_FIELD = "BAD_FIELD"
    BAD_PAGE_TOKEN = "BAD_PAGE_TOKEN"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    ETAG_MISMATCH = "ETAG_MISMATCH"
    REVISION_UNKNOWN = "REVISION_UNKNOWN"
    JOB_TOO_LARGE = "JOB_TOO_LARGE"
    JOB_ENDED = "JOB_ENDED"
    JOB_RUNS = "JOB_RUNS"
    QUEUE_IN_USE = "QUEUE_IN_USE"
    REPLICA_ENDED = "REPLICA_ENDED"
    BEING_DELETED = "BEING_DELETED"
    PLACEMENT_CHANGED = "PLACEMENT_CHANGED"
    GENERATION_FENCED = "GENERATION_FENCED"
    SCRIPT_UNREADABLE = "SCRIPT_UNREADABLE"
    JOB_ALREADY_RUNNING = "JOB_ALREADY_RUNNING"
    ADDRESS_IN_USE = "ADDRESS_IN_USE"
    INSECURE_BIND = "INSECURE_BIND"
    TLS_FILES = "TLS_FILES"
    KEY_FILE = "KEY_FILE"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    ROLE_TOO_LOW = "ROLE_TOO_LOW"
    NOT_YOUR_NODE = "NOT_YOUR_NODE"
    JOIN_TOKEN_UNUSABLE = "JOIN_TOKEN_UNUSABLE"
    LEASE_LOST = "LEASE_LOST"
    STATE_NEWER = "STATE_NEWER"
    STATE_LOCKED = "STATE_LOCKED"
    DATABASE_UNUSABLE = "DATABASE_UNUSABLE"
    MISSING_EXTRA = "MISSING_EXTRA"
    SERVER_UNREACHABLE = "SERVER_UNREACHABLE"
    SLURM_UNREACHABLE = "SLURM_UNREACHABLE"
    SLURM_REFUSED = "SLURM_REFUSED"
    SLURM_OUTCOME_UNKNOWN = "SLURM_OUTCOME_UNKNOWN"
    SLURM_OUTPUT = "SLURM_OUTPUT"
    METRICS_UNSEEN = "METRICS_UNSEEN"
    STREAM_PROTOCOL = "STREAM_PROTOCOL"
    LIMIT_EXCEEDED = "LIMIT_EXCEEDED"
    BODY_INVALID = "BODY_INVALID"
    INTERNAL = "INTERNAL"


class SwitchgearError(Exception):
    """Base of all errors that a caller may see.

    message: one short sentence for a person, with the remedy.
    reason: machine-readable cause.
    metadata: names and values that the message speaks of.
    """

    #: Canonical code (https://grpc.io/docs/guides/status-codes), by name: this file knows no transport.
    code: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, reason: Reason, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.metadata = metadata


class Invalid(SwitchgearError):
    """The request is wrong whatever the state of the system: change it."""

    code = "INVALID_ARGUMENT"


class NotFound(SwitchgearError):
    """No such resource."""

    code = "NOT_FOUND"

    def __init__(self, name: str, message: str = "") -> None:
        super().__init__(
            message or f"{name} does not exist; list its collection to see what does", Reason.NOT_FOUND, name=name
        )


class AlreadyExists(SwitchgearError):
    """The name is taken."""

    code = "ALREADY_EXISTS"


class FailedPrecondition(SwitchgearError):
    """The system is not in a state that allows it."""

    code = "FAILED_PRECONDITION"


class Aborted(SwitchgearError):
    """Somebody else was faster: read again and decide anew."""

    code = "ABORTED"


class OutOfRange(SwitchgearError):
    """A revision or page beyond what the service has."""

    code = "OUT_OF_RANGE"


class ResourceExhausted(SwitchgearError):
    """A bound was reached; the message names it."""

    code = "RESOURCE_EXHAUSTED"


class Unauthenticated(SwitchgearError):
    """Nobody can tell who is calling."""

    code = "UNAUTHENTICATED"


class PermissionDenied(SwitchgearError):
    """The caller is known and may not do this."""

    code = "PERMISSION_DENIED"


class Unavailable(SwitchgearError):
    """The other side does not answer now; a retry may help."""

    code = "UNAVAILABLE"
