"""Whose turn it is first: those who only take what their queue is guaranteed, so that nothing is cleared for them in vain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from switchgear.planner.claims import covered_at
from switchgear.planner.fleet import Ints, Reals
from switchgear.planner.model import Job
from switchgear.planner.quota import ROUNDING_GPUS, Ledger


def by_guarantee(ledger: Ledger, jobs: Sequence[Job]) -> list[Job]:
    """The jobs by what guarantees cover them, the deepest queue's first, the order among equals as it was; harvesting ones last.

    Who may stop whom follows the same rule (`claims.Claim`): what a victim leaves is for the one for whom it left, or one of no weaker claim,
    before the victim itself gets it again. O(queues x (jobs + running jobs)).
    """
    depth = cover_of(ledger, jobs)
    order = np.lexsort((np.arange(len(jobs)), -depth, np.array([job.harvest for job in jobs])))
    return [jobs[at] for at in order.tolist()]


def cover_of(ledger: Ledger, jobs: Sequence[Job]) -> Ints:
    """Depth of the deepest queue whose guarantee covers each job, beside who runs with the same priority or a higher one; 0: none. Shape (jobs,)."""
    tree = ledger.tree
    depth = np.zeros(len(jobs), np.int64)
    if not (tree.guaranteed > 0).any():
        return depth
    own = {job.name for job in jobs}
    held = [(job, gpus) for name, (job, gpus) in ledger.charges.items() if not job.harvest and name not in own]
    queue_of: Ints = np.array([tree.of(job) for job, _ in held], np.int64)
    gpus_of: Reals = np.array([gpus for _, gpus in held], np.float64)
    priority_of: Ints = np.array([job.priority for job, _ in held], np.int64)
    covered_of = covered_at(tree, queue_of, gpus_of, priority_of)
    queue: Ints = np.array([tree.of(job) for job in jobs], np.int64)
    gpus: Reals = np.array([job.tasks_least * job.task.gpu_share for job in jobs], np.float64)
    priority: Ints = np.array([job.priority for job in jobs], np.int64)
    for number in tree.deepest_first:
        if tree.guaranteed[number] <= 0:
            continue
        level = int(tree.depth[number])
        inside = tree.chain[queue_of, level] == number
        same = inside & (covered_of == level)
        order = np.argsort(-priority_of[same], kind="stable")
        sums = np.concatenate(([0.0], np.cumsum(gpus_of[same][order])))
        before = sums[np.searchsorted(-priority_of[same][order], -priority, side="right")]
        left = tree.guaranteed[number] - gpus_of[inside & (covered_of > level)].sum() - before + ROUNDING_GPUS
        depth[(depth == 0) & (tree.chain[queue, level] == number) & (gpus <= left)] = level
    return depth
