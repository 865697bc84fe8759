"""What can happen to a job: the events that the recovery machine takes."""

from __future__ import annotations

from dataclasses import dataclass

from switchgear.recovery.values import Checkpoint, Exit, Modes, RankWatch, Slot


@dataclass(frozen=True, slots=True)
class Placed:
    """The scheduler has placed the job (anew)."""

    epoch: int
    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class Vacate:
    """The scheduler wants the job's nodes back: its ranks are to end, and the job goes back into the queue, or is there already.

    for_others: they are for another job, which bears what that costs.
    """

    reason: str
    for_others: bool = True


@dataclass(frozen=True, slots=True)
class EndedOutside:
    """The job was cancelled or ended by the scheduler."""

    reason: str


@dataclass(frozen=True, slots=True)
class LauncherHello:
    node: str
    launcher_epoch: int
    launcher_id: str
    generation: int
    reserved_port: int
    ranks_alive: tuple[tuple[int, int, int], ...] = ()  # (rank, pid, started_ns)
    exits: tuple[Exit, ...] = ()
    #: Every process of the generation is gone, also what its ranks had started.
    all_gone: bool = True


@dataclass(frozen=True, slots=True)
class LauncherGone:
    """The stream of a launcher broke; its ranks may go on until its lease ends."""

    node: str
    launcher_id: str


@dataclass(frozen=True, slots=True)
class LauncherSeen:
    node: str
    launcher_id: str


@dataclass(frozen=True, slots=True)
class RankStarted:
    node: str
    generation: int
    rank: int
    pid: int
    time_ns: int


@dataclass(frozen=True, slots=True)
class RankExited:
    generation: int
    exit: Exit


@dataclass(frozen=True, slots=True)
class RankStep:
    rank: int
    step: int | None
    time_ns: int
    first_step_ns: int
    first_new_step_ns: int
    #: Optimizer steps in this generation.
    count: int = 0
    #: Time of this generation that its training thread spent on writing checkpoints.
    checkpoint_ns: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    node: str
    generation: int
    ranks: tuple[RankStep, ...]


@dataclass(frozen=True, slots=True)
class Watched:
    """All ranks of the node that make no step, or that something is wrong with; none: it is over."""

    node: str
    generation: int
    ranks: tuple[RankWatch, ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    node: str
    generation: int
    rank: int
    path: str
    step: int | None
    time_ns: int


@dataclass(frozen=True, slots=True)
class AttemptStopped:
    node: str
    generation: int
    reserved_port: int
    time_ns: int


@dataclass(frozen=True, slots=True)
class StartFailed:
    node: str
    generation: int
    message: str
    permanent: bool
    reserved_port: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """A launcher refused a command of `generation`, since it holds `held`."""

    node: str
    generation: int
    held: int


@dataclass(frozen=True, slots=True)
class CheckpointSeen:
    generation: int
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class Checked:
    """A launcher has walked the checkpoints from the newest to the first good one.

    generation: of the check that this answers. What was found before a later generation ran says nothing about now.
    """

    node: str
    generation: int
    checkpoints: tuple[Checkpoint, ...]
    quarantined: tuple[str, ...]
    error: str = ""


@dataclass(frozen=True, slots=True)
class NodeSignal:
    """A fatal signal of the collector about a node. gpu: resource name, empty when it is about the whole node."""

    node: str
    gpu: str
    kind: str
    evidence: str
    time_ns: int
    simulated: bool


@dataclass(frozen=True, slots=True)
class SeatsSeen:
    """What the engine says of the placement's nodes. queued: their launchers wait for it before they start.

    taken: they are no longer the job's, and why; what the job has there may still run.
    """

    queued: frozenset[str] = frozenset()
    taken: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ContactKnown:
    """What the scheduler says to `AskContact`: whether the node's agent is connected."""

    node: str
    connected: bool


@dataclass(frozen=True, slots=True)
class CallDone:
    """A call of the outbox has been answered."""

    call_id: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed. modes: those in force from now on; None: as before."""

    modes: Modes | None = None


Event = (
    Placed
    | Vacate
    | EndedOutside
    | LauncherHello
    | LauncherGone
    | LauncherSeen
    | RankStarted
    | RankExited
    | Progress
    | Watched
    | Loaded
    | AttemptStopped
    | StartFailed
    | Rejected
    | CheckpointSeen
    | Checked
    | NodeSignal
    | SeatsSeen
    | ContactKnown
    | CallDone
    | Tick
)
