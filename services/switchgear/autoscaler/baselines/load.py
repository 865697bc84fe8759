"""What request-counting autoscalers measure, and the windows that they measure it over."""

from __future__ import annotations

from collections import deque

from switchgear.autoscaler.observation import Observation, Phase


def ready(seen: Observation) -> int:
    return sum(row.phase is Phase.READY for row in seen.replicas)


def starting(seen: Observation) -> int:
    return sum(row.phase is Phase.STARTING for row in seen.replicas)


def ongoing(seen: Observation) -> int | None:
    """Requests in READY replicas, and those that a gateway holds: without one they would be in replicas too.

    None when the metrics of a replica are missing.
    """
    total = seen.queue.requests if seen.queue else 0
    for row in seen.replicas:
        if row.phase is Phase.READY:
            if row.running is None or row.waiting is None:
                return None
            total += row.running + row.waiting
    return total


class Window:
    """Samples of the last `length_s` seconds, the one exactly so old excluded. At most `length_s` by the interval of the samples."""

    def __init__(self, length_s: float) -> None:
        self._length_s = length_s
        self._samples: deque[tuple[float, float]] = deque()
        # Exact for counts of requests: long runs ask at each tick.
        self._total = 0.0

    def add(self, now_s: float, value: float) -> None:
        self._samples.append((now_s, value))
        self._total += value
        while self._samples[0][0] <= now_s - self._length_s:
            self._total -= self._samples.popleft()[1]

    @property
    def mean(self) -> float:
        return self._total / len(self._samples)

    @property
    def highest(self) -> float:
        return max(value for _, value in self._samples)
