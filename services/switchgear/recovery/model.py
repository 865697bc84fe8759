"""What recovery knows of a job, what can happen to it and what it can answer: plain values, no world in them."""

from __future__ import annotations

from dataclasses import dataclass, field

from switchgear.core.modes import Mode
from switchgear.recovery.kinds import (
    AttemptState,
    CheckpointState,
    Decision,
    Fault,
    IncidentState,
    JobOutcome,
    Phase,
)

# One name for all that recovery speaks of: `m.Phase` beside `m.JobState`.
__all__ = ["AttemptState", "CheckpointState", "Decision", "Fault", "IncidentState", "JobOutcome", "Phase"]


@dataclass(frozen=True, slots=True)
class Now:
    """The time of an event: `monotonic_s` for leases and deadlines, `unix_ns` for the record."""

    monotonic_s: float
    unix_ns: int


@dataclass(frozen=True, slots=True)
class Slot:
    """A node of a placement; its position is the node rank."""

    node: str
    address: str
    #: Placement epoch in which this node joined: launchers of older epochs are not listened to.
    launcher_epoch: int


@dataclass(frozen=True, slots=True)
class Exit:
    """How a rank ended. code: 0 to 255, or minus the signal's number."""

    rank: int
    node: str
    pid: int
    time_ns: int
    code: int
    by_us: bool
    exception: str = ""
    stderr_tail: str = ""
    step: int | None = None
    #: It had completed a step, known by number or not.
    made_steps: bool = False


@dataclass(slots=True)
class Launcher:
    """What is known of the launcher on one node of the placement."""

    connected: bool = False
    launcher_id: str = ""
    reserved_port: int = 0
    #: Every process of this generation and older ones is gone from the node.
    stopped_generation: int = 0
    #: Newest generation that it has spoken of: its next one must be beyond it.
    seen_generation: int = 0
    #: Monotonic time of the last word from it, or of the wish to have one.
    seen_s: float = 0.0
    #: It has spoken of ranks that another node has, and that was told.
    strayed: bool = False


@dataclass(slots=True)
class Rank:
    """Progress of a rank in the current attempt. Times are Unix nanoseconds, 0 = not yet."""

    node: str
    pid: int = 0
    started_ns: int = 0
    step: int | None = None
    step_time_ns: int = 0
    first_step_ns: int = 0
    first_new_step_ns: int = 0
    loaded_ns: int = 0
    exit: Exit | None = None


@dataclass(slots=True)
class Attempt:
    """One start of the job on one placement; the generation is its fencing token."""

    generation: int
    state: AttemptState
    nodes: list[str]
    start_ns: int
    high_water_step: int
    master_address: str
    master_port: int
    resume_path: str = ""
    resume_step: int | None = None
    ranks: dict[int, Rank] = field(default_factory=dict)
    #: Launcher process that each node had when the attempt was commanded.
    launcher_ids: dict[str, str] = field(default_factory=dict)
    end_ns: int = 0
    end_reason: str = ""

    def common_step(self) -> int | None:
        """Newest step that all ranks have completed; None when one of them is unknown."""
        steps = [rank.step for rank in self.ranks.values()]
        known = [step for step in steps if step is not None]
        return min(known) if known and len(known) == len(steps) else None


@dataclass(slots=True)
class Checkpoint:
    path: str
    state: CheckpointState
    step: int | None
    size_bytes: int = 0
    digest: str = ""
    damage: str = ""
    generation: int = 0
    commit_ns: int = 0


@dataclass(slots=True)
class Incident:
    """One fault from its first sign to the first new step after it; see `switchgear.v1.Incident` for the fields."""

    incident_id: str
    job: str
    state: IncidentState
    fault: Fault
    node: str = ""
    rank: int | None = None
    evidence: list[str] = field(default_factory=list)
    decision: Decision | None = None
    decision_reason: str = ""
    failed_generation: int = 0
    new_generation: int = 0
    failed_step: int | None = None
    resume_step: int | None = None
    quarantined: list[str] = field(default_factory=list)
    timeline: dict[str, int] = field(default_factory=dict)
    #: What happened, as the first half of the summary.
    cause: str = ""
    known_by: str = ""
    #: Equal for the same error again; see `Failure`.
    signature: str = ""
    summary: str = ""

    @property
    def steps_redone(self) -> int | None:
        if self.failed_step is None or self.resume_step is None:
            return None
        return max(0, self.failed_step - self.resume_step)


