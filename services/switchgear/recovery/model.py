"""The state of a job as recovery knows it, and one name for all that recovery speaks of: `m.Phase` beside `m.Placed`."""

from __future__ import annotations

from dataclasses import dataclass, field

from switchgear.recovery.effects import (
    AskContact,
    Call,
    Check,
    Command,
    Effect,
    Finish,
    Record,
    SaveAttempt,
    SaveCheckpoint,
    SaveIncident,
    Start,
    Stop,
    Warn,
)
from switchgear.recovery.events import (
    AttemptStopped,
    CallDone,
    Checked,
    CheckpointSeen,
    ContactKnown,
    EndedOutside,
    Event,
    LauncherGone,
    LauncherHello,
    LauncherSeen,
    Loaded,
    NodeSignal,
    Placed,
    Progress,
    RankExited,
    RankStarted,
    RankStep,
    Rejected,
    SeatsSeen,
    StartFailed,
    Tick,
    Vacate,
    Watched,
)
from switchgear.recovery.kinds import (
    Activity,
    AttemptState,
    CheckpointState,
    Decision,
    Fault,
    IncidentState,
    JobOutcome,
    Phase,
    ProcessState,
)
from switchgear.recovery.ledger import Ledger
from switchgear.recovery.values import (
    Attempt,
    Checkpoint,
    Exit,
    Failure,
    Hang,
    Incident,
    Launcher,
    Modes,
    Now,
    Rank,
    RankWatch,
    Slot,
    Spec,
    Timing,
)

__all__ = [
    "Activity",
    "AskContact",
    "Attempt",
    "AttemptState",
    "AttemptStopped",
    "Call",
    "CallDone",
    "Check",
    "Checked",
    "Checkpoint",
    "CheckpointSeen",
    "CheckpointState",
    "Command",
    "ContactKnown",
    "Decision",
    "Effect",
    "EndedOutside",
    "Event",
    "Exit",
    "Failure",
    "Fault",
    "Finish",
    "Hang",
    "Incident",
    "IncidentState",
    "JobOutcome",
    "JobState",
    "Launcher",
    "LauncherGone",
    "LauncherHello",
    "LauncherSeen",
    "Loaded",
    "Modes",
    "NodeSignal",
    "Now",
    "Phase",
    "Placed",
    "ProcessState",
    "Progress",
    "Rank",
    "RankExited",
    "RankStarted",
    "RankStep",
    "RankWatch",
    "Record",
    "Rejected",
    "SaveAttempt",
    "SaveCheckpoint",
    "SaveIncident",
    "SeatsSeen",
    "Slot",
    "Spec",
    "Start",
    "StartFailed",
    "Stop",
    "Tick",
    "Timing",
    "Vacate",
    "Warn",
    "Watched",
]


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
    #: Ranks of the attempt that make no step. Not stored: launchers say it anew each half second.
    watches: dict[int, RankWatch] = field(default_factory=dict)
    incident: Incident | None = None
    incident_count: int = 0
    #: Fatal evidence against nodes of the placement: node -> sentence. Cleared with the placement.
    bad_nodes: dict[str, str] = field(default_factory=dict)
    #: Those of them with fatal evidence that the policy may not cordon: the job must not get them again.
    uncordoned: list[str] = field(default_factory=list)
    #: Why the job is to leave its nodes; empty when it is not.
    vacating: str = ""
    #: How often it was to leave.
    preemptions: int = 0
    modes: Modes = field(default_factory=Modes)
    timing: Timing = field(default_factory=Timing)
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    #: Digests of checkpoints that are good by all that can be checked and that attempts did not survive, oldest first.
    skipped: list[str] = field(default_factory=list)
    #: Highest step that any generation has completed on all ranks.
    high_water_step: int = 0
    #: Longest time in which an attempt got from the start of its ranks to their first step; None: none has.
    first_step_s: float | None = None
    #: Unix time before which no node is asked for in addition to those that it has.
    grow_after_ns: int = 0
    restarts_used: int = 0
    #: Productive time up to which used restarts have been given back.
    refilled_ns: int = 0
    failures: list[Failure] = field(default_factory=list)
    steps_redone: int = 0
    #: Where the time of its GPUs went.
    ledger: Ledger = field(default_factory=Ledger)
    end_ns: int = 0
    #: How the job ended, when recovery ended it.
    outcome: JobOutcome | None = None
    #: Calls to other services that have not been confirmed yet, oldest first; carried out again after a crash.
    outbox: list[Call] = field(default_factory=list)
    calls_made: int = 0
