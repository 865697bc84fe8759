"""Nodes, jobs and placements as the scheduler's policies see them: plain values."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Inventory:
    """What an agent says of its node."""

    address: str
    gpus: tuple[GpuRecord, ...]
    agent_version: str
    #: HOST:PORT of the agent's `/metrics`; empty when it does not say.
    metrics_address: str = ""


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


@dataclass(frozen=True, slots=True)
class PlacementRecord:
    """Where a job runs; the position of a node is its node rank. Empty `nodes`: nowhere now."""

    epoch: int = 0
    nodes: tuple[PlacedNode, ...] = ()


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
class JobRecord:
    """A job. Jobs are placed in the order of `create_revision`."""

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

    @property
    def ended(self) -> bool:
        return self.state in FINAL_STATES


@dataclass(frozen=True, slots=True, order=True)
class LauncherRef:
    """A launcher: one for each job and node, of the placement epoch for which it was started."""

    job: str
    epoch: int


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What an engine sees of a node now. All of it is lost in a restart and comes back with the node's next report."""

    inventory: Inventory
    #: The agent's stream is open.
    connected: bool
    #: No report for longer than `nodes.SILENCE_LIMIT_S`.
    silent: bool
    launchers: frozenset[LauncherRef] = frozenset()
    #: Launchers that the node could not start in several tries, and why.
    unstartable: tuple[tuple[LauncherRef, str], ...] = ()


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


@dataclass(frozen=True, slots=True)
class Wanted:
    """What should run on one node. A launcher that is neither in `run` nor in `leave` is to be stopped."""

    run: tuple[WantedLauncher, ...] = ()
    #: Launchers of jobs that have just ended: recovery lets them finish.
    leave: frozenset[LauncherRef] = frozenset()
