"""Horizontal pod autoscaler of Kubernetes, on concurrency for each replica as a Pods metric.

Source: kubernetes `pkg/controller/podautoscaler/replica_calculator.go` (`calcPlainMetricReplicas`) and `horizontal.go`; defaults of the
v2 API's `behavior` from the documentation. A replica that loads its model serves no metrics: its pod counts as missing.
"""

from __future__ import annotations

import math

from switchgear.autoscaler.baselines.load import Window, ongoing, ready, starting
from switchgear.autoscaler.observation import Decision, Observation

TOLERANCE = 0.1
SYNC_S = 15.0
#: The highest recommendation of this long holds on the way down.
STABILIZATION_S = 300.0
#: In 15 seconds, whichever is more: the fleet again, or so many.
UP_FACTOR, UP_REPLICAS = 2, 4


class Behavior:
    """What the controller makes of a recommendation: at once up, bounded in steps; down after the stabilization window."""

    def __init__(self) -> None:
        self._recommended = Window(STABILIZATION_S)
        self._began = False

    def apply(self, now_s: float, current: int, recommended: int) -> int:
        recommended = max(1, recommended)
        if not self._began:
            # As there: the fleet that it finds is the first recommendation.
            self._began = True
            self._recommended.add(now_s, current)
        self._recommended.add(now_s, recommended)
        if recommended >= current:
            return min(recommended, max(current * UP_FACTOR, current + UP_REPLICAS))
        return min(current, int(self._recommended.highest))


class Hpa:
    """target: requests for each replica, on average. Never to zero: a HPA does nothing for a deployment that has none."""

    name = "hpa"
    interval_s = SYNC_S

    def __init__(self, target: float) -> None:
        self._target = target
        self._behavior = Behavior()

    def decide(self, now_s: float, seen: Observation) -> Decision:
        current, total, count = seen.desired, ongoing(seen), ready(seen)
        if current == 0:
            return Decision(0, "disabled", "no autoscaling from zero")
        if total is None or count == 0:
            return Decision(current, "no metric", "no replica tells its metric: keep")
        wanted = self._wanted(total / count / self._target, count, starting(seen), current)
        replicas = self._behavior.apply(now_s, current, wanted)
        return Decision(replicas, "utilization", f"{total} requests in {count} replicas", {"wanted": wanted})

    def _wanted(self, ratio: float, ready_count: int, missing: int, current: int) -> int:
        """ratio: of use to target, of READY replicas."""
        if not missing:
            return current if abs(ratio - 1) <= TOLERANCE else math.ceil(ratio * ready_count)
        counted = ready_count + missing
        # Missing ones damp either way: on the way up they count as idle, on the way down as full.
        damped = (ratio * ready_count + (0 if ratio > 1 else missing)) / counted
        if abs(damped - 1) <= TOLERANCE or (ratio > 1) != (damped > 1):
            return current
        wanted = math.ceil(damped * counted)
        return current if (damped > 1) != (wanted > current) else wanted
