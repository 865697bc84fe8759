"""The workload variant autoscaler of llm-d, version 1: saturation of cache and queue.

Source: llm-d-workload-variant-autoscaler @b08b1c7 `docs/saturation-analyzer.md`. One variant; what acts on its metric is taken to act at
once. What a gateway holds is shared out evenly, as if it waited in the replicas.
"""

from __future__ import annotations

from collections import deque

from switchgear.autoscaler.baselines.load import starting
from switchgear.autoscaler.observation import Decision, Observation, Phase

SAMPLE_S = 10.0
OPTIMIZE_S = 60.0
#: Samples of each replica over which its highest value counts: one minute.
SAMPLES = 6
KV_SATURATED = 0.80
KV_SPARE_MIN = 0.1
#: Of the queue length that counts as saturated: 3 of 5 as there.
QUEUE_SPARE_MIN = 0.6


class Wva:
    """target: waiting requests at which a replica counts as saturated; the spare queue that it keeps is 0.6 of that."""

    name = "wva"
    interval_s = SAMPLE_S

    def __init__(self, target: float) -> None:
        self._queue_saturated = target
        self._samples: dict[str, deque[tuple[float, float]]] = {}
        self._optimized_s = -OPTIMIZE_S

    def decide(self, now_s: float, seen: Observation) -> Decision:
        current = seen.desired
        loads = self._loads(seen)
        if now_s - self._optimized_s < OPTIMIZE_S:
            return Decision(current, "between", "between two optimizations")
        self._optimized_s = now_s
        if starting(seen) or len(loads) != current:
            return Decision(current, "pending", "replicas are pending: no step")
        if not loads:
            return Decision(1 if seen.queue and seen.queue.requests else current, "from zero", "no replica")
        open_ones = [(kv, queue) for kv, queue in loads if kv < KV_SATURATED and queue < self._queue_saturated]
        if not open_ones:
            return Decision(current + 1, "saturated", "every replica is saturated")
        kv, queue = (sum(values) / len(open_ones) for values in zip(*open_ones, strict=True))
        evidence = {"kv": kv, "queue": queue}
        if not self._leaves_spare(kv, queue):
            return Decision(current + 1, "spare too low", "little spare cache or queue", evidence)
        if len(open_ones) > 1:
            more = len(open_ones) / (len(open_ones) - 1)
            if self._leaves_spare(kv * more, queue * more):
                return Decision(current - 1, "spare", "one fewer would still have spare", evidence)
        return Decision(current, "keep", "enough, and not too much", evidence)

    def _leaves_spare(self, kv: float, queue: float) -> bool:
        return (
            KV_SATURATED - kv >= KV_SPARE_MIN
            and self._queue_saturated - queue >= QUEUE_SPARE_MIN * self._queue_saturated
        )

    def _loads(self, seen: Observation) -> list[tuple[float, float]]:
        """Of READY replicas that tell it: the highest use of the cache and the longest queue of the last minute."""
        rows = [row for row in seen.replicas if row.phase is Phase.READY and row.waiting is not None]
        held = (seen.queue.requests if seen.queue else 0) / max(1, len(rows))
        samples, self._samples = self._samples, {}
        for row in rows:
            kept = self._samples[row.name] = samples.get(row.name, deque(maxlen=SAMPLES))
            kept.append((row.kv_use or 0.0, (row.waiting or 0) + held))
        return [(max(kv for kv, _ in kept), max(queue for _, queue in kept)) for kept in self._samples.values()]
