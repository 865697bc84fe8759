"""The pod autoscaler APA of AIBrix, on requests for each replica.

Source: vllm-project/aibrix @e3e10f9 `pkg/controller/podautoscaler/algorithm/apa.go`, `context/context.go`. The ratio is of READY replicas, and
is applied to all of them, those that still load included (issue 2670 there).
"""

from __future__ import annotations

import math

from switchgear.autoscaler.baselines.load import Window, ongoing, ready
from switchgear.autoscaler.observation import Decision, Observation

RESYNC_S = 10.0
WINDOW_S = 180.0
TOLERANCE = 0.1
UP_RATE = DOWN_RATE = 2.0
COOLDOWN_S = 300.0


class Apa:
    """target: requests for each READY replica."""

    name = "apa"
    interval_s = RESYNC_S

    def __init__(self, target: float) -> None:
        self._target = target
        self._each = Window(WINDOW_S)
        self._recommended = Window(COOLDOWN_S)
        self._began = False

    def decide(self, now_s: float, seen: Observation) -> Decision:
        current, total, count = seen.desired, ongoing(seen), ready(seen)
        if total is None or count == 0:
            return Decision(current, "no metric", "no replica tells its metric: keep")
        self._each.add(now_s, total / count)
        ratio = self._each.mean / self._target
        wanted = current
        if ratio > 1 + TOLERANCE:
            wanted = min(math.ceil(current * ratio), math.ceil(current * UP_RATE))
        elif ratio < 1 - TOLERANCE:
            wanted = max(math.ceil(current * ratio), math.floor(current / DOWN_RATE))
        if not self._began:
            # A fleet that it finds is held as long as one that it has made.
            self._began = True
            self._recommended.add(now_s, current)
        self._recommended.add(now_s, wanted)
        if wanted < current:
            wanted = min(current, int(self._recommended.highest))
        return Decision(wanted, "ratio", f"{self._each.mean:.1f} requests for each READY replica", {"ratio": ratio})
