"""What hindsight chooses: the smallest fixed fleet and the cheapest target that keep the promise on a trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from switchgear.autoscaler.baselines.static import Static
from switchgear.autoscaler.observation import Scaler
from switchgear.autoscaler.simulate.conditions import Conditions, keeps
from switchgear.autoscaler.simulate.trace import Trace
from switchgear.autoscaler.simulate.world import run

#: Targets of the grid, from the highest down, each the root of this factor below the one before.
TARGET_MAX, TARGET_MIN, TARGET_STEP_SQUARED = 256.0, 0.25, 2.0
#: Targets of the grid that are tried below the highest that reaches the objective; how far above it is looked closer, since a target of the
#: grid may fail where its neighbours do not; targets between two of the grid then.
BELOW, ABOVE, BETWEEN = 1, 2, 7
#: A target is no candidate when it costs so many times the fleet at the start: runs with hundreds of replicas take long.
COST_MAX = 5.0


def static_peak(trace: Trace, conditions: Conditions) -> int | None:
    """The smallest fixed fleet that reaches the objective, READY from the start; None: none up to `max_replicas` does.

    Found by doubling, then bisection, which takes for granted that more replicas keep no fewer promises.
    """

    def enough(replicas: int) -> bool:
        given = replace(conditions, initial=replicas, min_replicas=0)
        return tried_out(trace, Static(replicas), given).reaches

    low, high = 0, max(1, conditions.min_replicas)
    while not enough(high):
        if high >= conditions.max_replicas:
            return None
        low, high = high, min(2 * high, conditions.max_replicas)
    while high - low > 1 and high > conditions.min_replicas:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def best_target(trace: Trace, make: Callable[[float], Scaler], conditions: Conditions) -> float | None:
    """The cheapest target that reaches the objective; None: none from `TARGET_MIN` to `TARGET_MAX` does within `COST_MAX`.

    A higher target needs fewer replicas, so it is looked for from above: on a geometric grid to a bit below the first that does, then on a
    finer one between that and the second above it. The cheapest of all these is taken. One that is too dear says nothing about lower ones: a
    fleet that is too small for long piles up what it then multiplies by.
    """
    costs_s: dict[float, float] = {}
    most_s = COST_MAX * max(1, conditions.initial) * float(trace.arrival_s[-1])

    def tried(target: float) -> None:
        trial = tried_out(trace, make(target), conditions, min((most_s, *costs_s.values())))
        if trial.reaches:
            costs_s[target] = trial.replica_s

    step, left = 0, BELOW + 1
    # Not by division again and again: a hair below a whole number, a fleet that fits exactly gets a replica more.
    while left and (target := TARGET_MAX * TARGET_STEP_SQUARED ** (-step / 2)) >= TARGET_MIN:
        tried(target)
        left -= bool(costs_s)
        step += 1
    if not costs_s:
        return None
    low = max(costs_s)
    for part in range(ABOVE * (BETWEEN + 1) - 1, 0, -1):
        target = low * TARGET_STEP_SQUARED ** (part / (BETWEEN + 1) / 2)
        if part % (BETWEEN + 1) and target < TARGET_MAX:
            tried(target)
    return min(costs_s, key=lambda one: costs_s[one])


@dataclass(frozen=True)
class Trial:
    """replica_s: of a run that reaches the objective."""

    reaches: bool
    replica_s: float = math.inf


def tried_out(trace: Trace, scaler: Scaler, conditions: Conditions, most_s: float = math.inf) -> Trial:
    """Whether the objective is reached, for at most `most_s` seconds of replicas; a run that cannot any more is given up."""
    broken_max = math.floor(len(trace) * (1 - conditions.slo.objective) + 1e-9)
    requests = trace.requests()
    outcome = run(requests, scaler, conditions, broken_max=broken_max, replica_s_max=most_s)
    unkept = sum(not keeps(request, conditions.slo, conditions.model) for request in requests)
    if outcome.given_up or unkept > broken_max:
        return Trial(reaches=False)
    return Trial(reaches=True, replica_s=outcome.replica_s)
