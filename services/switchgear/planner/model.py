"""What a plan is made from, and what comes out of it: plain values.

Times are seconds on one clock, that of the machine or of a simulation. GPUs of one node are numbered from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

#: Thousandths of one GPU.
WHOLE = 1000


class Workload(StrEnum):
    TRAINING = "TRAINING"
    INFERENCE = "INFERENCE"


@dataclass(frozen=True, slots=True)
class Selector:
    """The label `key` has one of `values`; not one of them when `excludes`. A label that a node lacks is ""."""

    key: str
    values: frozenset[str]
    excludes: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """What each task of a job needs, on one node. At most one of `gpus`, `gpu_milli` (1 to 999) and `mig_profile` is given.

    Equal tasks share the work of finding out where they fit, so one object is to be used for all that are equal.
    """

    gpus: int = 0
    #: Thousandths of one GPU, which others may share.
    gpu_milli: int = 0
    #: A MIG instance, `1g.10gb`.
    mig_profile: str = ""
    cpu_milli: int = 0
    memory_mib: int = 0
    #: Empty: any.
    gpu_models: frozenset[str] = frozenset()
    selectors: tuple[Selector, ...] = ()
    tolerates: frozenset[str] = frozenset()

    @property
    def gpu_share(self) -> float:
        """GPUs that one task takes; a MIG instance counts by its compute slices of seven."""
        if self.mig_profile:
            return int(self.mig_profile.partition("g")[0]) / 7
        return self.gpus or self.gpu_milli / WHOLE


@dataclass(frozen=True, slots=True)
class Node:
    """cpu_milli, memory_mib: what it has, None when nobody says, which is taken for enough.

    mig: for each GPU that is divided, the profiles of its instances; such a GPU has no other room.
    topology: names of the domains that it is in, in the order of `Snapshot.levels`; "" where that is not known.
    closed: why nothing may be placed on it; "" when it is open.
    health: 1 well to 0 useless, None unknown. straggling: share of its recent jobs that it held up, None unknown.
    """

    name: str
    gpus: int = 0
    gpu_model: str = ""
    gpu_memory_mib: int = 0
    cpu_milli: int | None = None
    memory_mib: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: frozenset[str] = frozenset()
    topology: tuple[str, ...] = ()
    mig: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    closed: str = ""
    health: float | None = None
    straggling: float | None = None
    #: An incident is open that names it.
    incident: bool = False


@dataclass(frozen=True, slots=True)
class Near:
    """All tasks in one domain of this level. Not required: as near as it gets."""

    level: str
    required: bool = True


@dataclass(frozen=True, slots=True)
class Seat:
    """What one task has. gpus: indices; of a share or a MIG instance the one GPU that it is on."""

    node: str
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """A gang of `tasks` equal tasks, on as many nodes or fewer; `tasks_min` do when no more fit. Neither is ever started in part.

    one_a_node: each task on a node of its own, as launchers need it.
    key: jobs of a user with the same key are taken for alike when run times are learned.
    speeds: of one task by GPU model, relative to any other; 1 where none was measured.
    held: why it must not start, "" when it may. after: jobs that have to end before.
    """

    name: str
    task: Task
    submit_s: float
    tasks: int = 1
    tasks_min: int = 0
    one_a_node: bool = True
    queue: str = ""
    user: str = ""
    key: str = ""
    priority: int = 0
    workload: Workload = Workload.TRAINING
    near: tuple[Near, ...] = ()
    #: Neighbouring ranks on neighbouring nodes. False: ranks that do not talk, whose nodes need not be near each other but for `near`.
    contiguous: bool = True
    time_limit_s: float | None = None
    not_before_s: float = 0.0
    #: Others may take its GPUs: at once by quota, or by priority.
    preemptible: bool = True
    #: Runs on what nobody else wants at the moment; counts in no quota, and is the first to go.
    harvest: bool = False
    speeds: Mapping[str, float] = field(default_factory=dict)
    excluded: frozenset[str] = frozenset()
    held: str = ""
    after: frozenset[str] = frozenset()
    #: Seats that it has already and keeps, by rank, when others of its nodes were lost. Nobody else has them, and a start names them again.
    kept: tuple[tuple[int, Seat], ...] = ()

    @property
    def tasks_least(self) -> int:
        return self.tasks_min or self.tasks

    @property
    def gpus(self) -> float:
        """Of the whole gang."""
        return self.tasks * self.task.gpu_share


@dataclass(frozen=True, slots=True)
class Running:
    """A job that has its seats, by rank.

    checkpoint_s: of its newest verified checkpoint, None when it has none. checkpoint_interval_s: between two, None when it makes none.
    restart_s: from its stop to the step at which it stopped, without the work that is done again.
    leaving: its GPUs are promised to somebody else already, to the pending job `leaving_for` where that is known.
    saves_when_stopped: it makes a checkpoint when it is told to end, so that nothing has to be awaited and no work is done again.
    """

    job: Job
    seats: tuple[Seat, ...]
    start_s: float
    checkpoint_s: float | None = None
    checkpoint_interval_s: float | None = None
    restart_s: float = 60.0
    leaving: bool = False
    leaving_for: str = ""
    saves_when_stopped: bool = False


@dataclass(frozen=True, slots=True)
class Queue:
    """guaranteed: GPUs that its jobs may always have. limit: at most so many, with what others lend; None: no limit.

    parent: "" for one at the top. lends: whether others may use what it leaves. weight: of its share in what nobody is guaranteed.
    """

    name: str
    parent: str = ""
    guaranteed: float = 0.0
    limit: float | None = None
    weight: float = 1.0
    lends: bool = True


@dataclass(frozen=True, slots=True)
class Reservation:
    """Nodes that are kept from `start_s` to `end_s` for jobs of these queues or names; for nobody when both are empty: maintenance."""

    name: str
    nodes: frozenset[str]
    start_s: float
    end_s: float
    queues: frozenset[str] = frozenset()
    jobs: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that has ended, for learning: how long it ran. submit_s: None is taken for when it started."""

    user: str
    key: str
    queue: str
    gpus: float
    seconds: float
    end_s: float
    submit_s: float | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """What operators choose.

    spares: healthy nodes kept free for recovery. guaranteed_run_s: no job is stopped for another before it ran so long.
    checkpoint_wait_s: a victim's next checkpoint is awaited for at most so long. half_life_s: of past use in fair share.
    starving_s: who has waited for longer goes before younger jobs of the same priority, whatever their size and share.
    """

    spares: int = 0
    guaranteed_run_s: float = 600.0
    checkpoint_wait_s: float = 600.0
    half_life_s: float = 7 * 24 * 3600.0
    starving_s: float = 24 * 3600.0
    preemption: bool = True


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a plan depends on. levels: of the topology, widest first: `spine`, `leaf`, `rail`, `nvlink`.

    used_gpu_s: GPU-seconds by queue and user, halved each `Policy.half_life_s`; keys are (queue, user).
    """

    nodes: tuple[Node, ...]
    pending: tuple[Job, ...] = ()
    running: tuple[Running, ...] = ()
    queues: tuple[Queue, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    levels: tuple[str, ...] = ()
    used_gpu_s: Mapping[tuple[str, str], float] = field(default_factory=dict)
    ended: tuple[Ended, ...] = ()
    policy: Policy = Policy()


class Cause(StrEnum):
    """Why a job does not start now; the first that holds is the binding one."""

    HELD = "HELD"
    NOT_YET = "NOT_YET"
    DEPENDENCY = "DEPENDENCY"
    #: An empty fleet could not hold it.
    IMPOSSIBLE = "IMPOSSIBLE"
    NODES_CLOSED = "NODES_CLOSED"
    QUOTA = "QUOTA"
    RESERVED = "RESERVED"
    TOPOLOGY = "TOPOLOGY"
    GPU_MODEL = "GPU_MODEL"
    SELECTOR = "SELECTOR"
    CPU = "CPU"
    MEMORY = "MEMORY"
    #: Enough is free in all, and not together.
    FRAGMENTED = "FRAGMENTED"
    GPUS = "GPUS"
    #: It would fit, and those before it would have to wait longer.
    BEHIND = "BEHIND"
    #: Room is being made for it: victims are asked to leave.
    PREEMPTING = "PREEMPTING"


@dataclass(frozen=True, slots=True)
class NoRoom:
    """A gang cannot be placed now. text: a sentence for a person, with figures."""

    cause: Cause
    text: str


@dataclass(frozen=True, slots=True)
class Start:
    """seats: by rank. reason: why here, in a sentence."""

    job: Job
    seats: tuple[Seat, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Preempt:
    """A running job is to leave for another: at its next verified checkpoint, at the latest at `by_s`.

    lost_gpu_s: GPU-seconds that it costs, work that is done again and the restart.
    """

    job: str
    for_job: str
    by_s: float
    lost_gpu_s: float


@dataclass(frozen=True, slots=True)
class Wait:
    """A pending job that does not start now. start_s: when it is expected to; low and high bound four of five outcomes; None: cannot be said."""

    job: str
    cause: Cause
    text: str
    start_s: float | None = None
    start_low_s: float | None = None
    start_high_s: float | None = None


@dataclass(frozen=True, slots=True)
class Decisions:
    """In the order in which they were made; the same snapshot and time give the same decisions."""

    starts: tuple[Start, ...] = ()
    preemptions: tuple[Preempt, ...] = ()
    waits: tuple[Wait, ...] = ()
