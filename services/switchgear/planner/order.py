"""Whose turn it is: by priority, then who starves, then who has had little of what it deserves, then who is expected to be done soon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from switchgear.planner.fleet import Ints, Reals
from switchgear.planner.model import Job, Snapshot
from switchgear.planner.runtimes import RunTimes


@dataclass(frozen=True, slots=True)
class Turns:
    """What counts between jobs of one priority and like shares.

    long_s: longer run times are not told apart. gpus_power: of its GPUs, times the expected run time; below 0 large gangs go early, since what small
    jobs leave free again and again they never get together. age_s: who has waited so long counts as half as long.
    """

    long_s: float = 2e5
    gpus_power: float = -3.0
    age_s: float = 8 * 3600.0


TURNS = Turns()


def order(
    snapshot: Snapshot,
    shares: Mapping[tuple[str, str], float],
    run_times: RunTimes,
    now_s: float,
    *,
    jobs: Sequence[Job] | None = None,
    turns: Turns = TURNS,
) -> tuple[Job, ...]:
    """The jobs, those that come first at the front. jobs: those of the snapshot that wait, when None.

    Harvesting jobs come last. Priority goes first. Those who have waited for `Policy.starving_s` go before younger ones, by age. Shares count in
    steps of a factor of 2: finer ones would undo what the order by run time gains, and move with every job that ends.
    """
    jobs = snapshot.pending if jobs is None else jobs
    if not jobs:
        return ()
    submit_s = np.array([job.submit_s for job in jobs], np.float64)
    wait_s = np.maximum(now_s - submit_s, 0.0)
    starves = wait_s >= snapshot.policy.starving_s
    had = share_steps(np.array([shares.get((job.queue, job.user), 0.0) for job in jobs], np.float64))
    soon = expected(
        run_times.means_s(jobs, turns.long_s),
        np.array([job.gpus for job in jobs], np.float64),
        wait_s,
        turns,
    )
    names = np.empty(len(jobs), np.int64)
    names[sorted(range(len(jobs)), key=lambda at: jobs[at].name)] = np.arange(len(jobs))
    at = np.lexsort(
        (
            names,
            submit_s,
            np.where(starves, 0.0, soon),
            np.where(starves, 0, had),
            ~starves,
            np.array([-job.priority for job in jobs], np.int64),
            np.array([job.harvest for job in jobs], bool),
        )
    )
    return tuple(jobs[one] for one in at.tolist())


def share_steps(had: Reals) -> Ints:
    """0 up to a quarter of what is deserved, and one more for each factor of 2."""
    found: Ints = np.ceil(np.log2(np.maximum(had, 0.25) / 0.25) - 1e-9).astype(np.int64)
    return found


def expected(mean_s: Reals, gpus: Reals, wait_s: Reals, turns: Turns) -> Reals:
    """What is least of who comes first: its expected run time, by size and age. Shapes (jobs,)."""
    found: Reals = mean_s * np.maximum(gpus, 1.0) ** turns.gpus_power / (1.0 + wait_s / turns.age_s)
    return found
