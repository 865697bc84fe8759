"""One planning cycle: from a snapshot and a time to who starts where, who leaves for whom, and why the others wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from switchgear.planner.fleet import Fleet, Mask
from switchgear.planner.mix import Mix
from switchgear.planner.model import Cause, Decisions, Job, NoRoom, Seat, Snapshot, Start, Wait
from switchgear.planner.packing import Packer


def plan(snapshot: Snapshot, now_s: float) -> Decisions:
    """What to do now. The same snapshot and time give the same decisions."""
    ready, waits = _ready(snapshot, now_s)
    packer = Packer(Fleet(snapshot.nodes, snapshot.levels, snapshot.running), _mix(snapshot))
    starts: list[Start] = []
    for job in _order(ready, snapshot, now_s):
        seats = _seats_for(packer, job, np.ones(len(packer.fleet), bool))
        if isinstance(seats, NoRoom):
            waits.append(Wait(job.name, seats.cause, seats.text))
        else:
            for seat in seats:
                packer.take(seat, job.task)
            starts.append(Start(job, seats))
    return Decisions(tuple(starts), (), tuple(waits))


def _ready(snapshot: Snapshot, now_s: float) -> tuple[list[Job], list[Wait]]:
    """Those that may start, and the waits of those that must not yet."""
    live = {job.name for job in snapshot.pending} | {running.job.name for running in snapshot.running}
    ready: list[Job] = []
    waits: list[Wait] = []
    for job in snapshot.pending:
        if job.held:
            waits.append(Wait(job.name, Cause.HELD, f"it is held: {job.held}"))
        elif job.not_before_s > now_s:
            waits.append(Wait(job.name, Cause.NOT_YET, "it is to start later", job.not_before_s))
        elif before := sorted(job.after & live):
            waits.append(Wait(job.name, Cause.DEPENDENCY, f"it waits for the end of {', '.join(before)}"))
        else:
            ready.append(job)
    return ready, waits


def _mix(snapshot: Snapshot) -> Mix:
    """The tasks that are to be expected: those that wait and those that run, by their GPUs."""
    count = Counter[int]()
    tasks = {}
    for job in (*snapshot.pending, *(running.job for running in snapshot.running)):
        tasks[id(job.task)] = job.task
        count[id(job.task)] += job.tasks
    return Mix.of((tasks[key], float(n)) for key, n in count.items())


def _order(ready: Iterable[Job], snapshot: Snapshot, now_s: float) -> list[Job]:
    starving_s = snapshot.policy.starving_s
    return sorted(
        ready,
        key=lambda job: (job.harvest, -job.priority, now_s - job.submit_s < starving_s, job.submit_s, job.name),
    )


def _seats_for(packer: Packer, job: Job, open_to: Mask) -> tuple[Seat, ...] | NoRoom:
    room = packer.fleet.room(job.task)
    trial = packer.copy()
    seats: list[Seat] = []
    allowed = open_to & (room > 0) & np.array([node.name not in job.excluded for node in packer.fleet.nodes], bool)
    while len(seats) < job.tasks and (row := trial.best(job.task, allowed)) >= 0:
        seat = trial.seat(job.task, row)
        trial.take(seat, job.task)
        seats.append(seat)
        if job.one_a_node:
            allowed[row] = False
    if len(seats) < job.tasks_least:
        return NoRoom(Cause.GPUS, f"{len(seats)} of {job.tasks} tasks fit now")
    return tuple(seats)
