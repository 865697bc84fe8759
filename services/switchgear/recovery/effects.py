"""What the recovery machine can answer: commands to launchers, records to keep, calls to other services."""

from __future__ import annotations

from dataclasses import dataclass

from switchgear.recovery.kinds import JobOutcome
from switchgear.recovery.values import Attempt, Checkpoint, Incident, Spec


@dataclass(frozen=True, slots=True)
class Start:
    """Start the attempt on one node."""

    node: str
    node_rank: int
    attempt: Attempt
    spec: Spec
    restart_count: int
    checkpoints: tuple[Checkpoint, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """grace_s: SIGTERM first, SIGKILL so much later; 0: SIGKILL at once."""

    node: str
    generation: int
    reason: str
    grace_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Check:
    """Find the newest good checkpoint."""

    node: str
    generation: int
    checkpoints: tuple[Checkpoint, ...]
    #: Digests of good ones to walk past.
    skip: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    node: str
    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class SaveIncident:
    incident: Incident


@dataclass(frozen=True, slots=True)
class SaveAttempt:
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class SaveCheckpoint:
    checkpoint: Checkpoint


@dataclass(slots=True)
class Call:
    """A call to the scheduler, idempotent by its id within the job. Kind: `set_state`, `cordon` or `replace`."""

    call_id: int
    kind: str
    node: str = ""
    reason: str = ""
    outcome: JobOutcome | None = None
    epoch: int = 0
    #: Of a `replace`: nodes that the job must not get again until they are healthy anew.
    avoid: tuple[str, ...] = ()
    #: Of a `replace`: nodes from which nothing was heard any more.
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Warn:
    """What people should see in the log; nothing is done about it."""

    node: str
    message: str


@dataclass(frozen=True, slots=True)
class AskContact:
    """Ask the scheduler whether the node's agent is connected: the answer comes as `ContactKnown`, or not at all."""

    node: str


Command = Start | Stop | Check | Finish
Record = SaveIncident | SaveAttempt | SaveCheckpoint
Effect = Command | Record | Warn | AskContact
