"""Inference services, their replicas and what is seen of them: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from switchgear.autoscaler.observation import Slo


class ReplicaState(StrEnum):
    """States of a replica; the names are those of `switchgear.v1.Replica.State`."""

    REQUESTED = "REQUESTED"
    STARTING = "STARTING"
    READY = "READY"
    DRAINING = "DRAINING"
    STOPPED = "STOPPED"
    FAILED = "FAILED"


#: A replica in one of these never changes again.
FINAL_STATES = frozenset({ReplicaState.STOPPED, ReplicaState.FAILED})


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """What the user asked for, every default filled in; see `switchgear.v1.InferenceServiceSpec`.

    scale_down_delay_s: None leaves it to the policy. gpu_budget: None: max_replicas alone limits. cold_start_s, prefill_tokens_per_s:
    None: unknown.
    """

    argv: tuple[str, ...]
    working_directory: str
    environment: tuple[tuple[str, str], ...] = ()
    python: str = ""
    gpus_per_replica: int = 1
    min_replicas: int = 0
    max_replicas: int = 1
    tokens_per_s: float = 100.0
    scale_down_delay_s: float | None = None
    drain_timeout_s: float = 60.0
    latency_target_s: float = 5.0
    slo: Slo = field(default_factory=Slo)
    gpu_budget: int | None = None
    cold_start_s: float | None = None
    prefill_tokens_per_s: float | None = None
    #: NAME or NAME:TARGET of the policy that decides beside the live one; empty: none.
    shadow_policy: str = ""
    #: Whose share of the cluster its replicas use, and what they may take from others: as a job's.
    queue: str = ""
    priority: int = 0
    preemptible: bool = False

    @property
    def most(self) -> int:
        """Replicas that bounds and budget allow."""
        if self.gpu_budget is None:
            return self.max_replicas
        return min(self.max_replicas, self.gpu_budget // self.gpus_per_replica)

    def bounded(self, replicas: int) -> int:
        """The nearest number of replicas that bounds and budget allow."""
        return max(min(replicas, self.most), min(self.min_replicas, self.most))


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """An inference service. Its replicas follow `desired`."""

    name: str
    spec: ServiceSpec
    create_time_unix_ns: int
    desired: int
    #: What the policy would have while its mode is ADVISE.
    advised: int | None = None
    #: Class of the newest decision, and the decision as a sentence.
    cause: str = ""
    decision: str = ""
    decide_time_unix_ns: int = 0
    #: Why there are not as many replicas as desired; empty when nothing is in the way.
    hindrance: str = ""
    deleting: bool = False
    #: Number of the newest replica. None is used twice, since jobs of replicas outlive these in the scheduler's history.
    last_number: int = 0
    #: Replicas up to this number run what the specification said before it was updated.
    outdated_number: int = 0
    revision: int = 0


@dataclass(frozen=True, slots=True)
class ReplicaRecord:
    """A replica and the job that runs it."""

    service: str
    number: int
    name: str
    job: str
    create_time_unix_ns: int
    state: ReplicaState = ReplicaState.REQUESTED
    message: str = ""
    #: `nodes/{node}`; empty until the scheduler has placed its job.
    node: str = ""
    address: str = ""
    #: When it was READY for the first time.
    ready_time_unix_ns: int | None = None
    drain_time_unix_ns: int | None = None
    #: Revision at which it began to drain: a router that knows this routing table or a newer one sends it nothing.
    drain_revision: int = 0
    end_time_unix_ns: int | None = None
    revision: int = 0

    @property
    def ended(self) -> bool:
        return self.state in FINAL_STATES

    @property
    def counts(self) -> bool:
        """Whether it is one of the desired: it serves or is on its way to."""
        return not self.ended and self.state is not ReplicaState.DRAINING


class JobEnd(StrEnum):
    """How a job ended; the names are those of `switchgear.v1.Job.State`."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class JobView:
    """What the scheduler says of a replica's job."""

    #: Name of the replica that it was made for.
    replica: str
    #: None while it has not ended.
    end: JobEnd | None = None
    message: str = ""
    #: `nodes/{node}`; empty until placed.
    node: str = ""
    #: What it waits for first, by its class in `Job.wait_cause`; empty while the scheduler has not looked, or does not tell.
    cause: str = ""
    #: GPUs that it holds.
    gpus: int = 0
    #: Whose turn it is: of jobs of one queue the higher priority goes first, then the older.
    queue: str = ""
    priority: int = 0
    create_time_unix_ns: int = 0


