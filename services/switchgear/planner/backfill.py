"""When jobs are expected to end: who may run in front of those that seats are kept for, and until when those seats are taken."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from switchgear.planner.fleet import Reals
from switchgear.planner.model import Job, Running
from switchgear.planner.runtimes import RunTimes, limits_s

#: Who runs in front of others ends in time in so many of all cases: their seats are kept from a time that is itself a mean.
IN_TIME = 0.8
#: Ended jobs without which time limits are all that is known: fewer say nothing of those that take long.
LEARNED_MIN = 50
#: Nobody is expected to end at once: what is overdue may go on.
LEAST_LEFT_S = 60.0


class Backfill:
    """What is expected of the run times of one snapshot; worked out when it is asked for first, for all at once."""

    def __init__(self, run_times: RunTimes, pending: Sequence[Job], now_s: float) -> None:
        self._run_times, self._pending, self._now_s = run_times, pending, now_s
        self._bounds_s: dict[str, float] | None = None

    def end_s(self, job: Job) -> float:
        """Started now, it is over by then in most cases; inf where nobody knows."""
        if self._bounds_s is None:
            bounds_s = limits_s(self._pending)
            if self._run_times.ended >= LEARNED_MIN:
                bounds_s = self._run_times.bounds_s(self._pending, IN_TIME)
            self._bounds_s = {one.name: at for one, at in zip(self._pending, bounds_s.tolist(), strict=True)}
        return self._now_s + self._bounds_s[job.name]

    def ends_s(self, running: Sequence[Running]) -> Reals:
        """When each is expected to end: its mean remaining run time from now, at most its time limit; inf where nobody knows. Shape (jobs,)."""
        jobs = [one.job for one in running]
        start_s = np.array([one.start_s for one in running], np.float64)
        elapsed_s = np.maximum(self._now_s - start_s, 0.0)
        left_s = limits_s(jobs) - elapsed_s
        if self._run_times.ended >= LEARNED_MIN:
            left_s = self._run_times.left_s(jobs, elapsed_s)
        found: Reals = self._now_s + np.maximum(left_s, LEAST_LEFT_S)
        return found
