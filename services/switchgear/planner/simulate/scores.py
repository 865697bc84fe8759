"""How good a replay was, and how good the run times that were told in it."""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from switchgear.planner.fleet import Ints, Reals
from switchgear.planner.model import Ended
from switchgear.planner.simulate.queue import QueueOutcome

#: Jobs of so many GPUs are told apart: a node, in the usual case.
LARGE_GPUS = 8


@dataclass(frozen=True, slots=True)
class QueueScore:
    """Hours, over all jobs; of a trace without large jobs their waits are None."""

    jobs: int
    jct_hours_mean: float
    wait_hours_mean: float
    wait_hours_p50: float
    wait_hours_p99: float
    wait_hours_max: float
    large_jobs: int
    large_wait_hours_mean: float | None
    large_wait_hours_p99: float | None
    preemptions: int

    @classmethod
    def of(cls, outcome: QueueOutcome) -> QueueScore:
        wait_h = outcome.wait_s / 3600
        large_h = wait_h[outcome.trace.gpus >= LARGE_GPUS]
        middle, high = np.quantile(wait_h, (0.5, 0.99)).tolist()
        return cls(
            len(wait_h),
            float(outcome.turnaround_s.mean()) / 3600,
            float(wait_h.mean()),
            middle,
            high,
            float(wait_h.max()),
            len(large_h),
            float(large_h.mean()) if len(large_h) else None,
            float(np.quantile(large_h, 0.99)) if len(large_h) else None,
            outcome.preemptions,
        )


@dataclass(frozen=True, slots=True)
class RunTimeScore:
    """coverage: part of the jobs whose run time was between the lowest and the highest quantile; below, above: the others.

    pinball_seconds: mean loss over jobs and levels; the lower the better, and least for the true quantiles (Koenker and Bassett 1978).
    """

    coverage: float
    below: float
    above: float
    pinball_seconds: float

    @classmethod
    def of(cls, run_s: Reals, quantiles_s: Reals, levels: tuple[float, ...]) -> RunTimeScore:
        """Shapes (jobs,), (jobs, levels); levels ascend."""
        over = run_s[:, None] - quantiles_s
        chance = np.array(levels)
        below, above = float((over[:, 0] < 0).mean()), float((over[:, -1] > 0).mean())
        loss = np.maximum(chance * over, (chance - 1) * over)
        return cls(1 - below - above, below, above, float(loss.mean()))


def quantiles_by_size(
    outcome: QueueOutcome, history: Iterable[Ended], levels: tuple[float, ...], first_s: float = 3600.0
) -> Reals:
    """What all jobs of as many GPUs that had ended by its submission say of each: the plain way. Shape (jobs, levels).

    first_s: where none had.
    """
    trace = outcome.trace
    known: dict[int, list[float]] = {}
    for one in history:
        known.setdefault(int(one.gpus), []).append(one.seconds)
    for seconds in known.values():
        seconds.sort()
    ends: list[tuple[float, int]] = []
    found = np.full((len(trace), len(levels)), first_s)
    for job in range(len(trace)):
        while ends and ends[0][0] <= trace.submit_s[job]:
            _, other = heapq.heappop(ends)
            insort(known.setdefault(int(trace.gpus[other]), []), float(trace.run_s[other]))
        heapq.heappush(ends, (float(outcome.end_s[job]), job))
        if like := known.get(int(trace.gpus[job])):
            at: Ints = (np.array(levels) * (len(like) - 1)).round().astype(np.int64)
            found[job] = [like[one] for one in at.tolist()]
    return found
