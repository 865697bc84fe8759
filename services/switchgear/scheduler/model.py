"""Nodes, jobs and placements as the scheduler's policies see them: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class NodeState(StrEnum):
    """States of a node; the names are those of `switchgear.v1.Node.State`."""

    HEALTHY = "HEALTHY"
    CORDONED = "CORDONED"
    UNREACHABLE = "UNREACHABLE"


class JobState(StrEnum):
    """States of a job; the names are those of `switchgear.v1.Job.State`."""

    PENDING = "PENDING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    RECOVERING = "RECOVERING"
    PREEMPTED = "PREEMPTED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class Workload(StrEnum):
    """What a job is for; the names are those of `switchgear.v1.JobSpec.Workload`."""

    TRAINING = "TRAINING"
    INFERENCE = "INFERENCE"


#: A job in one of these never changes again and holds no GPU.
FINAL_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


@dataclass(frozen=True, slots=True)
class GpuRecord:
    """A GPU as its agent reported it."""

    index: int
    uuid: str = ""
    model: str = ""
    memory_bytes: int = 0
    pci_bus_id: str = ""
    simulated: bool = False
    mig_profiles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Inventory:
    """What an agent says of its node."""

    address: str
    gpus: tuple[GpuRecord, ...]
    agent_version: str
    #: HOST:PORT of the agent's `/metrics`; empty when it does not say.
    metrics_address: str = ""
    #: None: the agent does not say.
    cpu_milli: int | None = None
    memory_mib: int | None = None
    #: Sorted by key.
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node of the fleet. `standing` is what policy or a person decided, `reachable` is what its heartbeats say."""

    name: str
    inventory: Inventory
    last_seen_unix_ns: int
    reachable: bool = True
    standing: NodeState = NodeState.HEALTHY
    #: Why `standing` is not HEALTHY.
    reason: str = ""
    actor: str = ""
    #: Revision of the newest write.
    revision: int = 0
    #: Revision at which the node last became HEALTHY.
    healthy_revision: int = 0
    #: Those that people have set; they hide what the agent tells. Sorted by key.
    labels: tuple[tuple[str, str], ...] = ()
    taints: frozenset[str] = frozenset()

    @property
    def all_labels(self) -> dict[str, str]:
        return {**dict(self.inventory.labels), **dict(self.labels)}

    @property
    def state(self) -> NodeState:
        return self.standing if self.reachable else NodeState.UNREACHABLE


@dataclass(frozen=True, slots=True)
class PlacedNode:
    """A node's part in a placement; see `switchgear.v1.PlacedNode`."""

    node: str
    gpu_indices: tuple[int, ...]
    address: str
    launcher_epoch: int
    #: Why the engine has taken this seat away; empty while it has not. Recovery ends what may still run there and asks for another.
    lost: str = ""
    #: What its launcher waits for in the engine; empty when it does not. Until then recovery does not miss it.
    waits: str = ""


@dataclass(frozen=True, slots=True)
class PlacementRecord:
    """Where a job runs; the position of a node is its node rank. Empty `nodes`: nowhere now."""

    epoch: int = 0
    nodes: tuple[PlacedNode, ...] = ()


@dataclass(frozen=True, slots=True)
class Dependency:
    """The job must have SUCCEEDED, or with `any_end` have ended."""

    job: str
    any_end: bool = False


@dataclass(frozen=True, slots=True)
class NodeSelector:
    """See `switchgear.planner.model.Selector`; values are sorted."""

    key: str
    values: tuple[str, ...]
    excludes: bool = False


@dataclass(frozen=True, slots=True)
class TopologyWish:
    level: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What the user asked for; see `switchgear.v1.JobSpec`."""

    argv: tuple[str, ...]
    working_directory: str
    environment: tuple[tuple[str, str], ...]
    python: str
    nnodes: int
    nproc_per_node: int
    max_restarts: int
    checkpoint_directory: str
    log_directory: str
    workload: Workload = Workload.TRAINING
    preload: tuple[str, ...] = ()
    #: 0: only with `nnodes`.
    nnodes_min: int = 0
    no_python: bool = False
    role: str = ""
    #: None: learned from the steps; 0: never.
    hang_seconds: float | None = None
    virtual_local_rank: bool = False
    #: `queues/{queue}`, or none.
    queue: str = ""
    user: str = ""
    priority: int = 0
    #: Of each node, beside its GPUs.
    cpu_milli: int = 0
    memory_mib: int = 0
    #: At most one of these two, instead of whole GPUs.
    gpu_milli: int = 0
    mig_profile: str = ""
    gpu_models: tuple[str, ...] = ()
    node_selectors: tuple[NodeSelector, ...] = ()
    tolerations: tuple[str, ...] = ()
    topology: tuple[TopologyWish, ...] = ()
    #: 0: none.
    time_limit_seconds: float = 0.0
    not_before_unix_ns: int = 0
    after: tuple[Dependency, ...] = ()
    #: None: by workload.
    preemptible: bool | None = None
    harvest: bool = False
    key: str = ""
    array: str = ""
    array_index: int = 0
    #: For engines that have such; empty: the engine's default.
    account: str = ""
    partition: str = ""
    qos: str = ""


@dataclass(frozen=True, slots=True)
class ExcludedNode:
    """A node that is not for this job until it becomes HEALTHY anew after that revision: it could not start the job's launcher."""

    node: str
    revision: int
    #: What the node said.
    reason: str = ""
    #: Recovery has fatal evidence against it; it stays excluded once the job runs elsewhere.
    fatal: bool = False


