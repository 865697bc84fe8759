"""What Slurm says of its nodes and jobs, and what it is asked to run, in one form for all versions and both ways to ask.

Names of states and flags are those of Slurm's `squeue` and `sinfo` manual pages, in capitals. A word that a newer Slurm has and
these enums do not is kept as the text that it is: compare, never convert.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class JobState(StrEnum):
    """The base state of a job: exactly one at a time."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"
    TIMEOUT = "TIMEOUT"
    NODE_FAIL = "NODE_FAIL"
    PREEMPTED = "PREEMPTED"
    BOOT_FAIL = "BOOT_FAIL"
    DEADLINE = "DEADLINE"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    #: Before 23.11 Slurm shows a flag such as COMPLETING in place of the base state.
    UNKNOWN = "UNKNOWN"


class JobFlag(StrEnum):
    """What is said of a job besides its base state."""

    COMPLETING = "COMPLETING"
    CONFIGURING = "CONFIGURING"
    EXPEDITING = "EXPEDITING"
    LAUNCH_FAILED = "LAUNCH_FAILED"
    POWER_UP_NODE = "POWER_UP_NODE"
    RECONFIG_FAIL = "RECONFIG_FAIL"
    REQUEUED = "REQUEUED"
    REQUEUE_FED = "REQUEUE_FED"
    REQUEUE_HOLD = "REQUEUE_HOLD"
    RESIZING = "RESIZING"
    RESV_DEL_HOLD = "RESV_DEL_HOLD"
    REVOKED = "REVOKED"
    SIGNALING = "SIGNALING"
    SPECIAL_EXIT = "SPECIAL_EXIT"
    STAGE_OUT = "STAGE_OUT"
    STOPPED = "STOPPED"
    UPDATE_DB = "UPDATE_DB"


#: No process of such a job starts again, unless it is requeued.
ENDED = frozenset({
    JobState.COMPLETED, JobState.CANCELLED, JobState.FAILED, JobState.TIMEOUT, JobState.NODE_FAIL, JobState.PREEMPTED,
    JobState.BOOT_FAIL, JobState.DEADLINE, JobState.OUT_OF_MEMORY,
})  # fmt: skip


class NodeState(StrEnum):
    """The base state of a node: exactly one at a time."""

    UNKNOWN = "UNKNOWN"
    DOWN = "DOWN"
    IDLE = "IDLE"
    ALLOCATED = "ALLOCATED"
    MIXED = "MIXED"
    ERROR = "ERROR"
    FUTURE = "FUTURE"


class NodeFlag(StrEnum):
    """What is said of a node besides its base state."""

    BLOCKED = "BLOCKED"
    CLOUD = "CLOUD"
    COMPLETING = "COMPLETING"
    DRAIN = "DRAIN"
    DYNAMIC_FUTURE = "DYNAMIC_FUTURE"
    DYNAMIC_NORM = "DYNAMIC_NORM"
    EXTERNAL = "EXTERNAL"
    FAIL = "FAIL"
    INVALID_REG = "INVALID_REG"
    MAINTENANCE = "MAINTENANCE"
    NOT_RESPONDING = "NOT_RESPONDING"
    PLANNED = "PLANNED"
    POWERED_DOWN = "POWERED_DOWN"
    POWERING_DOWN = "POWERING_DOWN"
    POWERING_UP = "POWERING_UP"
    POWER_DOWN = "POWER_DOWN"
    POWER_DRAIN = "POWER_DRAIN"
    POWER_UP = "POWER_UP"
    REBOOT_CANCELED = "REBOOT_CANCELED"
    REBOOT_ISSUED = "REBOOT_ISSUED"
    REBOOT_REQUESTED = "REBOOT_REQUESTED"
    RESERVED = "RESERVED"
    UNDRAIN = "UNDRAIN"


@dataclass(frozen=True)
class Gpus:
    """GPUs of one node: all that it has, those in use, or those of one job there."""

    #: Number by type; the type is "" where Slurm has none (`Gres=gpu:8`).
    by_type: Mapping[str, int] = field(default_factory=dict)
    #: Their indices on the node, ascending; None where Slurm does not tell them.
    indices: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        """Of all types."""
        return sum(self.by_type.values())


@dataclass(frozen=True)
class SlurmNode:
    """A node as slurmctld sees it."""

    #: NodeName, by which Slurm knows it.
    name: str
    #: NodeAddr: where its slurmd listens.
    address: str
    #: NodeHostName: what the machine calls itself.
    hostname: str
    #: A `NodeState`, or a word of a newer Slurm.
    state: str
    #: `NodeFlag`s, and words of a newer Slurm.
    flags: frozenset[str]
    cpus: int
    memory_mib: int
    gpus: Gpus
    gpus_used: Gpus
    partitions: tuple[str, ...]
    features: tuple[str, ...]
    #: Why it is drained or down, as the person or program wrote it; "" when nobody did.
    reason: str
    #: Who wrote it; "" when unknown.
    reason_user: str
    #: When, in Unix seconds; None when nobody did. The same holds for the times below.
    reason_s: int | None
    boot_s: int | None
    slurmd_start_s: int | None
    #: Of its slurmd, for example 22.05.8; "" when it never registered.
    version: str

    @property
    def is_drained(self) -> bool:
        """Somebody closed it: no job starts there until it is resumed."""
        return NodeFlag.DRAIN in self.flags or NodeFlag.FAIL in self.flags

    @property
    def is_open(self) -> bool:
        """There is nothing to resume: it is neither drained nor was it put down."""
        silent = NodeFlag.NOT_RESPONDING in self.flags
        return not self.is_drained and (self.state != NodeState.DOWN or silent)

    @property
    def is_up(self) -> bool:
        """Its slurmd answers, and Slurm would run something there, were it neither drained nor full."""
        return self.state in _UP and not self.flags & _OUT


