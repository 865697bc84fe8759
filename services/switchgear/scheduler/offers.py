"""What each node has to give to a job that needs others in place of nodes that it lost."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from switchgear.planner.fleet import Fleet
from switchgear.planner.model import WHOLE, Job, Near
from switchgear.scheduler.placement import Offer


def offers(fleet: Fleet, job: Job, kept: Collection[str]) -> list[Offer]:
    """One a node. kept: nodes that the job has already: the others have to be in their domain of each level that it requires."""
    task, room = job.task, fleet.room(job.task)
    elsewhere = _elsewhere(fleet, job.near, kept)
    found = []
    for row, node in enumerate(fleet.nodes):
        if task.gpus:
            free = tuple(np.flatnonzero(fleet.gpu_free[row] == WHOLE).tolist())
        else:
            free = fleet.seat(task, row).gpus if room[row] else ()
        obstacle = node.closed or elsewhere.get(row, "")
        if not obstacle and not room[row] and len(free) >= max(1, task.gpus):
            obstacle = "without the model, labels, CPUs or memory that it asks for"
        found.append(Offer(node.name, free, obstacle, float(fleet.trust[row])))
    return found


def _elsewhere(fleet: Fleet, near: Collection[Near], kept: Collection[str]) -> dict[int, str]:
    rows = [fleet.at[name] for name in kept if name in fleet.at]
    found: dict[int, str] = {}
    for wish in near:
        if wish.required and wish.level in fleet.levels and rows:
            domains = fleet.domains[fleet.levels.index(wish.level)]
            found.update({int(row): f"in another {wish.level}" for row in np.flatnonzero(domains != domains[rows[0]])})
    return found
