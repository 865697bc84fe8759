"""What operators could open to a waiting job: nodes that are closed, reserved or kept as spares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from switchgear.planner.changes import Change, Lift, Open, Spares
from switchgear.planner.fleet import Fleet, Mask
from switchgear.planner.gangs import find, seats_for
from switchgear.planner.mix import Mix
from switchgear.planner.model import Job, NoRoom
from switchgear.planner.packing import Packer
from switchgear.planner.reservations import is_for, overlaps
from switchgear.planner.standing import Standing
from switchgear.planner.wording import named

#: Closed nodes that are looked at one by one, to open no more than are needed.
_NODES_MAX = 64


def openings(standing: Standing, job: Job) -> Iterator[tuple[tuple[Change, ...], str]]:
    """Changes with which the job has room, and what they are in words; only those that make room."""
    if standing.place(job) is not None:
        return
    snapshot, now_s = standing.snapshot, standing.now_s
    seconds = np.inf if job.time_limit_s is None else job.time_limit_s
    others = [
        one.name
        for one in snapshot.reservations
        if overlaps(one, now_s, seconds) and not is_for(one, job, snapshot.queues)
    ]
    for names in [(name,) for name in others] + ([tuple(others)] if len(others) > 1 else []):
        without = Lift(names).apply(snapshot)
        if _fits(standing.fleet, job, standing.mask(job, without)):
            yield (Lift(names),), f"if {named(names)} were lifted"
            break
    if snapshot.policy.spares and not job.kept:
        none = replace(snapshot, policy=replace(snapshot.policy, spares=0))
        if _fits(standing.fleet, job, standing.mask(job, none)):
            yield (Spares(0),), "if no nodes were kept as spares"
    if nodes := _closed(standing, job):
        whys = dict.fromkeys(standing.fleet.nodes[standing.fleet.at[name]].closed for name in nodes)
        yield (Open(nodes),), f"if {named(nodes)} {'was' if len(nodes) == 1 else 'were'} open ({named(list(whys))})"


def _fits(fleet: Fleet, job: Job, mask: Mask) -> bool:
    return not isinstance(find(fleet, job, mask), NoRoom)


def _closed(standing: Standing, job: Job) -> tuple[str, ...]:
    """Closed nodes that have to be opened for it, no more than are needed."""
    fleet, mask = standing.fleet.copy(), standing.mask(job)
    shut = ~fleet.open
    fleet.open[:] = True
    seats = seats_for(Packer(fleet, Mix.of([(job.task, 1.0)])), job, mask)
    if isinstance(seats, NoRoom):
        return ()
    needed = sorted({row for seat in seats if shut[row := fleet.at[seat.node]]})
    # Gangs do not know that these are the last to be asked for: open ones may do for some of them.
    fleet.open &= ~shut
    fleet.open[needed] = True
    for row in needed[:_NODES_MAX]:
        fleet.open[row] = False
        if not _fits(fleet, job, mask):
            fleet.open[row] = True
    return tuple(fleet.nodes[row].name for row in needed if fleet.open[row])
