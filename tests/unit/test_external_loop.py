"""From pages to a number and back: engines with a full batch and nothing in front of them, under our policy."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import deque

from switchgear.autoscaler.adapters import scrape
from switchgear.autoscaler.external import settings
from switchgear.autoscaler.external.deciding import Deciding
from switchgear.autoscaler.external.presence import Look

BOUNDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
BATCH, STEP_S, PROMPT, GENERATED = 16, 0.04, 200, 100
LOOK_S, START_S = 5.0, 40.0


class Engine:
    """Iterations of 40 ms over at most 16 sequences, whatever their number: what it can do is not in the time of an iteration."""

    def __init__(self) -> None:
        self.waiting, self.running = deque[float](), list[list[float]]()  # arrivals; tokens left and arrival of each
        self.finished = self.generated = self.iterations = 0
        self.latencies = {"time_to_first_token_seconds": [0] * 13, "e2e_request_latency_seconds": [0] * 13}
        self.sums = dict.fromkeys(self.latencies, 0.0)

    def run(self, now_s: float) -> None:
        """One iteration, which ends at `now_s`."""
        while self.waiting and len(self.running) < BATCH and self.waiting[0] < now_s:
            self.running.append([GENERATED, self.waiting.popleft()])
        self.iterations += bool(self.running)
        self.generated += len(self.running)
        for one in self.running:
            if one[0] == GENERATED:
                self._took("time_to_first_token_seconds", now_s - one[1])
            one[0] -= 1
            if not one[0]:
                self.finished += 1
                self._took("e2e_request_latency_seconds", now_s - one[1])
        self.running = [one for one in self.running if one[0]]

    def _took(self, name: str, seconds: float) -> None:
        self.latencies[name][bisect_left(BOUNDS, seconds)] += 1
        self.sums[name] += seconds

    def page(self) -> str:
        began = self.finished + len(self.running)
        lines = [
            f"vllm:num_requests_waiting {len(self.waiting)}",
            f"vllm:num_requests_running {len(self.running)}",
            f"vllm:kv_cache_usage_perc {len(self.running) / 100}",
            f'vllm:request_success_total{{finished_reason="stop"}} {self.finished}',
            f"vllm:prompt_tokens_total {began * PROMPT}",
            f"vllm:generation_tokens_total {self.generated}",
            f"vllm:iteration_tokens_total_count {self.iterations}",
        ]
        for name, counts in self.latencies.items():
            total = 0
            for bound, count in zip((*BOUNDS, "+Inf"), counts, strict=True):
                total += count
                lines.append(f'vllm:{name}_bucket{{le="{bound}"}} {total}')
            lines += [f"vllm:{name}_sum {self.sums[name]}", f"vllm:{name}_count {total}"]
        return "\n".join(lines) + "\n"


class Cluster:
    """Two engines at first; what is asked for comes 40 s later, what is to go goes at once, the least busy first."""

    def __init__(self) -> None:
        (service,) = settings.of_flags({"name": "chat", "dns": "http://chat:8000/metrics", "max_replicas": 30}).service
        self._deciding = Deciding(service, None)
        self.engines = {f"pod-{number}": Engine() for number in range(2)}
        self._starts = deque[float]()
        self._now_s, self._made, self._dice = 0.0, 2, random.Random(1)
        self.desired = 2

    @property
    def waiting(self) -> int:
        return sum(len(engine.waiting) for engine in self.engines.values())

    def run(self, seconds: float, requests_per_s: float) -> None:
        for _ in range(round(seconds / LOOK_S)):
            self._serve(requests_per_s)
            found = {name: scrape.read(engine.page()) for name, engine in self.engines.items()}
            self.desired = self._deciding.step(self._now_s, 1.7e9 + self._now_s, Look(found)).desired
            self._follow()

    def _serve(self, requests_per_s: float) -> None:
        while self._starts and self._starts[0] <= self._now_s:
            self._starts.popleft()
            self.engines[f"pod-{self._made}"] = Engine()
            self._made += 1
        arrivals = sorted(
            self._dice.uniform(self._now_s, self._now_s + LOOK_S) for _ in range(round(requests_per_s * LOOK_S))
        )
        for at_s in arrivals:
            min(self.engines.values(), key=lambda one: len(one.running) + len(one.waiting)).waiting.append(at_s)
        for number in range(1, round(LOOK_S / STEP_S) + 1):
            for engine in self.engines.values():
                engine.run(self._now_s + number * STEP_S)
        self._now_s += LOOK_S

    def _follow(self) -> None:
        while self.desired > len(self.engines) + len(self._starts):
            self._starts.append(self._now_s + START_S)
        while self.desired < len(self.engines) + len(self._starts):
            if self._starts:
                self._starts.pop()
            else:
                self.engines.pop(min(self.engines, key=lambda name: len(self.engines[name].running)))


def test_engines_whose_batch_is_full_get_help_although_their_iterations_are_quick() -> None:
    cluster = Cluster()
    cluster.run(200, 3)
    assert 1 <= cluster.desired <= 4
    cluster.run(300, 16)  # four replicas can do it
    assert cluster.waiting == 0
    assert cluster.desired >= 4
    cluster.run(100, 16)
    assert cluster.waiting == 0
