"""The cheapest jobs to stop so that a gang fits: which nodes to clear, of whom."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from switchgear.planner.fleet import Fleet, Ints, Mask, Reals
from switchgear.planner.holdings import CPU, MEMORY, MIG, Holdings
from switchgear.planner.model import WHOLE, Task
from switchgear.planner.quota import ROUNDING_GPUS

#: Jobs that share nodes with each other, of whom all subsets are tried: 2^10 of them.
_TOGETHER_MAX = 10
#: Numbers in the largest table of subsets: 32 MB.
_CELLS_MAX = 1 << 22
#: Of a GPU: thousandths and sevenths are whole numbers of them.
_PARTS = 7 * WHOLE
#: Steps in which weights are added up, at most. Weights are rounded down to them, so that less than `least` is never taken for enough.
_SUM_MAX = 10_000


@dataclass(frozen=True, slots=True)
class _Option:
    """The first `count` of `jobs` stopped: for how many more tasks, at which cost."""

    tasks: int
    cost: float
    jobs: Sequence[int]
    count: int


class Site:
    """Nodes that a gang may use, and how many of its tasks fit there as jobs are stopped.

    rows: of the fleet. per_node: tasks that one node may have at most.
    """

    def __init__(self, fleet: Fleet, holdings: Holdings, task: Task, rows: Ints, per_node: int) -> None:
        self._task, self._per_node = task, per_node
        self.rows = rows
        free = np.zeros((len(rows), fleet.gpu_free.shape[1] + 3), np.int64)
        free[:, : MIG - 2] = fleet.gpu_free[rows]
        free[:, CPU], free[:, MEMORY] = fleet.cpu_free[rows], fleet.memory_free[rows]
        if task.mig_profile in fleet.mig_free:
            free[:, MIG] = fleet.mig_free[task.mig_profile][rows]
        self.free: Ints = free
        local = np.full(len(fleet), -1, np.int64)
        local[rows] = np.arange(len(rows))
        here = local[holdings.node] >= 0
        self.job: Ints = holdings.job[here]
        self.node: Ints = local[holdings.node][here]
        self.amount: Ints = holdings.amounts(task.mig_profile)[here]

    def fits(self, free: Ints) -> Ints:
        """Tasks that fit where so much is free. free: shape (..., GPUs + 3)."""
        task, gpu = self._task, free[..., :CPU]
        room: Ints = np.full(free.shape[:-1], self._per_node, np.int64)
        if task.gpus:
            room = (gpu == WHOLE).sum(axis=-1) // task.gpus
        elif task.gpu_milli:
            room = (gpu // task.gpu_milli).sum(axis=-1)
        elif task.mig_profile:
            room = free[..., MIG]
        if task.cpu_milli:
            room = np.minimum(room, free[..., CPU] // task.cpu_milli)
        if task.memory_mib:
            room = np.minimum(room, free[..., MEMORY] // task.memory_mib)
        found: Ints = np.clip(room, 0, self._per_node)
        return found

    def without(self, stopped: Mask) -> Ints:
        """What is free when these jobs have stopped. stopped: shape (jobs,)."""
        free = self.free.copy()
        pieces = stopped[self.job]
        np.add.at(free, self.node[pieces], self.amount[pieces])
        return free


def cheapest(site: Site, may_stop: Mask, costs: Reals, tasks: int) -> list[int] | None:
    """Jobs to stop so that `tasks` fit, of least cost; None when not even all of them are enough. may_stop, costs: shape (jobs,).

    Jobs that share nodes, directly or by others, are a group. Within a group of at most `_TOGETHER_MAX` all subsets are tried; in a larger one
    the node is cleared next that costs least a task. Between groups the choice is exact, by dynamic programming over the tasks that are
    missing. So the result is optimal when all groups are small. O(groups x tasks + pieces x 2^_TOGETHER_MAX), vectorised.
    """
    room = site.fits(site.free)
    missing = tasks - int(room.sum())
    if missing <= 0:
        return []
    room_then = site.fits(site.without(may_stop))
    if room_then.sum() < tasks:
        return None
    pieces = np.flatnonzero(may_stop[site.job] & (room_then > room)[site.node])
    groups = _options(site, pieces, _roots(site, pieces), costs, missing)
    return _combined(_worthwhile(groups, missing), missing)


def cheapest_sum(weights: Reals, costs: Reals, least: float) -> list[int]:
    """Items of this weight together at least, of least cost; all of them when they are not enough.

    Exact when `least` is at most 10,000 times what divides all weights (of GPUs: all are thousandths or sevenths).
    """
    parts = np.round(weights * _PARTS).astype(np.int64)
    unit = max(int(np.gcd.reduce(parts)), least * _PARTS / _SUM_MAX)
    missing = int(np.ceil(least * _PARTS / unit - ROUNDING_GPUS))
    units = np.minimum(parts / unit, missing).astype(np.int64)
    groups = [[_Option(int(units[at]), float(costs[at]), [at], 1)] for at in np.flatnonzero(units).tolist()]
    found = _combined(_worthwhile(groups, missing), missing)
    return list(range(len(weights))) if found is None else found


def without_needless(
    site: Site, stopped: Sequence[int], costs: Reals, tasks: int, dispensable: Callable[[int], bool]
) -> list[int]:
    """Those of the jobs that are needed, the dearest let go first. dispensable: whether nothing but room speaks for one; asked once, then it stays."""
    mask = np.zeros(len(costs), bool)
    mask[list(stopped)] = True
    free = site.without(mask)
    room = site.fits(free)
    spare = int(room.sum()) - tasks
    needed = []
    pieces_of: dict[int, Ints] = _by(site.job, np.flatnonzero(mask[site.job]))
    for job in sorted(stopped, key=lambda one: (-costs[one], one)):
        pieces = pieces_of.get(job, np.empty(0, np.int64))
        nodes = site.node[pieces]
        less = free[nodes] - site.amount[pieces]
        room_less = site.fits(less)
        if (lost := int((room[nodes] - room_less).sum())) <= spare and dispensable(job):
            spare -= lost
            free[nodes], room[nodes] = less, room_less
        else:
            needed.append(job)
    return sorted(needed)


def _roots(site: Site, pieces: Ints) -> Ints:
    """A number for each piece, equal for those of a group."""
    root = list(range(len(site.rows)))

    def find(node: int) -> int:
        while root[node] != node:
            root[node] = root[root[node]]
            node = root[node]
        return node

    first: dict[int, int] = {}
    for job, node in zip(site.job[pieces].tolist(), site.node[pieces].tolist(), strict=True):
        one, other = find(first.setdefault(job, node)), find(node)
        root[max(one, other)] = min(one, other)
    return np.array([find(node) for node in site.node[pieces].tolist()], np.int64)


def _by(key: Ints, pieces: Ints) -> dict[int, Ints]:
    """Pieces by the key of each."""
    if not len(pieces):
        return {}
    order = pieces[np.argsort(key[pieces], kind="stable")]
    values, starts = np.unique(key[order], return_index=True)
    return dict(zip(values.tolist(), np.split(order, starts[1:]), strict=True))


def _options(site: Site, pieces: Ints, roots: Ints, costs: Reals, missing: int) -> list[list[_Option]]:
    """Of each group. roots: of each piece, equal within a group. Groups with as many jobs and as many nodes are worked out at once."""
    _, group = np.unique(roots, return_inverse=True)
    jobs, job, first_job = _within(group, site.job[pieces])
    nodes, node, first_node = _within(group, site.node[pieces])
    count, width = len(first_job) - 1, site.free.shape[1]
    job_count, node_count = np.diff(first_job), np.diff(first_node)
    large = (job_count > _TOGETHER_MAX) | (node_count * width << np.minimum(job_count, _TOGETHER_MAX) > _CELLS_MAX)
    found: list[list[_Option]] = [[] for _ in range(count)]
    for at in np.flatnonzero(large).tolist():
        found[at] = _chain(site, pieces[group == at], costs, missing)
    for of_jobs, of_nodes in sorted(set(zip(job_count[~large].tolist(), node_count[~large].tolist(), strict=True))):
        alike = np.flatnonzero(~large & (job_count == of_jobs) & (node_count == of_nodes))
        step = max(_CELLS_MAX // (of_nodes * width << of_jobs), 1)
        for part in (alike[begin : begin + step] for begin in range(0, len(alike), step)):
            place = np.full(count, -1, np.int64)
            place[part] = np.arange(len(part))
            here = np.flatnonzero(place[group] >= 0)
            amount = np.zeros((len(part), of_jobs, of_nodes, width), np.int64)
            amount[place[group[here]], job[here], node[here]] = site.amount[pieces[here]]
            jobs_of = jobs[first_job[part][:, None] + np.arange(of_jobs)]
            nodes_of = nodes[first_node[part][:, None] + np.arange(of_nodes)]
            options = _subset_options(site, jobs_of, nodes_of, amount, costs, missing=missing)
            for at, of_group in zip(part.tolist(), options, strict=True):
                found[at] = of_group
    return found


def _within(group: Ints, what: Ints) -> tuple[Ints, Ints, Ints]:
    """What occurs in each group, in order, group after group; the place of each in its own group; and where in the first each group begins."""
    span = int(what.max(initial=0)) + 1
    pairs, at = np.unique(group * span + what, return_inverse=True)
    first: Ints = np.searchsorted(pairs // span, np.arange(group.max(initial=-1) + 2))
    return pairs % span, at - first[group], first


def _subset_options(
    site: Site, jobs: Ints, nodes: Ints, amount: Ints, costs: Reals, *, missing: int
) -> Iterator[list[_Option]]:
    """Of each group the subsets that no other beats. Shapes (groups, jobs), (groups, nodes), (groups, jobs, nodes, GPUs + 3)."""
    stopped = _subsets(jobs.shape[1])
    freed = stopped @ amount.reshape(*jobs.shape, -1)
    free = site.free[nodes][:, None] + freed.reshape(len(jobs), len(stopped), *amount.shape[2:])
    room = site.fits(free).sum(axis=-1)
    gains = np.minimum(room - room[:, :1], missing)
    cost = costs[jobs] @ stopped.T
    order = np.lexsort((-gains, cost))
    best = np.maximum.accumulate(np.take_along_axis(gains, order, axis=1), axis=1)
    better = np.diff(best, prepend=0, axis=1) > 0
    for at, subsets in enumerate(order):
        chosen = subsets[better[at]].tolist()
        yield [
            _Option(
                int(gains[at, one]), float(cost[at, one]), jobs[at, stopped[one] > 0].tolist(), int(stopped[one].sum())
            )
            for one in chosen
        ]


def _chain(site: Site, pieces: Ints, costs: Reals, missing: int) -> list[_Option]:
    """Of a large group: each node cleared for one task alone, and then one after the other, what costs least a task first."""
    on_node, of_job = _by(site.node, pieces), _by(site.job, pieces)
    free = {node: site.free[node] for node in on_node}
    room = {node: int(site.fits(left)) for node, left in free.items()}
    turn = dict.fromkeys(on_node, 0)
    gone: dict[int, None] = {}
    offers: list[tuple[float, int, int, tuple[int, ...]]] = []

    def after(stopped: Iterable[int]) -> dict[int, Ints]:
        then: dict[int, Ints] = {}
        for job in stopped:
            for piece in of_job[job].tolist():
                node = int(site.node[piece])
                then[node] = then.get(node, free[node]) + site.amount[piece]
        return then

    def offer(node: int) -> _Option | None:
        there = [piece for piece in on_node[node].tolist() if int(site.job[piece]) not in gone]
        stopped = _cleared(site, free[node], site.amount[there], costs[site.job[there]])
        jobs = tuple(int(site.job[there[at]]) for at in stopped)
        if not jobs:
            return None
        tasks = sum(int(site.fits(left)) - room[at] for at, left in after(jobs).items())
        cost = float(costs[list(jobs)].sum())
        heapq.heappush(offers, (cost / tasks, node, turn[node], jobs))
        return _Option(min(tasks, missing), cost, jobs, len(jobs))

    options = [option for node in on_node if (option := offer(node)) is not None]
    order: list[int] = []
    tasks, cost = 0, 0.0
    while offers and tasks < missing:
        _, node, of_turn, jobs = heapq.heappop(offers)
        if of_turn != turn[node]:
            continue
        changed = after(jobs)
        gone.update(dict.fromkeys(jobs))
        order.extend(jobs)
        cost += float(costs[list(jobs)].sum())
        for at, left in changed.items():
            tasks += int(site.fits(left)) - room[at]
            free[at], room[at] = left, int(site.fits(left))
            turn[at] += 1
        for at in changed:
            offer(at)
        options.append(_Option(min(tasks, missing), cost, order, len(order)))
    return _pareto(options)


def _cleared(site: Site, free: Ints, amounts: Ints, costs: Reals) -> list[int]:
    """Which of the jobs on a node have to stop for one more task, at least cost; none when all together are not enough."""
    room = int(site.fits(free))
    if int(site.fits(free + amounts.sum(axis=0))) <= room:
        return []
    if len(costs) <= _TOGETHER_MAX:
        stopped = _subsets(len(costs))
        enough = np.flatnonzero(site.fits(free + stopped @ amounts) > room)
        best = enough[int(np.argmin((stopped @ costs)[enough]))]
        return np.flatnonzero(stopped[best]).tolist()
    left = free + amounts.sum(axis=0)
    needed = []
    for at in np.argsort(-costs, kind="stable").tolist():
        if int(site.fits(left - amounts[at])) > room:
            left = left - amounts[at]
        else:
            needed.append(at)
    return needed


def _pareto(options: list[_Option]) -> list[_Option]:
    """Without those that another beats."""
    found: list[_Option] = []
    for option in sorted(options, key=lambda one: (one.cost, -one.tasks)):
        if not found or option.tasks > found[-1].tasks:
            found.append(option)
    return found


def _worthwhile(groups: list[list[_Option]], missing: int) -> list[list[_Option]]:
    """Without groups of one option that no best choice needs: of those with the same gain only the cheapest are taken."""
    kept = [options for options in groups if len(options) > 1]
    alike: dict[int, list[_Option]] = {}
    for options in groups:
        if len(options) == 1:
            alike.setdefault(options[0].tasks, []).append(options[0])
    for tasks, options in sorted(alike.items()):
        options.sort(key=lambda one: one.cost)
        kept += [[option] for option in options[: -(-missing // tasks)]]
    return kept


def _combined(groups: list[list[_Option]], missing: int) -> list[int] | None:
    """One option of each group or none, so that together they are enough: a knapsack that has to be filled."""
    least = np.full(missing + 1, np.inf)
    least[0] = 0.0
    chosen = np.full((len(groups), missing + 1), -1, np.int16)
    for at, options in enumerate(groups):
        before = least
        for number, option in enumerate(options):
            cost = (
                np.concatenate((np.full(option.tasks, before[0]), before[: missing + 1 - option.tasks])) + option.cost
            )
            better = cost < least
            least = np.where(better, cost, least)
            chosen[at, better] = number
    if not np.isfinite(least[missing]):
        return None
    jobs: list[int] = []
    left = missing
    for at in range(len(groups) - 1, -1, -1):
        if (number := int(chosen[at, left])) >= 0:
            option = groups[at][number]
            jobs += option.jobs[: option.count]
            left = max(left - option.tasks, 0)
    return jobs


@cache
def _subsets(count: int) -> Ints:
    """Each subset of so many as a row of 0 and 1; shape (2^count, count). At most `_TOGETHER_MAX + 1` are kept."""
    found: Ints = np.arange(1 << count)[:, None] >> np.arange(count) & 1
    return found
