"""Knative pod autoscaler on concurrency.

Source: knative/serving @98e5ef9 `pkg/autoscaler/scaling/autoscaler.go`, `config/core/configmaps/autoscaler.yaml`. The activator's queue is
counted, as there. Concurrency is sampled at each tick; the original averages it over each second.
"""

from __future__ import annotations

import math

from switchgear.autoscaler.baselines.load import Window, ongoing, ready
from switchgear.autoscaler.observation import Decision, Observation

TICK_S = 2.0
STABLE_S, PANIC_S = 60.0, 6.0
PANIC_THRESHOLD = 2.0
UP_RATE, DOWN_RATE = 1000.0, 2.0
#: From the decision for zero to zero.
GRACE_S = 30.0


class Kpa:
    """target: requests for each replica, on average."""

    name = "kpa"
    interval_s = TICK_S

    def __init__(self, target: float) -> None:
        self._target = target
        self._stable, self._panic = Window(STABLE_S), Window(PANIC_S)
        self._panic_s: float | None = None
        self._panic_replicas = 0
        self._zero_since_s: float | None = None
        self._began = False

    def decide(self, now_s: float, seen: Observation) -> Decision:
        total, count = ongoing(seen), ready(seen)
        if total is None:
            return Decision(seen.desired, "no data", "no replica tells its concurrency: keep")
        self._stable.add(now_s, total)
        self._panic.add(now_s, total)
        if not self._began:
            self._begin(now_s, count)
        some = max(1, count)
        fewest, most = some // DOWN_RATE, math.ceil(some * UP_RATE)
        stable = math.ceil(self._stable.mean / self._target)
        panic = math.ceil(self._panic.mean / self._target)
        if panic / some >= PANIC_THRESHOLD:
            self._panic_s = now_s
        elif self._panic_s is not None and now_s - self._panic_s > STABLE_S:
            self._panic_s, self._panic_replicas = None, 0
        wanted = int(min(max(stable, fewest), most))
        evidence = {"stable_requests": self._stable.mean, "panic_requests": self._panic.mean}
        if self._panic_s is not None:
            self._panic_replicas = max(self._panic_replicas, wanted, int(min(max(panic, fewest), most)))
            return Decision(self._panic_replicas, "panic", "panic: only up", evidence)
        return Decision(self._to_zero(now_s, wanted), "stable", f"{self._stable.mean:.1f} requests", evidence)

    def _begin(self, now_s: float, count: int) -> None:
        """A fleet that it finds is not taken down before it has seen a stable window."""
        self._began = True
        if count > 1:
            self._panic_s, self._panic_replicas = now_s, count

    def _to_zero(self, now_s: float, wanted: int) -> int:
        if wanted:
            self._zero_since_s = None
            return wanted
        if self._zero_since_s is None:
            self._zero_since_s = now_s
        return 0 if now_s - self._zero_since_s >= GRACE_S else 1
