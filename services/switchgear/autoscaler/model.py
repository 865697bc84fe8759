"""Inference services, their replicas and what is seen of them: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


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
    """What the user asked for, every default filled in; see `switchgear.v1.InferenceServiceSpec`."""

    argv: tuple[str, ...]
    working_directory: str
    environment: tuple[tuple[str, str], ...] = ()
    python: str = ""
    gpus_per_replica: int = 1
    min_replicas: int = 0
    max_replicas: int = 1
    target_wait_s: float = 2.0
    tokens_per_s: float = 100.0
    scale_down_delay_s: float = 60.0
    drain_timeout_s: float = 60.0
    latency_target_s: float = 5.0

    def bounded(self, replicas: int) -> int:
        """The nearest number of replicas that the bounds allow."""
        return min(max(replicas, self.min_replicas), self.max_replicas)


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


@dataclass(frozen=True, slots=True)
class Refusal:
    """The scheduler does not take the job of a replica. permanent: nor will it later."""

    message: str
    permanent: bool


@dataclass(frozen=True, slots=True)
class Load:
    """What a connected replica reported last. Totals count from the start of its process, `instance`."""

    instance: str
    address: str
    ready: bool = False
    running_requests: int = 0
    waiting_requests: int = 0
    tokens_total: int = 0
    busy_s_total: float = 0.0


@dataclass(frozen=True, slots=True)
class InFlight:
    """Work of a router in one replica. Tokens: of the prompts, and the most that may be generated."""

    requests: int
    tokens: int


@dataclass(frozen=True, slots=True)
class ServiceReport:
    """What a router says of one service; see `switchgear.v1alpha.ServiceDemand`."""

    held_requests: int = 0
    held_tokens: int = 0
    #: By replica; those without any are left out.
    in_flight: Mapping[str, InFlight] = field(default_factory=dict)
    tokens_total: int = 0
    unanswered_tokens_total: int = 0

    @property
    def backlog_tokens(self) -> int:
        return self.held_tokens + sum(one.tokens for one in self.in_flight.values())


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
    #: By replica.
    refusals: Mapping[str, Refusal] = field(default_factory=dict)
    #: Replicas whose job is being created just now.
    creating: frozenset[str] = frozenset()
    #: Connected replicas.
    loads: Mapping[str, Load] = field(default_factory=dict)
    #: Connected routers.
    routers: tuple[RouterReport, ...] = ()
    #: False until routers have had the time to connect after a start of this process, and while one is missing that was here.
    routers_heard: bool = True
