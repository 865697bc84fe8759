"""How long jobs run, learned from those that have ended and those that still run."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from switchgear.planner.fleet import Ints, Reals
from switchgear.planner.model import Ended, Job, Snapshot
from switchgear.planner.survival import BINS, at_risk, bin_of, mean_left_s, mean_s, quantile, survival

#: Stands for a curve that is about to be known.
_NONE: Reals = np.empty(0)
#: What is learned together: queue, user, key, GPUs; or fewer of them.
_Group = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Learning:
    """How much the run time of one job says about another's. The values fit two weeks of Philly; within factors of 3 they matter little.

    block: submissions of a group that are looked at together; as many as a sweep has at least. blocks_max: per group, older ones are forgotten.
    near, wide: weight that is lost with each block of distance, within a campaign and within a group.
    prior_*: jobs that the level above is worth.
    """

    block: int = 8
    blocks_max: int = 96
    near: float = 0.6
    wide: float = 0.97
    prior_campaign: float = 3.0
    prior_group: float = 2.0
    prior_wider: float = 10.0


class History:
    """Jobs that have ended, the newest `most` of them, as `RunTimes` learns from them; grows in O(1)."""

    def __init__(self, ended: Iterable[Ended] = (), most: int | None = None) -> None:
        self.at: dict[_Group, int] = {}
        self.group, self.submit_s, self.ran_s = deque[int]([], most), deque[float]([], most), deque[float]([], most)
        for one in ended:
            self.add(one)

    def __len__(self) -> int:
        return len(self.group)

    def add(self, one: Ended) -> None:
        self.group.append(self.at.setdefault((one.queue, one.user, one.key, one.gpus), len(self.at)))
        self.submit_s.append(one.end_s - one.seconds if one.submit_s is None else one.submit_s)
        self.ran_s.append(one.seconds)


class RunTimes:
    """Curves of run times, by campaign: jobs of one queue, user, key and GPUs that were submitted about the same time.

    Hazards in discrete bins (Kaplan and Meier 1958), so that who still runs counts as "longer than so far", and the first of a sweep to end teach
    what the others will take. Each level takes the one above as prior: campaign, group, user in a queue, queue, GPUs, all. Without history the
    first curve says no more than that run times are spread over all scales.
    """

    def __init__(
        self,
        history: History,
        running: Iterable[tuple[Job, float]] = (),
        pending: Iterable[Job] = (),
        learning: Learning | None = None,
    ) -> None:
        """running: with the seconds that each has run so far. pending: they only count as submissions."""
        self._learning = learning or Learning()
        #: Ended jobs that it was learned from.
        self.ended = len(history)
        at = dict(history.at)
        group, submit_s, ran_s = list(history.group), list(history.submit_s), list(history.ran_s)
        for job, elapsed_s in running:
            group.append(at.setdefault(_group(job), len(at)))
            submit_s.append(job.submit_s)
            ran_s.append(elapsed_s)
        known = len(group)
        for job in pending:
            group.append(at.setdefault(_group(job), len(at)))
            submit_s.append(job.submit_s)
        self._at = at
        groups, submits = np.array(group, np.int64), np.array(submit_s, np.float64)
        bins = np.full(len(groups), -1)
        bins[:known] = bin_of(np.maximum(np.array(ran_s, np.float64), 0.0))
        self._ended_of = np.bincount(groups[: self.ended] * BINS + bins[: self.ended], minlength=len(at) * BINS)
        self._ended_of = self._ended_of.reshape(len(at), BINS)
        self._all: Reals = self._ended_of.sum(axis=0).astype(np.float64)
        self._members: dict[_Group, list[int]] = {}
        for name, number in at.items():
            for wider in _wider(name):
                self._members.setdefault(wider, []).append(number)
        order = np.lexsort((submits, groups))
        self._submit_s, self._bin = submits[order], bins[order]
        self._has_ended = order < self.ended
        self._first: Ints = np.searchsorted(groups[order], np.arange(len(at) + 1))
        self._taught = np.bincount(groups[:known], minlength=len(at)) > 0
        self._curves: dict[tuple[_Group, int], Reals] = {}
        self._bases: dict[_Group, Reals] = {}

    @classmethod
    def of(cls, snapshot: Snapshot, now_s: float) -> Self:
        """What a snapshot teaches. O(jobs in it)."""
        running = ((one.job, max(now_s - one.start_s, 0.0)) for one in snapshot.running)
        return cls(History(snapshot.ended), running, snapshot.pending)

    def quantiles(self, job: Job, elapsed_s: float, levels: Sequence[float]) -> Reals:
        """Run times in seconds from the start that are exceeded with chance 1 - level, given that it has run so long. Shape (levels,)."""
        curve = np.repeat(self.curves((job,)), len(levels), axis=0)
        found: Reals = np.minimum(quantile(curve, np.array(levels), elapsed_s), _limit_s(job))
        return found

    def bounds_s(self, jobs: Sequence[Job], level: float) -> Reals:
        """Run time that each exceeds with chance 1 - level. Shape (jobs,)."""
        found: Reals = np.minimum(quantile(self.curves(jobs), level), limits_s(jobs))
        return found

    def means_s(self, jobs: Sequence[Job], most_s: float) -> Reals:
        """Expected run time of each; longer than most_s, or than its time limit, counts as that. Shape (jobs,)."""
        if not jobs:
            return np.empty(0)
        curve_of, curves = self._distinct(jobs)
        longest_s, longest_of = np.unique(np.minimum(limits_s(jobs), most_s), return_inverse=True)
        # Thousands of jobs have a few curves and limits.
        pairs, at = np.unique(curve_of * len(longest_s) + longest_of, return_inverse=True)
        found: Reals = mean_s(curves[pairs // len(longest_s)], longest_s[pairs % len(longest_s)])[at]
        return found

    def left_s(self, jobs: Sequence[Job], elapsed_s: Reals) -> Reals:
        """Seconds that each is expected to go on, after so many. Shapes (jobs,)."""
        left = np.maximum(limits_s(jobs) - elapsed_s, 0.0)
        return np.minimum(mean_left_s(self.curves(jobs), elapsed_s), left)

    def curves(self, jobs: Sequence[Job]) -> Reals:
        """Shape (jobs, BINS + 1): `survival`. O(jobs), and O(blocks) for each campaign that is asked for the first time."""
        curve_of, curves = self._distinct(jobs)
        return curves[curve_of]

    def _distinct(self, jobs: Sequence[Job]) -> tuple[Ints, Reals]:
        """The curve of each job, shape (jobs,), in those that differ, shape (curves, BINS + 1)."""
        rows: dict[_Group, list[int]] = {}
        for row, job in enumerate(jobs):
            rows.setdefault(_group(job), []).append(row)
        keys: list[tuple[_Group, int]] = [((), 0)] * len(jobs)
        hazards = list[Reals]()
        new = list[tuple[_Group, int]]()
        for group, mine in rows.items():
            number = self._at.get(group)
            # A group of which nobody has run yet is like the narrowest one that is known.
            known = number is not None and bool(self._taught[number])
            like = group if known else tuple(_wider(group))[-1]
            blocks = self._blocks(group, [jobs[row].submit_s for row in mine]) if known else [0] * len(mine)
            for row, block in zip(mine, blocks, strict=True):
                keys[row] = like, block
            if missing := [block for block in dict.fromkeys(blocks) if (like, block) not in self._curves]:
                hazards.append(self._hazards(group, np.array(missing)) if known else self._base(group)[None])
                for block in missing:
                    self._curves[like, block] = _NONE
                    new.append((like, block))
        if new:
            self._curves.update(zip(new, survival(np.concatenate(hazards)), strict=True))
        at = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        curves: Reals = np.array([self._curves[key] for key in at]).reshape(-1, BINS + 1)
        return np.array([at[key] for key in keys], np.int64), curves

    def _base(self, group: _Group) -> Reals:
        """Shape (BINS,): the hazards of the coarser groups, each with the one before as prior."""
        nobody = np.zeros(BINS)
        found = self._bases.get(())
        if found is None:
            # A tenth of an end in each second bin, of two jobs: every run time is possible, none is likely.
            found = self._bases[()] = (self._all + 1e-3) / (at_risk(self._all, nobody) + 2e-2)
        for wider in _wider(group):
            if wider not in self._bases:
                ended, prior = self._ended_of[self._members.get(wider, [])].sum(axis=0), self._learning.prior_wider
                self._bases[wider] = (ended + prior * found) / (at_risk(ended, nobody) + prior)
            found = self._bases[wider]
        return found

    def _blocks(self, group: _Group, submit_s: Sequence[float]) -> list[int]:
        number = self._at[group]
        submits = self._submit_s[self._first[number] : self._first[number + 1]]
        rank = submits.searchsorted(submit_s, side="right") - 1
        found: list[int] = (np.maximum(rank, 0) // self._learning.block).tolist()
        return found

    def _hazards(self, group: _Group, blocks: Ints) -> Reals:
        """Shape (blocks, BINS): the chance that a job which reached a bin ends in it."""
        learning = self._learning
        base, number = self._base(group), self._at[group]
        rows = slice(self._first[number], self._first[number + 1])
        count = int(rows.stop - rows.start)
        last = (count - 1) // learning.block
        held = min(last + 1, learning.blocks_max)
        block = np.arange(count) // learning.block - (last + 1 - held)
        bins, over = self._bin[rows], self._has_ended[rows]
        # Of older ones those count who still run: that they do is news.
        counts = (block >= 0) | ~over
        block, bins, over = np.maximum(block[counts], 0), bins[counts], over[counts]
        ended, censored = np.zeros((held, BINS)), np.zeros((held, BINS))
        np.add.at(ended, (block[over], bins[over]), 1.0)
        runs = ~over & (bins >= 0)
        np.add.at(censored, (block[runs], bins[runs]), 1.0)
        risk = at_risk(ended, censored)
        gap = np.abs(np.maximum(blocks - (last + 1 - held), 0)[:, None] - np.arange(held))
        wide, near = learning.wide**gap, learning.near**gap
        of_group = (wide @ ended + learning.prior_group * base) / (wide @ risk + learning.prior_group)
        found: Reals = (near @ ended + learning.prior_campaign * of_group) / (near @ risk + learning.prior_campaign)
        return found


def _group(job: Job) -> _Group:
    return job.queue, job.user, job.key, job.gpus


def _wider(group: _Group) -> Iterable[_Group]:
    """Coarser groups, the coarsest first; those that say no more than the one before are left out."""
    queue, user, key, gpus = group
    yield (gpus,)
    if queue and (user or key):
        yield queue, gpus
    if user and key:
        yield queue, user, gpus


def _limit_s(job: Job) -> float:
    return np.inf if job.time_limit_s is None else job.time_limit_s


def limits_s(jobs: Sequence[Job]) -> Reals:
    """Time limits, inf where there is none. Shape (jobs,)."""
    return np.array([_limit_s(job) for job in jobs], np.float64)
