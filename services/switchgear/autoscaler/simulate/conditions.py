"""Under which conditions a service is simulated, and what came out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from switchgear.autoscaler.observation import Decision, Slo
from switchgear.autoscaler.simulate.replica import Request, ServiceModel


@dataclass(frozen=True, slots=True)
class Throttle:
    """From `at_s` on this fraction of the READY replicas works at `speed`; health tells of it when `told`."""

    at_s: float
    fraction: float = 0.5
    speed: float = 0.5
    told: bool = False


@dataclass(frozen=True, slots=True)
class Blindness:
    """From `at_s` to `until_s` the metrics vanish. told: the scrape knows that they are missing; otherwise they read as nothing done."""

    at_s: float
    until_s: float
    told: bool = True


@dataclass(frozen=True, slots=True)
class Conditions:
    """initial: READY replicas at the start. Unset bounds: 0 to 1,000. start_unix_s: of the trace's zero; None: it has no date."""

    model: ServiceModel = field(default_factory=ServiceModel)
    slo: Slo = field(default_factory=Slo)
    cold_start_s: float = 30.0
    cold_jitter: float = 0.0
    cold_fail: float = 0.0
    seed: int = 0
    initial: int = 1
    min_replicas: int = 0
    max_replicas: int = 1000
    gpus_per_replica: int = 1
    start_unix_s: float | None = None
    throttle: Throttle | None = None
    blindness: Blindness | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """A decision as it was taken. replicas: after bounds. ready, starting: as it was seen."""

    at_s: float
    decision: Decision
    before: int
    replicas: int
    ready: int
    starting: int


class GivenUp(StrEnum):
    """Why a run ended early."""

    BROKEN = "BROKEN"
    COST = "COST"


@dataclass(frozen=True, slots=True)
class Outcome:
    """requests: all of the trace, NaN times where one never ended. replica_s: of all replicas from request to end, up to `span_s`.

    changes: decisions that changed the number of replicas; causes: all decisions, by class. held_max: most requests that the gateway held at
    once. given_up: at which bound of its caller the run ended early.
    """

    requests: Sequence[Request]
    changes: Sequence[Taken]
    causes: Mapping[str, int]
    replica_s: float
    span_s: float
    starts: int
    failed_starts: int
    ready_max: int
    held_max: int
    given_up: GivenUp | None = None


def keeps(request: Request, slo: Slo, model: ServiceModel) -> bool:
    """Whether an ended request kept the promise; False for one that never ended."""
    if math.isnan(request.end_s):
        return False
    own_s = slo.ttft_prefill_factor * model.prefill_s(request.input_tokens)
    limit_s = math.inf
    if slo.ttft_s is not None:
        limit_s = slo.ttft_s + own_s
        if request.first_s - request.arrival_s > limit_s:
            return False
    if slo.wait_s is not None and request.begun_s - request.arrival_s > slo.wait_s:
        return False
    took_s = request.end_s - request.arrival_s
    if slo.e2e_s is not None and took_s > slo.e2e_s:
        return False
    return slo.tpot_s is None or took_s <= limit_s + slo.tpot_s * request.output_tokens