@dataclass(frozen=True, slots=True)
class Loan:
    """GPUs that the job `lender` gave up so that the job `to_job` could start. It waits to have them back."""

    lender: str
    to_job: str
    gpus: int
    since_unix_ns: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """The scheduler does not take the job of a replica. permanent: nor will it later."""

    message: str
    permanent: bool


@dataclass(frozen=True, slots=True)
class Load:
    """What a connected replica reported last. Totals count from the start of its process, `instance`; None: it does not tell."""

    instance: str
    address: str
    ready: bool = False
    running_requests: int = 0
    waiting_requests: int = 0
    tokens_total: int = 0
    busy_s_total: float = 0.0
    prompt_tokens_total: int | None = None
    steps_total: int | None = None
    remaining_tokens: int | None = None
    sequences_max: int | None = None
    kv_use: float | None = None


@dataclass(frozen=True, slots=True)
class InFlight:
    """Work of a router in one replica. Tokens: of the prompts, and the most that may be generated."""

    requests: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Totals:
    """What a router has counted of one service since it started. Tokens: of prompts (input), and the most that may be generated.

    estimated_tokens: of the prompts of completed requests as the router took them to be; completed_input_tokens: as they were.
    The mappings: completed requests by the bucket of their time.
    """

    requests: int = 0
    tokens: int = 0
    input_tokens: int = 0
    estimated_tokens: int = 0
    completed: int = 0
    completed_input_tokens: int = 0
    completed_output_tokens: int = 0
    kept: int = 0
    broken: int = 0
    ttft: Mapping[int, int] = field(default_factory=dict)
    tpot: Mapping[int, int] = field(default_factory=dict)
    e2e: Mapping[int, int] = field(default_factory=dict)
    wait: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServiceReport:
    """What a router says of one service; see `switchgear.v1alpha.ServiceDemand`."""

    held_requests: int = 0
    held_tokens: int = 0
    held_input_tokens: int = 0
    oldest_wait_s: float = 0.0
    #: By replica; those without any are left out.
    in_flight: Mapping[str, InFlight] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)


@dataclass(frozen=True, slots=True)
class RouterReport:
    """What a router said last. table_version: no request of its will go by an older table any more."""

    table_version: int = 0
    services: Mapping[str, ServiceReport] = field(default_factory=dict)

    def in_flight(self, service: str, replica: str) -> int:
        """Requests of the router in that replica."""
        report = self.services.get(service)
        one = report.in_flight.get(replica) if report else None
        return one.requests if one else 0


@dataclass(frozen=True, slots=True)
class World:
    """What is seen at one moment of all that is not stored here."""

    now_unix_ns: int
    #: Jobs of replicas by name; None while the scheduler does not tell.
    jobs: Mapping[str, JobView] | None = None
    #: What jobs gave up for others, by lender.
    loans: Mapping[str, Loan] = field(default_factory=dict)
    #: By replica.
    refusals: Mapping[str, Refusal] = field(default_factory=dict)
    #: Replicas whose job is being created just now.
    creating: frozenset[str] = frozenset()
    #: Names of nodes that are to be left.
    sick: frozenset[str] = frozenset()
    #: Connected replicas.
    loads: Mapping[str, Load] = field(default_factory=dict)
    #: Connected routers.
    routers: tuple[RouterReport, ...] = ()
    #: False until routers have had the time to connect after a start of this process, and while one is missing that was here.
    routers_heard: bool = True