@dataclass(frozen=True, slots=True)
class Failure:
    """What the policy remembers of an attempt that failed."""

    fault: Fault
    #: Equal for the same error again: exception text, signal or exit code.
    signature: str
    step: int | None
    #: Whether the attempt had made a step that no attempt before it had made.
    progressed: bool
    #: Whether it had made any, known by number or not.
    made_steps: bool = False


@dataclass(frozen=True, slots=True)
class Spec:
    """What recovery needs of the job's specification."""

    nnodes: int
    nproc_per_node: int
    max_restarts: int
    checkpoint_directory: str
    #: A replica of an inference service: it makes no steps and is not restarted.
    inference: bool = False

    @property
    def world_size(self) -> int:
        return self.nnodes * self.nproc_per_node


@dataclass(frozen=True, slots=True)
class Modes:
    """What recovery may do with its decisions about a job, and about nodes."""

    restart: Mode = Mode.ACT
    cordon: Mode = Mode.ACT


@dataclass(slots=True)
class JobState:
    """All that recovery knows of a job. It is written to the store before any effect of a step is carried out."""

    job: str
    spec: Spec
    create_ns: int
    #: W3C `traceparent` of its submission; empty when that was not traced.
    trace_parent: str = ""
    phase: Phase = Phase.REPLACING
    #: Monotonic time at which the phase began.
    phase_since_s: float = 0.0
    #: When to ask for the checkpoints again after an answer that was none.
    check_again_s: float | None = None
    generation: int = 0
    #: Attempts that this job has had: generations may begin above 1, and skip some.
    attempts_started: int = 0
    epoch: int = 0
    slots: list[Slot] = field(default_factory=list)
    launchers: dict[str, Launcher] = field(default_factory=dict)
    attempt: Attempt | None = None
    incident: Incident | None = None
    incident_count: int = 0
    #: Fatal evidence against nodes of the placement: node -> sentence. Cleared with the placement.
    bad_nodes: dict[str, str] = field(default_factory=dict)
    #: Those of them with fatal evidence that the policy may not cordon: the job must not get them again.
    uncordoned: list[str] = field(default_factory=list)
    modes: Modes = field(default_factory=Modes)
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    #: Highest step that any generation has completed on all ranks.
    high_water_step: int = 0
    restarts_used: int = 0
    failures: list[Failure] = field(default_factory=list)
    steps_redone: int = 0
    #: Sum over the ended attempts; `productive_ns` of the machine adds the current one.
    productive_ns: int = 0
    end_ns: int = 0
    #: How the job ended, when recovery ended it.
    outcome: JobOutcome | None = None
    #: Calls to other services that have not been confirmed yet, oldest first; carried out again after a crash.
    outbox: list[Call] = field(default_factory=list)
    calls_made: int = 0


# What can happen.


@dataclass(frozen=True, slots=True)
class Placed:
    """The scheduler has placed the job (anew)."""

    epoch: int
    slots: tuple[Slot, ...]


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


@dataclass(frozen=True, slots=True)
class Progress:
    node: str
    generation: int
    ranks: tuple[RankStep, ...]


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
class CallDone:
    """A call of the outbox has been answered."""

    call_id: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed. modes: those in force from now on; None: as before."""

    modes: Modes | None = None


Event = (
    Placed
    | EndedOutside
    | LauncherHello
    | LauncherGone
    | LauncherSeen
    | RankStarted
    | RankExited
    | Progress
    | Loaded
    | AttemptStopped
    | StartFailed
    | Rejected
    | CheckpointSeen
    | Checked
    | NodeSignal
    | CallDone
    | Tick
)


# What recovery can answer.


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
    node: str
    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Check:
    """Find the newest good checkpoint."""

    node: str
    generation: int
    checkpoints: tuple[Checkpoint, ...]


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


@dataclass(frozen=True, slots=True)
class Warn:
    """What people should see in the log; nothing is done about it."""

    node: str
    message: str


Command = Start | Stop | Check | Finish
Record = SaveIncident | SaveAttempt | SaveCheckpoint
Effect = Command | Record | Warn
