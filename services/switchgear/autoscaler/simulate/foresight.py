"""What each minute of a trace needs, known in advance: the plan of an oracle.

For each minute the smallest fixed fleet with which at most a given fraction of the requests of this minute breaks the promise, when the two
minutes before were served by the same fleet. Of plans for several fractions, each also with a replica or two more, the cheapest is taken
that reaches the objective over the whole trace under the conditions at hand. It is a good plan, not the best one: a minute that
helps the next costs it nothing extra, and a backlog that could be worked off later is not planned for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from switchgear.autoscaler.baselines.oracle import MINUTE_S, Oracle
from switchgear.autoscaler.baselines.static import Static
from switchgear.autoscaler.simulate.conditions import Conditions, keeps
from switchgear.autoscaler.simulate.replica import Request
from switchgear.autoscaler.simulate.trace import Trace
from switchgear.autoscaler.simulate.world import run

#: Fractions of a minute's requests that may break the promise, strictest first.
BROKEN = (0.0, 0.01, 0.02, 0.05, 0.1)
WARM_UP_MINUTES = 2
MORE_MAX = 2


def oracle(trace: Trace, conditions: Conditions) -> Oracle | None:
    """The cheapest of the plans that reaches the objective; None: none does."""
    # All but one start in forty are in by then, where they vary.
    ahead_s = conditions.cold_start_s * math.exp(2 * conditions.cold_jitter)
    best, least_s = None, math.inf
    for needed in _needs(trace, conditions):
        for more in range(MORE_MAX + 1):
            plan = tuple(count + more if count else 0 for count in needed)
            requests = trace.requests()
            outcome = run(requests, Oracle(plan, ahead_s), conditions)
            kept = sum(keeps(request, conditions.slo, conditions.model) for request in requests)
            if kept >= conditions.slo.objective * len(requests):
                if outcome.replica_s < least_s:
                    best, least_s = Oracle(plan, ahead_s), outcome.replica_s
                break
    return best


def _needs(trace: Trace, conditions: Conditions) -> list[tuple[int, ...]]:
    """Replicas for each minute, for each of `BROKEN`."""
    calm = replace(conditions, throttle=None, blindness=None, min_replicas=0)
    edges = np.searchsorted(trace.arrival_s, np.arange(0, trace.arrival_s[-1] + 2 * MINUTE_S, MINUTE_S)).tolist()
    found: list[list[int]] = [[] for _ in BROKEN]
    guess = 1
    for minute, (begin, end) in enumerate(pairwise(edges)):
        counts = [0] * len(BROKEN)
        if begin < end:
            first = edges[max(0, minute - WARM_UP_MINUTES)]
            broken = _Broken(trace, first, begin, end, calm)
            guess = broken.least(BROKEN[0], guess)
            counts = [guess]
            for fraction in BROKEN[1:]:
                counts.append(broken.least(fraction, counts[-1]))
        for column, count in zip(found, counts, strict=True):
            column.append(count)
    return [tuple(column) for column in found]


class _Broken:
    """How many requests of a minute break the promise, by the size of the fleet."""

    def __init__(self, trace: Trace, first: int, begin: int, end: int, conditions: Conditions) -> None:
        self._rows = list(
            zip(
                (trace.arrival_s[first:end] - trace.arrival_s[first]).tolist(),
                trace.input_tokens[first:end].tolist(),
                trace.output_tokens[first:end].tolist(),
                strict=True,
            )
        )
        self._warm_up, self._count = begin - first, end - begin
        self._conditions = conditions
        self._known: dict[int, int] = {}

    def least(self, fraction: float, guess: int) -> int:
        """The smallest fleet, found from `guess`; the largest allowed when none is enough."""
        most = self._conditions.max_replicas
        while guess < most and self._of(guess) > fraction * self._count:
            guess = min(most, guess + max(1, guess // 4))
        while guess > 1 and self._of(guess - 1) <= fraction * self._count:
            guess -= 1
        return guess

    def _of(self, replicas: int) -> int:
        if replicas not in self._known:
            requests = [Request(number, *row) for number, row in enumerate(self._rows)]
            run(requests, Static(replicas), replace(self._conditions, initial=replicas))
            self._known[replicas] = self._unkept(requests[self._warm_up :])
        return self._known[replicas]

    def _unkept(self, requests: Sequence[Request]) -> int:
        given = self._conditions
        return sum(not keeps(request, given.slo, given.model) for request in requests)
