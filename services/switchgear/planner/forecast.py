"""When those who wait will start: the queue served in its order, on sampled run times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from switchgear.planner.backfill import LEARNED_MIN
from switchgear.planner.fleet import Fleet, Ints, Mask, Reals
from switchgear.planner.model import Cause, Decisions, Job, Running, Snapshot, Wait
from switchgear.planner.runtimes import RunTimes, limits_s
from switchgear.planner.survival import quantile

#: Worlds that are served at once; with more of them the 10 % and 90 % quantiles get little better.
SAMPLES = 16
#: Those at the front for which it is said: who comes later depends on jobs that are not there yet.
FORECAST_MAX = 1000
#: Nodes that are looked at, those that are expected to be free first: a start is hardly ever on another.
NODES_MAX = 128
#: Kinds of nodes that jobs may use, told apart.
KINDS_MAX = 8
#: Who waits for these is not helped by the end of others alone, or it is known when.
_NEVER = frozenset(
    {Cause.HELD, Cause.NOT_YET, Cause.DEPENDENCY, Cause.IMPOSSIBLE, Cause.NODES_CLOSED, Cause.QUOTA, Cause.PREEMPTING}
)


@dataclass(frozen=True, slots=True)
class Widening:
    """What sampled waits miss, since jobs that come later and are shorter or larger go first: an interval of log(wait + scale_s) is widened by it.

    For jobs smaller than a node, and for others: in the middle between what four of five waits needed on Philly in two weeks from 2017-10-09 on 64 nodes of
    8 GPUs (0.88 and 0.41) and in two from 2017-10-23 on 60 (0.54 and 0.45; conformalised quantiles: Romano et al. 2019). Both are constants: a cluster
    with few waits is told wider intervals than it has.
    """

    scale_s: float = 60.0
    small: float = 0.7
    large: float = 0.43


WIDENING = Widening()


def with_forecasts(
    decisions: Decisions, snapshot: Snapshot, jobs: Sequence[Job], run_times: RunTimes, now_s: float
) -> Decisions:
    """The decisions, where those who wait for GPUs are told when they can expect to start. jobs: in the order of their turns.

    Says nothing without a history, of jobs that no time helps, nor of those on instances or without GPUs; topology, CPU and memory are not looked at.
    """
    waits = {wait.job: wait for wait in decisions.waits}
    asked = [job for job in jobs if job.name in waits and waits[job.name].cause not in _NEVER and _counted(job)]
    asked = asked[:FORECAST_MAX]
    if not asked or run_times.ended < LEARNED_MIN:
        return decisions
    begun = tuple(Running(start.job, start.seats, now_s) for start in decisions.starts)
    sampled = sampled_starts(snapshot, (*snapshot.running, *begun), asked, run_times, now_s)
    width = max((node.gpus for node in snapshot.nodes), default=0)
    for job, starts_s in zip(asked, sampled.T, strict=True):
        if np.isfinite(starts_s).all():
            waits[job.name] = _told(waits[job.name], starts_s - now_s, job.gpus >= width, now_s)
    return replace(decisions, waits=tuple(waits[wait.job] for wait in decisions.waits))


def interval_s(waits_s: Reals, *, large: bool, widening: Widening = WIDENING) -> tuple[float, float, float]:
    """Median, and bounds of four of five waits, seconds. waits_s: sampled, shape (samples,)."""
    low, middle, high = np.log(np.quantile(waits_s, (0.1, 0.5, 0.9)) + widening.scale_s)
    by = widening.large if large else widening.small
    low_s, middle_s, high_s = np.maximum(np.exp((low - by, middle, high + by)) - widening.scale_s, 0.0).tolist()
    return middle_s, low_s, high_s


def sampled_starts(
    snapshot: Snapshot, running: Sequence[Running], jobs: Sequence[Job], run_times: RunTimes, now_s: float
) -> Reals:
    """Starts in each sampled world, inf where a job never has room; shape (SAMPLES, jobs). The same for the same arguments."""
    fleet = Fleet(snapshot.nodes, snapshot.levels)
    random = np.random.default_rng(0)
    release_s = np.full((SAMPLES, *fleet.gpu_free.shape), np.inf)
    release_s[:, fleet.gpu_free > 0] = now_s
    seats = [
        (number, fleet.at[seat.node], gpu)
        for number, one in enumerate(running)
        for seat in one.seats
        if seat.node in fleet.at
        for gpu in seat.gpus
    ]
    if seats:
        number, row, gpu = np.array(seats, np.int64).T
        release_s[:, row, gpu] = _sampled_ends(running, run_times, random, now_s)[:, number]
    release_s[:, ~fleet.open] = np.inf
    kinds = list(dict.fromkeys(_kind(job) for job in jobs))[:KINDS_MAX]
    masks = {kind: fleet.meant(job.task) for job in jobs if (kind := _kind(job)) in kinds}
    rows = _soonest(release_s, masks.values())
    curves = run_times.curves(jobs)
    # Jobs of one campaign err together: in half of the worlds they share their draw.
    campaign = np.unique(curves @ random.random(curves.shape[1]), return_inverse=True)[1]
    run_s = np.empty((SAMPLES, len(jobs)))
    for sample in range(SAMPLES):
        draw = random.random(len(jobs))
        if sample % 2:
            draw = draw[campaign]
        run_s[sample] = quantile(curves, draw)
    run_s = np.minimum(run_s, limits_s(jobs))
    allowed = [masks[_kind(job)][rows] if _kind(job) in masks else None for job in jobs]
    wants: Ints = np.array([_wants(job, release_s.shape[2]) for job in jobs], np.int64)
    return list_starts(wants, run_s, release_s[:, rows], allowed)


def list_starts(wants: Ints, run_s: Reals, release_s: Reals, allowed: Sequence[Mask | None]) -> Reals:
    """Each job in turn takes the nodes that can have it first; gaps before its start are not filled. Shape (samples, jobs), seconds.

    wants: nodes, and GPUs on each, shape (jobs, 2). run_s: shape (samples, jobs). release_s: when each GPU falls free, shape (samples, nodes, GPUs of
    a node). allowed: nodes of each job, None: all. O(jobs x samples x nodes).
    """
    slots = np.sort(release_s, axis=2)
    samples, nodes, per_node = slots.shape
    sample = np.arange(samples)
    found = np.full((samples, len(wants)), np.inf)
    for job, (count, each) in enumerate(wants.tolist()):
        if count > nodes or each > per_node:
            continue
        ready = slots[:, :, each - 1]
        if (mask := allowed[job]) is not None and not mask.all():
            ready = np.where(mask, ready, np.inf)
        if count == 1:
            node = ready.argmin(axis=1)
            start_s = ready[sample, node]
            has = slots[sample, node]
            has[:, :each] = (start_s + run_s[:, job])[:, None]
            has.sort(axis=1)
            slots[sample, node] = has
        else:
            on = np.argpartition(ready, count - 1, axis=1)[:, :count]
            start_s = np.take_along_axis(ready, on, 1).max(axis=1)
            has = slots[sample[:, None], on]
            has[:, :, :each] = (start_s + run_s[:, job])[:, None, None]
            has.sort(axis=2)
            slots[sample[:, None], on] = has
        found[:, job] = start_s
    return found


def _sampled_ends(running: Sequence[Running], run_times: RunTimes, random: np.random.Generator, now_s: float) -> Reals:
    """Shape (SAMPLES, running)."""
    start_s = np.array([one.start_s for one in running], np.float64)
    jobs = [one.job for one in running]
    curves, limit_s = run_times.curves(jobs), limits_s(jobs)
    ran_s = [
        np.minimum(quantile(curves, random.random(len(jobs)), np.maximum(now_s - start_s, 0.0)), limit_s)
        for _ in range(SAMPLES)
    ]
    found: Reals = np.maximum(start_s + np.stack(ran_s), now_s)
    return found


def _told(wait: Wait, waits_s: Reals, large: bool, now_s: float) -> Wait:
    middle_s, low_s, high_s = interval_s(waits_s, large=large)
    return replace(wait, start_s=now_s + middle_s, start_low_s=now_s + low_s, start_high_s=now_s + high_s)


def _counted(job: Job) -> bool:
    return bool(job.task.gpus or job.task.gpu_milli)


def _kind(job: Job) -> tuple[object, ...]:
    return job.task.gpu_models, job.task.selectors, job.task.tolerates


def _wants(job: Job, per_node: int) -> tuple[int, int]:
    """Nodes, and GPUs on each; a share counts as a whole GPU."""
    gpus, tasks = max(job.task.gpus, 1), max(job.tasks_least, 1)
    beside = 1 if job.one_a_node else max(min(per_node // gpus, tasks), 1)
    return -(-tasks // beside), gpus * beside


def _soonest(release_s: Reals, masks: Iterable[Mask]) -> Ints:
    """Rows of the nodes that are wholly free first, by the mean of the worlds; as many of each kind."""
    free_s = np.sort(release_s.mean(axis=0), axis=1)
    order = np.lexsort(free_s.T)
    chosen = np.zeros(release_s.shape[1], bool)
    for mask in masks:
        chosen[order[mask[order]][:NODES_MAX]] = True
    found: Ints = np.flatnonzero(chosen)
    return found
