"""The autoscaler of Ray Serve.

Source: ray `python/ray/serve/autoscaling_policy.py`, `config.py`. Metrics are pushed each 10 seconds, so it is asked as often; the
original runs each 0.1 s on the same figures. Requests queued at handles count, as there.
"""

from __future__ import annotations

import math

from switchgear.autoscaler.baselines.load import Window, ongoing, ready
from switchgear.autoscaler.observation import Decision, Observation

PUSH_S = 10.0
LOOK_BACK_S = 30.0
UPSCALE_DELAY_S, DOWNSCALE_DELAY_S = 30.0, 600.0


class RayServe:
    """target: `target_ongoing_requests`."""

    name = "ray-serve"
    interval_s = PUSH_S

    def __init__(self, target: float) -> None:
        self._target = target
        self._requests = Window(LOOK_BACK_S)
        self._direction = 0
        self._since_s = 0.0

    def decide(self, now_s: float, seen: Observation) -> Decision:
        current, total = seen.desired, ongoing(seen)
        if total is None:
            return Decision(current, "no metric", "no replica tells its requests: keep")
        self._requests.add(now_s, total)
        if not ready(seen):
            # It acts on what runs; from zero one replica comes at once.
            return Decision(max(current, 1 if total else 0), "from zero", f"{total} requests")
        wanted = math.ceil(self._requests.mean / self._target)
        if current > 1:
            # To zero it goes from one alone.
            wanted = max(1, wanted)
        direction = (wanted > current) - (wanted < current)
        if direction != self._direction:
            self._direction, self._since_s = direction, now_s
        delay_s = UPSCALE_DELAY_S if direction > 0 else DOWNSCALE_DELAY_S
        evidence = {"requests": self._requests.mean, "wanted": float(wanted)}
        if direction == 0 or now_s - self._since_s < delay_s:
            return Decision(current, "delay" if direction else "keep", f"{wanted} wanted", evidence)
        self._direction = 0
        return Decision(wanted, "up" if direction > 0 else "down", f"{wanted} wanted for {delay_s:g} s", evidence)
