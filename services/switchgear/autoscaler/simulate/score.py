"""What a run was worth: how many requests kept the promise, for how many GPU-hours, and how restless the fleet was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from switchgear.autoscaler.simulate.conditions import Conditions, Outcome, Taken, keeps

#: A scale-up so soon after a scale-down is a flap.
FLAP_S = 300.0


@dataclass(frozen=True)
class Score:
    """attainment: fraction of all requests that kept the promise. Quantiles (p50, p99) are infinite when so many requests never ended.

    gpu_hours: of all replicas from request to end, until the last arrival. flaps_per_h: scale-ups within `FLAP_S` after a scale-down.
    held_max: most requests that the gateway held at once. causes: decisions by their class.
    """

    attainment: float
    gpu_hours: float
    hours: float
    ttft_s: tuple[float, float]
    wait_s: tuple[float, float]
    e2e_s: tuple[float, float]
    starts: int
    failed_starts: int
    flaps_per_h: float
    held_max: int
    ready_max: int
    causes: Mapping[str, int]

    @classmethod
    def of(cls, outcome: Outcome, conditions: Conditions) -> Score:
        requests, hours = outcome.requests, outcome.span_s / 3600
        kept = sum(keeps(request, conditions.slo, conditions.model) for request in requests)
        return cls(
            attainment=kept / max(1, len(requests)),
            gpu_hours=outcome.replica_s / 3600 * conditions.gpus_per_replica,
            hours=hours,
            ttft_s=_quantiles([request.first_s - request.arrival_s for request in requests]),
            wait_s=_quantiles([request.begun_s - request.arrival_s for request in requests]),
            e2e_s=_quantiles([request.end_s - request.arrival_s for request in requests]),
            starts=outcome.starts,
            failed_starts=outcome.failed_starts,
            flaps_per_h=flaps(outcome.changes) / hours if hours else 0.0,
            held_max=outcome.held_max,
            ready_max=outcome.ready_max,
            causes=outcome.causes,
        )


def flaps(changes: Sequence[Taken]) -> int:
    """Scale-ups within `FLAP_S` after a scale-down."""
    found, down_s = 0, -math.inf
    for taken in changes:
        if taken.replicas < taken.before:
            down_s = taken.at_s
        elif taken.replicas > taken.before and taken.at_s - down_s <= FLAP_S:
            found += 1
    return found


def _quantiles(seconds: Sequence[float]) -> tuple[float, float]:
    if not seconds:
        return math.inf, math.inf
    known = np.nan_to_num(np.array(seconds), nan=math.inf)
    p50, p99 = np.quantile(known, (0.5, 0.99), method="inverted_cdf")
    return float(p50), float(p99)