@dataclass(frozen=True, slots=True)
class Leaving:
    """A job is to give up its GPUs at the first checkpoint that is committed after `asked_unix_ns`, at the latest at `by_unix_ns`.

    for_job: empty when a person has asked for it. then: why it is held in the queue; empty when it is not.
    """

    for_job: str
    asked_unix_ns: int
    by_unix_ns: int
    then: str = ""


@dataclass(frozen=True, slots=True)
class Lent:
    """GPUs that a job gave up so that another one could start."""

    to_job: str
    since_unix_ns: int
    gpus: int


@dataclass(frozen=True, slots=True)
class Turn:
    """A job's way through the queue.

    held: why it must not start, empty when it may. waits_for: what is left of `JobSpec.after`. placed_unix_ns: since when it has its
    nodes, None while it has none. ran_ns: how long it had nodes before that. checkpoint_unix_ns: when its newest verified checkpoint was
    committed; None: it has none. checkpoint_interval_s: between the newest two of them. withheld: which node the engine kept from it when it had its last turn, and why, so
    that it gave all of them back; empty when it did not. lent: for whom it left last, None once it has all of its nodes again. cause: what it
    waits for first, a `planner.Cause`; empty until the planner has looked at it. stopped_unix_ns: when its ranks were told to end last, so that
    others have its GPUs. saves_when_stopped: it made a checkpoint then, which is how a script is asked for one (SIGTERM); it will be asked so again.
    """

    held: str = ""
    waits_for: tuple[Dependency, ...] = ()
    placed_unix_ns: int | None = None
    ran_ns: int = 0
    checkpoint_unix_ns: int | None = None
    checkpoint_interval_s: float | None = None
    leaving: Leaving | None = None
    preemptions: int = 0
    withheld: str = ""
    lent: Lent | None = None
    cause: str = ""
    stopped_unix_ns: int | None = None
    saves_when_stopped: bool = False

    def ran_s(self, now_unix_ns: int) -> float:
        """How long it has had nodes, all placements together."""
        since = now_unix_ns if self.placed_unix_ns is None else self.placed_unix_ns
        return (self.ran_ns + max(0, now_unix_ns - since)) / 1e9


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job. The planner decides which goes first."""

    name: str
    spec: JobSpec
    create_time_unix_ns: int
    state: JobState = JobState.PENDING
    message: str = ""
    placement: PlacementRecord = PlacementRecord()
    #: Until the job runs or ends.
    excluded: tuple[ExcludedNode, ...] = ()
    end_time_unix_ns: int | None = None
    create_revision: int = 0
    revision: int = 0
    #: W3C `traceparent` of the call that created it; empty when that was not traced.
    trace_parent: str = ""
    turn: Turn = Turn()

    @property
    def ended(self) -> bool:
        return self.state in FINAL_STATES


@dataclass(frozen=True, slots=True, order=True)
class LauncherRef:
    """A launcher: one for each job and node, of the placement epoch for which it was started."""

    job: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Closure:
    """A node is kept out of service by people, or by other programs than ours, of an engine that is not ours alone."""

    reason: str
    #: Who did it, as the engine knows them.
    actor: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The engine has taken a launcher's seat away. Processes of it may still run."""

    ref: LauncherRef
    reason: str
    #: It is the node that failed.
    by_node: bool = False