_UP = frozenset({NodeState.IDLE, NodeState.ALLOCATED, NodeState.MIXED})
_OUT = frozenset({
    NodeFlag.NOT_RESPONDING, NodeFlag.INVALID_REG, NodeFlag.POWERED_DOWN, NodeFlag.POWERING_DOWN, NodeFlag.POWERING_UP,
    NodeFlag.REBOOT_ISSUED, NodeFlag.BLOCKED,
})  # fmt: skip


@dataclass(frozen=True)
class SlurmJob:
    """A job as slurmctld sees it; ended ones stay for a while (`MinJobAge`, 300 s unless configured)."""

    #: Of this very job: each started task of an array and each part of a heterogeneous job has its own.
    id: int
    name: str
    user: str
    account: str
    partition: str
    qos: str
    #: A `JobState`, or a word of a newer Slurm.
    state: str
    #: `JobFlag`s, and words of a newer Slurm.
    flags: frozenset[str]
    #: Why it waits or how it ended, in Slurm's word, for example Resources or NonZeroExitCode; "" for none.
    reason: str
    #: The same in Slurm's own words, where it has more to say; else "".
    reason_detail: str
    comment: str
    #: Names of the nodes that it has, or had; empty while it waits.
    nodes: tuple[str, ...]
    #: What it has on each of its nodes, in the same order; empty when it has none, and once it has ended.
    gpus: Mapping[str, Gpus]
    #: What it asks for on each node.
    gpus_per_node: Gpus
    #: What it asks for, or has.
    node_count: int
    required_nodes: tuple[str, ...]
    excluded_nodes: tuple[str, ...]
    priority: int
    #: Unix seconds, as the times below; None when it has not come yet and nobody knows when.
    submit_s: int | None
    #: Of a waiting job: when Slurm expects to start it.
    start_s: int | None
    #: Of a running job: when its time limit ends it; None without a limit.
    end_s: int | None
    #: None: no limit.
    time_limit_s: int | None
    #: How often it was requeued (SLURM_RESTART_COUNT).
    restarts: int
    #: Of the array that it is a task of.
    array_job_id: int | None
    array_task_id: int | None
    #: Of the heterogeneous job that it is a part of, whose id is the first part's.
    het_job_id: int | None
    het_offset: int | None
    #: Of its batch script; None until it has ended.
    exit_code: int | None
    #: The number of the signal that ended the batch script; None for none.
    exit_signal: int | None

    @property
    def has_ended(self) -> bool:
        """It has ended, and Slurm has cleaned up: its nodes are free, and it does not run unless it is requeued."""
        return self.state in ENDED and not self.flags & {JobFlag.COMPLETING, JobFlag.STAGE_OUT}

    @property
    def holds_nodes(self) -> bool:
        """Its nodes and GPUs are taken: it runs, is suspended, or Slurm still cleans up after it."""
        return self.state in {JobState.RUNNING, JobState.SUSPENDED} or JobFlag.COMPLETING in self.flags


@dataclass(frozen=True)
class Submission:
    """A batch job to submit, apart from its script. What is None or empty is left to Slurm's own defaults."""

    name: str
    comment: str = ""
    #: Exactly these nodes, and no others.
    nodes: tuple[str, ...] = ()
    #: At least one; without effect when `nodes` says more.
    node_count: int = 1
    tasks: int = 1
    cpus_per_task: int | None = None
    gpus_per_node: int = 0
    #: Type of the GPUs as in Slurm's `Gres=`; "" for any.
    gpu_type: str = ""
    memory_per_node_mib: int | None = None
    partition: str = ""
    account: str = ""
    qos: str = ""
    time_limit_s: int | None = None
    #: As `sbatch --dependency`, for example singleton.
    dependency: str = ""
    excluded_nodes: tuple[str, ...] = ()
    #: Whether Slurm may start it again by itself when a node fails.
    requeue: bool = False
    #: Absolute, on the node; must exist there.
    working_directory: str = "/"
    #: File for its output, as `sbatch --output`; "" for Slurm's `slurm-%j.out` in the working directory.
    output: str = ""
    #: All that it finds in its environment besides what Slurm sets; never what the caller's own process has.
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Controller:
    """The Slurm that answers."""

    #: Of slurmctld or, where only the client tells, of the client; for example 22.05.8.
    version: str
    #: ClusterName; "" where this way of asking does not tell.
    cluster: str
