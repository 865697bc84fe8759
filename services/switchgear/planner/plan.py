"""One planning cycle: from a snapshot and a time to who starts where, who leaves for whom, and why the others wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

from switchgear.planner.cycle import Cycle
from switchgear.planner.fairshare import shares
from switchgear.planner.forecast import with_forecasts
from switchgear.planner.mix import Mix
from switchgear.planner.model import Cause, Decisions, Job, Snapshot, Task, Wait
from switchgear.planner.order import order
from switchgear.planner.runtimes import RunTimes
from switchgear.planner.turns import by_guarantee


def plan(
    snapshot: Snapshot,
    now_s: float,
    *,
    run_times: RunTimes | None = None,
    told: bool = True,
    only_if: str = "",
    then: Collection[str] | None = None,
) -> Decisions:
    """What to do now: each pending job either starts or waits. The same snapshot and time give the same decisions.

    Nothing that starts goes over what its nodes have, is part of a gang, or exceeds a quota.
    run_times: what was learned, when that is known already; else it is learned from the snapshot. told: with causes and expected starts;
    without, the decisions are the same and the waits say less. only_if: a job without whose start nobody cares for the rest: the plan ends
    when it does not start. then: the only jobs that are considered after that one; None: all.
    Raises Invalid when the queues make no tree (`quota.Tree`).
    """
    run_times = run_times or RunTimes.of(snapshot, now_s)
    cycle = Cycle(snapshot, _mix(snapshot), run_times, now_s)
    live = {job.name for job in snapshot.pending} | {one.job.name for one in snapshot.running}
    obstacles = {job.name: obstacle for job in snapshot.pending if (obstacle := _obstacle(job, live, now_s))}
    ready = [job for job in snapshot.pending if job.name not in obstacles]
    turns = by_guarantee(cycle.ledger, order(snapshot, shares(snapshot), run_times, now_s, jobs=ready))
    others = None
    for job in turns:
        if others is not None and job.name not in others:
            continue
        cycle.consider(job)
        if job.name == only_if and all(one.job.name != only_if for one in cycle.decisions(told=False).starts):
            break
        others = then if job.name == only_if else others
    found = cycle.decisions(told=told)
    if told:
        found = with_forecasts(found, snapshot, turns, run_times, now_s)
    return replace(found, waits=(*found.waits, *obstacles.values()))


def _obstacle(job: Job, live: set[str], now_s: float) -> Wait | None:
    """What keeps it from starting, whatever is free."""
    if job.held:
        return Wait(job.name, Cause.HELD, f"it is held: {job.held}")
    if job.not_before_s > now_s:
        return Wait(
            job.name, Cause.NOT_YET, f"it is to start in {job.not_before_s - now_s:.0f} s, not before", job.not_before_s
        )
    if before := sorted(job.after & live):
        return Wait(job.name, Cause.DEPENDENCY, f"it comes after {', '.join(before)}")
    return None


def _mix(snapshot: Snapshot) -> Mix:
    """The tasks that are to be expected: those that wait and those that run."""
    tasks: dict[int, Task] = {}
    count = Counter[int]()
    for job in (*snapshot.pending, *(one.job for one in snapshot.running)):
        tasks[id(job.task)] = job.task
        count[id(job.task)] += job.tasks
    return Mix.of((tasks[key], float(number)) for key, number in count.items())
