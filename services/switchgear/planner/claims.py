"""Who may take whose GPUs: a rule that cannot go round in circles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from switchgear.planner.fleet import Ints, Mask, Reals
from switchgear.planner.holdings import Holdings
from switchgear.planner.model import Job
from switchgear.planner.quota import ROUNDING_GPUS, Ledger, Tree


def covered_at(tree: Tree, queue: Ints, gpus: Reals, priority: Ints) -> Ints:
    """Depth of the deepest queue whose guarantee covers each job; 0 for one that runs on what others lend. Shape (jobs,).

    A queue's guarantee covers what those of its children cover, then others by priority, and among equals in the order given; one that does
    not fit into what is left is passed over.
    """
    depth = np.zeros(len(queue), np.int64)
    order = np.argsort(-priority, kind="stable")
    for number in tree.deepest_first:
        if tree.guaranteed[number] <= 0:
            continue
        inside = tree.chain[queue, tree.depth[number]] == number
        left = tree.guaranteed[number] - gpus[inside & (depth > 0)].sum() + ROUNDING_GPUS
        candidates = order[(inside & (depth == 0))[order]]
        for job, needs in zip(candidates.tolist(), gpus[candidates].tolist(), strict=True):
            if needs <= left:
                depth[job] = tree.depth[number]
                left -= needs
            if left <= ROUNDING_GPUS:
                break
    return depth


class Claim:
    """What a job that waits may take from those that run, so that it gets `gpus` in all.

    **The rule.** Nobody is stopped who is leaving, is not preemptible, or started after `started_by_s`. A harvesting job stops nobody, and is
    stopped by any other; a job without GPUs stops harvesting ones alone. For all others let P be the last queue that the job and a victim have
    in common, D the depth at which guarantees cover the job once it runs, and C that of the victim (`covered_at`; 0: none does). A victim's
    claim is weaker when C is that of P at most, and either (reclaim) the job's queue below P is within its guarantee with the job, or
    (priority) the job has the higher priority and C <= D. Whom a guarantee covers in a queue that is above it is a matter of choice, so others
    may be stopped instead, as long as the guarantee is used as well as before: `upheld` says whether a set of victims keeps the rule, and
    `surely` who is a victim in any set.

    **Why it ends.** Let c(d, p) be the GPUs of running jobs of priority p that guarantees at depth d cover, with the oldest first among
    equals, and r(p) the GPUs of all that run with priority p; harvesting jobs are left out. Compare states by c, the deepest d first and in it
    the highest p, then by r, the highest p first. Each start makes that greater, so that what once ran together does not come back: with a
    finite number of jobs only finitely many start, and are stopped, until one arrives, ends or is stopped by somebody else. (Who has GPUs; and
    each as many whenever it runs: an elastic job for which others left is to start with what it claimed.)
    A start alone: who comes is the youngest, so that nothing changes for those of its priority and above, nor in queues that pass it over;
    at D its own priority gains. When D is 0, c stays and r grows. A start with victims: `upheld` asks for just that. It is never in vain,
    since `surely` passes it: who is passed over in a queue changes nothing there by going. By reclaim, the job is covered below P and its
    victims are not, so that C < D. By priority, C <= D, and a victim with C = D > 0 is covered in the same queue as the job and has a lower
    priority. So nothing changes below D, and at D the priority of the job gains and no higher one loses.
    Rules that look as natural do go round: when an oversized job of high priority, which its queue's guarantee does not cover, stops a covered
    one of its own queue, another queue may reclaim from it, and do the same in turn.
    """

    def __init__(self, ledger: Ledger, holdings: Holdings, job: Job, gpus: float, *, started_by_s: float) -> None:
        tree, queue = ledger.tree, ledger.tree.of(job)
        self._tree, self._job, self._gpus = tree, job, gpus
        others = [
            (name, *charge) for name, charge in ledger.charges.items() if name != job.name and not charge[0].harvest
        ]
        self._queue: Ints = np.array([tree.of(one) for _, one, _ in others], np.int64)
        self._has: Reals = np.array([has for _, _, has in others], np.float64)
        self._priority: Ints = np.array([one.priority for _, one, _ in others], np.int64)
        self._covered = covered_at(tree, self._queue, self._has, self._priority)
        row = {name: number for number, (name, _, _) in enumerate(others)}
        self._row: Ints = np.array([row.get(one.job.name, -1) for one in holdings.running], np.int64)

        may = ~holdings.stays & (holdings.start_s <= started_by_s) & (not job.harvest)
        may[[holdings.at[name] for name in ledger.leaving if name in holdings.at]] = False
        #: Harvesting jobs that may be stopped.
        self.harvest: Mask = may & holdings.harvest
        # Where a queue is within its guarantee there is no choice: all in it are covered.
        path = tree.path(queue)
        with_it = ledger.used.copy()
        with_it[path] += gpus - ledger.charged(job)
        within = (with_it <= tree.guaranteed + ROUNDING_GPUS) & (tree.depth > 0)
        fixed = np.where(np.append(within, False)[tree.chain] & (tree.chain >= 0), np.arange(tree.chain.shape[1]), 0)
        parting = tree.parting(queue)
        reclaims = np.append(within[path][1:], False)[parting]
        own_cover = self._own_cover(path)

        def weaker(covered: Ints) -> Mask:
            of = self._queue
            outranked = (self._priority < job.priority) & (covered <= own_cover)
            claims = (covered <= parting[of]) & (reclaims[of] | outranked) & (gpus > ROUNDING_GPUS)
            found: Mask = may & (holdings.harvest | np.append(claims, False)[self._row])
            return found

        #: Who may be stopped in any set.
        self.surely: Mask = weaker(self._covered)
        #: Who may be stopped in some set.
        self.perhaps: Mask = weaker(fixed.max(axis=1)[self._queue]) | self.surely

    def upheld(self, victims: Sequence[int]) -> bool:
        """Whether the rule lets the job stop these running jobs together. victims: numbers of some that `perhaps` may be."""
        stays = np.ones(len(self._queue) + 1, bool)
        stays[self._row[list(victims)]] = False
        stays = stays[:-1]
        queue = np.append(self._queue[stays], self._tree.of(self._job))
        gpus = np.append(self._has[stays], self._gpus)
        priority = np.append(self._priority[stays], self._job.priority)
        levels = np.unique(np.append(self._priority, self._job.priority))[::-1]
        before, ran = self._sums(self._queue, self._has, self._priority, self._covered, levels)
        after, run = self._sums(queue, gpus, priority, covered_at(self._tree, queue, gpus, priority), levels)
        change = after - before
        path = self._tree.path(self._tree.of(self._job))
        elsewhere = np.delete(change, path, axis=0)
        by_depth = np.zeros((self._tree.chain.shape[1], len(levels)))
        np.add.at(by_depth, self._tree.depth, change)
        measure = np.concatenate((by_depth[:0:-1].ravel(), run - ran))
        return _first(measure) > 0 and all(_first(row) >= 0 for row in elsewhere[np.abs(elsewhere).any(axis=1)])

    def covered_despite(self, victims: Sequence[int]) -> Mask:
        """Which of these victims guarantees cover although, among equals, they cover all others first. Shape (running jobs,)."""
        last = np.zeros(len(self._queue) + 1, bool)
        last[self._row[list(victims)]] = True
        order = np.argsort(last[:-1], kind="stable")
        covered = np.zeros(len(self._queue) + 1, np.int64)
        covered[order] = covered_at(self._tree, self._queue[order], self._has[order], self._priority[order])
        found = np.zeros(len(self._row), bool)
        found[list(victims)] = covered[self._row[list(victims)]] > 0
        return found

    def _own_cover(self, path: Ints) -> int:
        """Depth of the deepest queue whose guarantee covers the job."""
        for depth in range(len(path) - 1, 0, -1):
            inside = self._tree.chain[self._queue, depth] == path[depth]
            equal = (self._covered == depth) & (self._priority >= self._job.priority)
            before = self._has[inside & ((self._covered > depth) | equal)].sum()
            if before + self._gpus <= self._tree.guaranteed[path[depth]] + ROUNDING_GPUS:
                return depth
        return 0

    def _sums(self, queue: Ints, gpus: Reals, priority: Ints, covered: Ints, levels: Ints) -> tuple[Reals, Reals]:
        """GPUs that the guarantee of each queue covers, by priority, shape (queues, levels); and all GPUs by priority."""
        level = np.searchsorted(-levels, -priority)
        by_queue = np.zeros((len(self._tree), len(levels)))
        np.add.at(by_queue, (self._tree.chain[queue, covered], level), np.where(covered > 0, gpus, 0.0))
        in_all = np.zeros(len(levels))
        np.add.at(in_all, level, gpus)
        return by_queue, in_all


def _first(changes: Reals) -> float:
    """The first that is none by rounding; 0 when all are."""
    found = changes[np.abs(changes) > ROUNDING_GPUS]
    return float(found[0]) if len(found) else 0.0