@dataclass(frozen=True, slots=True)
class ForeignJob:
    """What a job of the engine that is not ours holds on one node. end_unix_ns: at the latest; None: nobody knows."""

    name: str
    user: str
    gpus: int
    start_unix_ns: int
    end_unix_ns: int | None = None


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What an engine sees of a node now. All of it is lost in a restart and comes back with the node's next report."""

    inventory: Inventory
    #: The agent's stream is open; of an engine without agents: the node answers it, as far as it knows.
    connected: bool
    #: No report for longer than `nodes.SILENCE_LIMIT_S`, or the engine says that the node is gone.
    silent: bool
    launchers: frozenset[LauncherRef] = frozenset()
    #: Launchers that the node could not start in several tries, and why. None of them runs there.
    unstartable: tuple[tuple[LauncherRef, str], ...] = ()
    #: Launchers that wait for the engine, and what for.
    waiting: tuple[tuple[LauncherRef, str], ...] = ()
    #: Launchers that have waited for too long since the engine has given the node to others, and why. None of them runs there.
    withheld: tuple[tuple[LauncherRef, str], ...] = ()
    lost: tuple[Lost, ...] = ()
    #: Launchers that somebody has cancelled in the engine, and how that is known.
    cancelled: tuple[tuple[LauncherRef, str], ...] = ()
    closed: Closure | None = None
    #: Somebody has opened it in the engine although we keep it closed: they have looked at it.
    opened: bool = False
    #: Why nothing can be started there now, for a reason that passes; empty when it can.
    obstacle: str = ""
    foreign: tuple[ForeignJob, ...] = ()
    #: Parts of the engine that the node belongs to; a job may ask for some of them.
    partitions: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Observation:
    """What an engine sees of all nodes that reported since it started."""

    nodes: tuple[tuple[str, NodeStatus], ...] = ()
    #: It has run for so long that a node it has not heard of is silent.
    complete: bool = False


@dataclass(frozen=True, slots=True)
class WantedLauncher:
    """A launcher that should run on a node."""

    ref: LauncherRef
    spec: JobSpec
    gpu_indices: tuple[int, ...]
    trace_parent: str = ""
    #: When its job was created, which tells it from one of the same name before.
    create_time_unix_ns: int = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What should run on one node. A launcher that is neither in `run` nor in `leave` is to be stopped."""

    run: tuple[WantedLauncher, ...] = ()
    #: Launchers of jobs that have just ended: recovery lets them finish.
    leave: frozenset[LauncherRef] = frozenset()
    #: Why we keep the node out of service; empty when we do not.
    closed: str = ""


@dataclass(frozen=True, slots=True)
class QueueRecord:
    """See `switchgear.v1alpha.Queue`."""

    name: str
    parent: str = ""
    guaranteed_gpus: float = 0.0
    #: None: no limit.
    limit_gpus: float | None = None
    weight: float = 1.0
    keeps: bool = False


@dataclass(frozen=True, slots=True)
class ReservationRecord:
    """See `switchgear.v1alpha.Reservation`."""

    name: str
    nodes: tuple[str, ...]
    start_unix_ns: int
    end_unix_ns: int
    queues: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class EndedRun:
    """A job that ran and ended by itself, as run times are learned from it."""

    user: str
    key: str
    queue: str
    gpus: float
    seconds: float
    end_unix_ns: int
    #: None in what earlier versions wrote.
    submit_unix_ns: int | None = None


#: Jobs for which it is equal are taken for the same work: user, key, nodes, processes on each, part of a GPU that each has.
Alike = tuple[str, str, int, int, str]


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """What is known of one start of a job that is over.

    gpu_model: of all its nodes; empty: of several models, or not known. steps_per_s: None: not known, or of too few steps to tell.
    held_up_by: node whose fault ended it, or empty.
    """

    job: str
    #: Of the job: a name may be used again.
    create_revision: int
    generation: int
    alike: Alike
    nodes: tuple[str, ...] = ()
    gpu_model: str = ""
    steps_per_s: float | None = None
    held_up_by: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """GPU-seconds of jobs that have ended, as of that time; they decay."""

    queue: str
    user: str
    gpu_s: float
    time_unix_ns: int


@dataclass(frozen=True, slots=True)
class Rules:
    """What people have set, and what has been: all that a plan needs beside nodes and jobs.

    ended: of jobs that others wait for and that have ended; None: no such job is known any more.
    """

    queues: tuple[QueueRecord, ...] = ()
    reservations: tuple[ReservationRecord, ...] = ()
    history: tuple[EndedRun, ...] = ()
    #: In the order of their ends.
    attempts: tuple[AttemptRecord, ...] = ()
    usage: tuple[Usage, ...] = ()
    ended: Mapping[str, JobState | None] = field(default_factory=dict)
    #: By node, 1 well to 0 useless; absent: not known.
    health: Mapping[str, float] = field(default_factory=dict)
    #: Nodes that an open incident accuses.
    incidents: frozenset[str] = frozenset()
    #: Nodes that failed under a job are cordoned, where their engine would hand them out again as soon as they answer.
    cordons_lost: bool = False
