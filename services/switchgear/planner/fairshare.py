"""Who has had how much of what they deserve."""

from __future__ import annotations

from collections.abc import Mapping
from math import log

import numpy as np

from switchgear.planner.fleet import Ints, Mask, Reals
from switchgear.planner.model import Snapshot
from switchgear.planner.quota import Tree

#: What a user has had counts beside what the queue has had only between equals.
_BESIDE = 1e-6


def shares(snapshot: Snapshot) -> Mapping[tuple[str, str], float]:
    """How much of what it deserves each (queue, user) has had; keys: of all who wait, run or have used something. O(jobs + queues).

    0: nothing, 1: as much as it deserves, more: others wait longer for it. It is the largest of that along the way, from the widest queue to
    the user: where a queue has had too much, its users come after those of others, and among themselves who has had least comes first.

    Had, in GPUs: the mean of what runs now and of the past. The past is `used_gpu_s` divided by the GPU-seconds that one GPU in use without a
    break comes to, half_life_s / ln 2, so that who has always had what it has now has had just that. Harvesting jobs do not count.
    Deserved, in GPUs: of a queue what it is guaranteed, and by weight its part of what the guarantees beside it leave, at most its limit; of a
    user an equal part of what queues below leave. Queues and users that neither wait nor run deserve nothing, so that the others share theirs.
    """
    tree = Tree(snapshot.queues)
    wants = {(job.queue, job.user) for job in snapshot.pending if not job.harvest}
    runs: dict[tuple[str, str], float] = {}
    for one in snapshot.running:
        if not one.job.harvest:
            key = one.job.queue, one.job.user
            runs[key] = runs.get(key, 0.0) + len(one.seats) * one.job.task.gpu_share
    keys = sorted({*((job.queue, job.user) for job in snapshot.pending), *runs, *snapshot.used_gpu_s})
    if not keys:
        return {}
    steady_gpu_s = snapshot.policy.half_life_s / log(2)
    had: Reals = np.array([runs.get(key, 0.0) + snapshot.used_gpu_s.get(key, 0.0) / steady_gpu_s for key in keys]) / 2
    queue: Ints = np.array([tree.at.get(name, 0) for name, _ in keys], np.int64)
    # Several unlisted queues are the root, and a user of two of them is two.
    active: Mask = np.array([key in wants or key in runs for key in keys], bool)

    queue_had, live = np.zeros(len(tree)), np.zeros(len(tree), bool)
    for number in range(tree.chain.shape[1]):
        at = tree.chain[queue, number]
        np.add.at(queue_had, at[at >= 0], had[at >= 0])
        live[at[(at >= 0) & active]] = True
    users = np.bincount(queue[active], minlength=len(tree))
    deserved, direct = _deserved(tree, live, users > 0, float(sum(node.gpus for node in snapshot.nodes)))
    own = _ratio(had, (direct / np.maximum(users, 1))[queue])
    of_queue = _ratio(queue_had, deserved)
    of_queue[0] = 0.0
    widest = np.where(tree.chain >= 0, of_queue[tree.chain], 0.0).max(axis=1)
    found = np.maximum(own, widest[queue]) + _BESIDE * own
    return dict(zip(keys, found.tolist(), strict=True))


def _deserved(tree: Tree, live: Mask, has_users: Mask, gpus: float) -> tuple[Reals, Reals]:
    """GPUs that each queue deserves, and that its own users do: as a child of weight 1 would that is guaranteed nothing. Shapes (queues,)."""
    deserved, direct = np.zeros(len(tree)), np.zeros(len(tree))
    deserved[0] = gpus
    children: list[list[int]] = [[] for _ in range(len(tree))]
    for child in (np.flatnonzero(live[1:]) + 1).tolist():
        children[tree.parent[child]].append(child)
    for number in (0, *reversed(tree.deepest_first)):
        below = children[number]
        left = max(deserved[number] - tree.guaranteed[below].sum(), 0.0)
        weights = tree.weight[below].sum() + has_users[number]
        direct[number] = left * has_users[number] / max(weights, 1e-9)
        deserved[below] = np.minimum(
            tree.guaranteed[below] + left * tree.weight[below] / max(weights, 1e-9), tree.limit[below]
        )
    return deserved, direct


def _ratio(had: Reals, deserved: Reals) -> Reals:
    """Who deserves nothing and has had something has had too much of it."""
    found: Reals = np.where(had > 0, had / np.maximum(deserved, 1e-3), 0.0)
    return found
