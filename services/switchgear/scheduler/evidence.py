"""What attempts that are over tell of jobs and nodes: how fast a job is on each GPU model, and how often a node holds jobs up. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import geometric_mean, median, quantiles

from switchgear.scheduler.model import Alike, AttemptRecord

#: An attempt tells a speed from so many steps and seconds on: the first steps warm up.
STEPS_MIN = 20
SECONDS_MIN = 30.0
#: A model's speed is known from so many jobs on, of which the newest count.
JOBS_MEASURED_MIN = 3
JOBS_MEASURED_MAX = 20
#: Upper by lower quartile. Jobs of one name that differ by more do different work, and a comparison would be one of the work.
SPREAD_MAX = 1.25
#: A node's share is known from so many jobs on; the newest count, so that a node that is well again gets rid of its past.
JOBS_SEEN_MIN = 5
JOBS_SEEN_MAX = 20


def steps_per_s(steps: int, seconds: float) -> float | None:
    """None when they are too few to tell."""
    return steps / seconds if steps >= STEPS_MIN and seconds >= SECONDS_MIN else None


def speeds(attempts: Sequence[AttemptRecord]) -> dict[Alike, dict[str, float]]:
    """By GPU model, of jobs that ran on two models or more; their geometric mean is 1, so that a model nobody knows is neither favoured nor shunned.

    attempts: in the order of their ends. One speed counts for each job and model, the newest.
    """
    newest = defaultdict[Alike, dict[str, dict[tuple[str, int], float]]](lambda: defaultdict(dict))
    for attempt in reversed(attempts):
        if attempt.steps_per_s and attempt.gpu_model:
            of_model = newest[attempt.alike][attempt.gpu_model]
            if len(of_model) < JOBS_MEASURED_MAX:
                of_model.setdefault((attempt.job, attempt.create_revision), attempt.steps_per_s)
    found = {}
    for alike, models in newest.items():
        known = {model: rate for model, jobs in sorted(models.items()) if (rate := _agreed(list(jobs.values())))}
        if len(known) > 1:
            mean = geometric_mean(known.values())
            found[alike] = {model: round(rate / mean, 2) for model, rate in known.items()}
    return found


def _agreed(rates: Sequence[float]) -> float | None:
    """What they have in common; None when they are too few, or too far apart."""
    if len(rates) < JOBS_MEASURED_MIN:
        return None
    low, _, high = quantiles(rates, n=4, method="inclusive")
    return median(rates) if high <= low * SPREAD_MAX else None


def straggling(attempts: Sequence[AttemptRecord]) -> dict[str, float]:
    """Share of its newest jobs that each node held up, 0 to 1; nodes of which too few jobs are known are absent.

    attempts: in the order of their ends.
    """
    jobs_on = defaultdict[str, dict[tuple[str, int], bool]](dict)
    for attempt in reversed(attempts):
        job = attempt.job, attempt.create_revision
        for node in _touched(attempt):
            jobs = jobs_on[node]
            if job in jobs or len(jobs) < JOBS_SEEN_MAX:
                jobs[job] = jobs.get(job, False) or node == attempt.held_up_by
    return {node: _share(jobs) for node, jobs in jobs_on.items() if len(jobs) >= JOBS_SEEN_MIN}


def _touched(attempt: AttemptRecord) -> Iterable[str]:
    return {*attempt.nodes, attempt.held_up_by} - {""}


def _share(jobs: Mapping[tuple[str, int], bool]) -> float:
    return sum(jobs.values()) / len(jobs)
