"""Values of recovery: what it knows of nodes, ranks, attempts, checkpoints and incidents. Plain data, no world in it."""

from __future__ import annotations

from dataclasses import dataclass, field

from switchgear.core.errors import Invalid, Reason
from switchgear.core.modes import Mode
from switchgear.recovery.kinds import (
    Activity,
    AttemptState,
    CheckpointState,
    Decision,
    Fault,
    IncidentState,
    ProcessState,
)


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
    #: Steps that it had completed in its attempt, as far as its launcher had told.
    count: int = 0


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
    #: Monotonic time at which its connection to this process was closed or reset; None while it stands, or when it fell silent first.
    gone_s: float | None = None
    #: Given up since nothing was heard of it for too long.
    fell_silent: bool = False
    #: Its node's agent was not connected to the scheduler either, after that.
    agent_gone: bool = False
    #: How we know that the ranks of other nodes need its own for each step, and miss them; empty: we do not.
    missed: str = ""
    #: It waits for the engine before it starts: that it is not heard says nothing.
    queued: bool = False

    @property
    def is_lost(self) -> bool:
        """It was heard once, and then its node fell away."""
        return bool(self.launcher_id) and (self.fell_silent or self.agent_gone)


@dataclass(slots=True)
class Rank:
    """Progress of a rank in the current attempt. Times are Unix nanoseconds, 0 = not yet."""

    node: str
    pid: int = 0
    started_ns: int = 0
    step: int | None = None
    step_time_ns: int = 0
    #: Optimizer steps in this generation.
    count: int = 0
    #: Time of this generation that its training thread spent on writing checkpoints.
    checkpoint_ns: int = 0
    first_step_ns: int = 0
    first_new_step_ns: int = 0
    loaded_ns: int = 0
    exit: Exit | None = None


@dataclass(frozen=True, slots=True)
class RankWatch:
    """What its launcher says of a rank that makes no step. Ages instead of times of day: clocks of nodes differ."""

    rank: int
    #: Since the last sign of progress, when this was said.
    idle_s: float
    activity: Activity = Activity.UNKNOWN
    process: ProcessState = ProcessState.UNKNOWN
    #: For how long the process has been in that state, when this was said.
    process_age_s: float = 0.0
    count: int = 0
    #: Learned length of a step; None: not known.
    step_s: float | None = None
    #: CPU time per second, all threads.
    cpu_share: float | None = None
    #: Innermost frame of the user's program, and the whole stack with the innermost frame last.
    where: str = ""
    stack: str = ""
    #: Monotonic time at which it was heard.
    heard_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Hang:
    """What tells one hang from another; see `doubt`."""

    #: The newest step that all ranks had completed, or that they were to go on from; None: not known by number.
    step: int | None = None
    #: Steps of the attempt, and whether it had made any.
    count: int = 0
    made_steps: bool = False
    #: At fault; empty: nobody in particular.
    ranks: tuple[int, ...] = ()
    #: Where the ranks stood that waited in a collective; empty: not known.
    waits_in: tuple[str, ...] = ()


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
    #: See `Failure`.
    doubted_s: float | None = None
    hang: Hang | None = None
    #: Ranks were seen further apart than those can be that need each other for each step.
    drifted: bool = False

    def common_step(self) -> int | None:
        """Newest step that all ranks have completed; None when one of them is unknown."""
        steps = [rank.step for rank in self.ranks.values()]
        known = [step for step in steps if step is not None]
        return min(known) if known and len(known) == len(steps) else None

    def last_step(self) -> int | None:
        """The same once it is over: ranks that vanished without an exit have told less than they did, so the others' word counts."""
        told = [rank.step for rank in self.ranks.values() if rank.exit and rank.step is not None]
        return min(told) if told else self.common_step()

    def last_count(self) -> int:
        """Steps that it made once it is over, which is known where their numbers are not; ranks that make none are left out."""
        told = [rank.count for rank in self.ranks.values() if rank.exit and rank.count]
        return min(told or [rank.count for rank in self.ranks.values() if rank.count], default=0)


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
    #: The job got the node at fault once more.
    node_again: bool = False
    #: Of the rank at fault, when it hung; innermost frame last, at most 8 KiB.
    stack: str = ""

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
    #: Whether the attempt had made a step that no attempt before it had made, as far as anybody can tell.
    progressed: bool
    #: Whether it had made any, known by number or not.
    made_steps: bool = False
    #: At fault; empty and None when nobody in particular was.
    node: str = ""
    rank: int | None = None
    time_ns: int = 0
    #: Checkpoint that the attempt was to start from.
    resume_path: str = ""
    #: Of a hang that may have been none: how long was waited, as the next verdict would take longer.
    doubted_s: float | None = None
    #: Of a hang; None: not known, as in states that an older version has stored.
    hang: Hang | None = None
    #: Steps that the attempt made, and whether its ranks wrote checkpoints: all there is to compare where steps have no number.
    count: int = 0
    saved: bool = False


@dataclass(frozen=True, slots=True)
class Spec:
    """What recovery needs of the job's specification."""

    nnodes: int
    nproc_per_node: int
    max_restarts: int
    checkpoint_directory: str
    #: A replica of an inference service: it makes no steps and is not restarted.
    inference: bool = False
    #: Seconds without a step after which ranks count as hung; None: learned; 0: never.
    hang_seconds: float | None = None
    #: Another node can be had in place of one that fails; false where there is no scheduler.
    replaceable: bool = True
    #: Whose the time is that the ledger has; `queues/{queue}` for the queue. Empty: nobody said.
    account: str = ""
    user: str = ""
    queue: str = ""

    @property
    def world_size(self) -> int:
        return self.nnodes * self.nproc_per_node


#: A launcher without contact stops its ranks this long after the last heartbeat that was answered ...
LEASE_S = 30.0
#: ... and recovery waits this much longer before it starts anything elsewhere.
LEASE_MARGIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Timing:
    """How long ranks may outlive contact; a job keeps what it began with, since launchers out of reach hold leases of that length.

    lease_s: 1 to 600 s. A shorter one lets a silent node be replaced sooner; a longer one lets jobs outlive a longer absence of
    the control plane. Heartbeats go out each second, so one below 3 s does not survive a lost packet.
    margin_s: 3 to 600 s. It outlasts a SIGKILL, and the 2 s by which a recovery that was replaced may go on granting leases while its
    successor counts them already (`store.holder.Candidate`).
    Raises Invalid outside of these bounds.
    """

    lease_s: float = LEASE_S
    margin_s: float = LEASE_MARGIN_S

    def __post_init__(self) -> None:
        for what, value, least in (("lease", self.lease_s, 1), ("lease margin", self.margin_s, 3)):
            if not least <= value <= 600:  # also false for NaN
                raise Invalid(
                    f"a {what} of {value:g} seconds: give one of {least} to 600 seconds", Reason.BAD_FIELD, field=what
                )

    @property
    def silence_s_max(self) -> float:
        """Whoever has not been heard for longer runs nothing of ours any more."""
        return self.lease_s + self.margin_s


@dataclass(frozen=True, slots=True)
class Modes:
    """What recovery may do with its decisions about a job, and about nodes."""

    restart: Mode = Mode.ACT
    cordon: Mode = Mode.ACT
