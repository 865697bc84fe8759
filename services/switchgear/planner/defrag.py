"""Defragmentation: running jobs that could be elsewhere, so that a gang has room that is free in pieces only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from switchgear.planner.backfill import LEARNED_MIN
from switchgear.planner.changes import Move as Change
from switchgear.planner.changes import apply
from switchgear.planner.future import Times, without
from switchgear.planner.gangs import find, seats_for
from switchgear.planner.holdings import Holdings
from switchgear.planner.mix import Mix
from switchgear.planner.model import WHOLE, Job, NoRoom, Running, Seat, Snapshot
from switchgear.planner.packing import Packer
from switchgear.planner.plan import plan
from switchgear.planner.runtimes import RunTimes, limits_s
from switchgear.planner.standing import Standing
from switchgear.planner.survival import quantile

#: Waiting jobs for which room is looked for, in the order in which they would start.
JOBS_MAX = 8
#: Choices of whom to move: one who fits nowhere else is passed over in the next.
_CHOICES_MAX = 8
#: Of a job without a time limit that has just started nobody can say more.
_LEFT_LEAST_S = 60.0


@dataclass(frozen=True, slots=True)
class Move:
    """Advice: a running job leaves at a verified checkpoint and goes on elsewhere, for a job that waits. seats: by rank.

    gain_gpu_s: GPU-seconds that are used instead of idle, as the job that waits starts now and not later; of several moves for one job each has
    the share that it has in the cost. cost_gpu_s: what the move costs: work that is done again, and the restart.
    """

    job: str
    seats: tuple[Seat, ...]
    for_job: str
    gain_gpu_s: float
    cost_gpu_s: float

    @property
    def change(self) -> Change:
        return Change(self.job, self.seats)


def defragment(snapshot: Snapshot, now_s: float) -> tuple[Move, ...]:
    """Moves that pay for themselves: for each job that they make room for, gain exceeds cost. Nothing is moved by this.

    For jobs that wait for room, in the order in which they would start, the first `JOBS_MAX`. Their quotas let them start, the nodes that they
    may use have what they need in pieces, and the plan with the moves made starts them; nobody is moved twice, and nobody who started within
    `Policy.guaranteed_run_s`. All moves for one job belong together. Without the moves the job is taken to start when enough of those who run have
    ended, each after the median of its learned run time; of too little history, by its time limit or after as long again as it ran. So
    gain is an estimate.
    """
    moves: list[Move] = []
    decisions = plan(snapshot, now_s, told=False)
    pending = {job.name: job for job in snapshot.pending}
    standing, run_times = Standing(snapshot, decisions, now_s), RunTimes.of(snapshot, now_s)
    for wait in decisions.waits[:JOBS_MAX]:
        if wait.job in standing.starts:
            continue
        job = pending[wait.job]
        found = moves_for(standing, job, frozenset(move.job for move in moves))
        cost = sum(cost for _, cost in found)
        start_s = starts_otherwise_s(standing, job, run_times) if found else None
        if start_s is None:
            continue
        gain = job.tasks_least * job.task.gpu_share * max(start_s - now_s, 0.0)
        if gain <= cost:
            continue
        moved = apply(standing.snapshot, [change for change, _ in found])
        after = plan(moved, now_s, told=False)
        if all(start.job.name != job.name for start in after.starts):
            continue
        moves += [
            Move(one.job, one.seats, job.name, gain * own / cost if cost else gain / len(found), own)
            for one, own in found
        ]
        standing = Standing(moved, after, now_s)
    return tuple(moves)


def moves_for(standing: Standing, job: Job, stay: frozenset[str] = frozenset()) -> list[tuple[Change, float]]:
    """Moves of running jobs that make room for the job now, and what each costs in GPU-seconds, of least cost as far as it is searched.

    stay: who is not moved. Empty when it fits as things are, quotas keep it out, or nobody can go elsewhere.
    """
    fleet, snapshot = standing.fleet, standing.snapshot
    free = fleet.gpu_free[fleet.open].sum() / WHOLE
    if free < (job.tasks_least - len(job.kept)) * job.task.gpu_share:
        return []
    if job.held or standing.place(job) is not None or standing.admits(job) is not None:
        return []
    may = {name: one for name, one in _movable(standing).items() if name not in stay}
    for _ in range(_CHOICES_MAX):
        out = standing.stops(job, may, wait_s=snapshot.policy.checkpoint_wait_s, quotas=False)
        if not out:
            return []
        moved = _elsewhere(standing, job, [may[one.job] for one in out])
        if not isinstance(moved, Running):
            return [(change, one.lost_gpu_s) for change, one in zip(moved, out, strict=True)]
        del may[moved.job.name]
    return []


def starts_otherwise_s(standing: Standing, job: Job, run_times: RunTimes) -> float | None:
    """When enough of those who run have ended for it, as far as can be said; None when that does not do."""
    running = (*standing.snapshot.running, *standing.starting)
    ends_s = _ends_s(running, run_times, standing.now_s)
    times, holdings, mask = np.unique(ends_s), Holdings(standing.fleet, running), standing.mask(job)

    def fits_at(at: int) -> bool:
        return not isinstance(find(without(standing.fleet, holdings, ends_s <= times[at]), job, mask), NoRoom)

    if not len(times) or not fits_at(len(times) - 1):
        return None
    low, high = 0, len(times) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits_at(middle) else (middle + 1, high)
    return float(times[low])


def _ends_s(running: Sequence[Running], run_times: RunTimes, now_s: float) -> Times:
    """When each is as likely as not to have ended. Shape (jobs,)."""
    jobs = [one.job for one in running]
    elapsed_s = np.array([max(now_s - one.start_s, 0.0) for one in running], np.float64)
    lasts_s = np.maximum(2 * elapsed_s, elapsed_s + _LEFT_LEAST_S)
    if run_times.ended >= LEARNED_MIN:
        lasts_s = quantile(run_times.curves(jobs), 0.5, elapsed_s)
    found: Times = now_s + np.maximum(np.minimum(lasts_s, limits_s(jobs)) - elapsed_s, 0.0)
    return found


def _movable(standing: Standing) -> dict[str, Running]:
    """Those who run and may be stopped, and fit elsewhere as things are."""
    snapshot, started_by_s = standing.snapshot, standing.now_s - standing.snapshot.policy.guaranteed_run_s
    named = frozenset[str]().union(*(one.jobs for one in snapshot.reservations))
    fits: dict[tuple[object, ...], bool] = {}
    found: dict[str, Running] = {}
    for one in snapshot.running:
        job = one.job
        if not job.preemptible or one.leaving or one.start_s > started_by_s:
            continue
        alike = (job.task, len(one.seats), job.one_a_node, job.near, job.excluded, job.queue, job.time_limit_s)
        key = (*alike, tuple(job.speeds.items()), job.name if job.name in named else "")
        if key not in fits:
            fits[key] = standing.place(_whole(one)) is not None
        if fits[key]:
            found[job.name] = one
    return found


def _whole(one: Running) -> Job:
    """The job with as many tasks as it has."""
    return replace(one.job, tasks=len(one.seats), tasks_min=0, kept=())


def _elsewhere(standing: Standing, job: Job, out: list[Running]) -> list[Change] | Running:
    """New seats for those who leave, in their order, beside the job in the room that they leave; or the first that has none."""
    fleet = standing.fleet.copy()
    for one in out:
        for seat in one.seats:
            fleet.give(seat, one.job.task)
    packer = Packer(fleet, Mix.of([(one.job.task, 1.0) for one in out]))
    seats = seats_for(packer, job, standing.mask(job))
    if isinstance(seats, NoRoom):
        return out[0]
    kept = {seat for _, seat in job.kept}
    for seat in seats:
        if seat not in kept:
            packer.take(seat, job.task)
    found: dict[str, Change] = {}
    for one in sorted(out, key=lambda one: (-len(one.seats) * one.job.task.gpu_share, one.job.name)):
        new = seats_for(packer, _whole(one), standing.mask(one.job))
        if isinstance(new, NoRoom):
            return one
        for seat in new:
            packer.take(seat, one.job.task)
        found[one.job.name] = Change(one.job.name, new)
    return [found[one.job.name] for one in out]
