"""KEDA with a query that sums waiting and running requests: a HPA on an external metric, and KEDA itself between 0 and 1.

Source: the ScaledObject specification of keda.sh (`pollingInterval`, `cooldownPeriod`); kubernetes `replica_calculator.go`
(`GetExternalPerPodMetricReplicas`). A result that is empty reads as 0 (`ignoreNullValues` is true by default).
"""

from __future__ import annotations

import math

from switchgear.autoscaler.baselines.hpa import SYNC_S, TOLERANCE, Behavior
from switchgear.autoscaler.observation import Decision, Observation

POLL_S = 30.0
COOLDOWN_S = 300.0


class Keda:
    """target: AverageValue, requests for each replica."""

    name = "keda"
    interval_s = SYNC_S

    def __init__(self, target: float) -> None:
        self._target = target
        self._behavior = Behavior()
        self._active_s: float | None = None
        self._polled_s = -math.inf

    def decide(self, now_s: float, seen: Observation) -> Decision:
        current = seen.desired
        total = (seen.queue.requests if seen.queue else 0) + sum(
            (row.running or 0) + (row.waiting or 0) for row in seen.replicas
        )
        if now_s - self._polled_s >= POLL_S:
            self._polled_s = now_s
            if total or self._active_s is None:
                self._active_s = now_s
            if current == 0:
                return Decision(1 if total else 0, "activation", f"{total} requests")
            if not total and not seen.min_replicas and now_s - self._active_s >= COOLDOWN_S:
                return Decision(0, "cooldown", "no request for the cooldown period")
        if current == 0:
            return Decision(0, "inactive", "no request at the last poll")
        wanted = math.ceil(total / self._target)
        if abs(total / (self._target * current) - 1) <= TOLERANCE:
            wanted = current
        return Decision(self._behavior.apply(now_s, current, wanted), "external metric", f"{total} requests")
