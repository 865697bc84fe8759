"""The walk of one planning cycle: over what is free now, and what is kept of it for those who wait."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from switchgear.planner.fleet import Fleet, Mask
from switchgear.planner.future import Kept, Times, withhold, without
from switchgear.planner.gangs import find, seats_for
from switchgear.planner.holdings import Holdings
from switchgear.planner.mix import Mix
from switchgear.planner.model import (
    Cause,
    Decisions,
    Job,
    Near,
    NoRoom,
    Preempt,
    Running,
    Seat,
    Snapshot,
    Start,
    Task,
    Wait,
)
from switchgear.planner.packing import Packer
from switchgear.planner.quota import Ledger
from switchgear.planner.reservations import open_to, spared
from switchgear.planner.victims import victims

#: Jobs that seats are kept for, at most: each costs a search through what ends when.
KEPT_MAX = 8
#: Jobs for which others may be asked to leave in one cycle; the next one goes on.
SEARCHES_MAX = 16

#: What makes two jobs alike in where they fit, but for how many tasks they have.
_Kind = tuple[Task, bool, tuple[Near, ...], tuple[tuple[str, float], ...], frozenset[str], int]


class Cycle:
    """Jobs are considered one after the other, each on what those before it leave."""

    def __init__(self, snapshot: Snapshot, mix: Mix, now_s: float) -> None:
        self._snapshot, self._now_s = snapshot, now_s
        self.ledger = Ledger(snapshot)
        #: What is free now, and what of it is kept for nobody: one and the same until something is kept until a time.
        self._free = self._open = Packer(
            Fleet(snapshot.nodes, snapshot.levels, snapshot.running, snapshot.pending), mix
        )
        self._kept = Kept(self._free.fleet)
        self._kept_from_s = np.inf
        self._keeps_left, self._searches_left = KEPT_MAX, SEARCHES_MAX
        #: Nothing is freed within a cycle: what did not fit once does not later. Kind -> tasks, and why.
        self._refused: dict[_Kind, tuple[int, NoRoom]] = {}
        self._unmoved: set[tuple[_Kind, int, str, int]] = set()
        self._masks: dict[tuple[object, ...], tuple[int, Mask]] = {}
        self._spared = spared(self._free.fleet, snapshot, now_s)
        self._named = frozenset[str]().union(*(one.jobs for one in snapshot.reservations))
        self._holdings: Holdings | None = None
        self._least_priority = min((one.job.priority for one in snapshot.running), default=np.inf)
        self._harvested = any(one.job.harvest for one in snapshot.running)
        self._starts: list[Start] = []
        self._preemptions: list[Preempt] = []
        self._waits: list[Wait] = []

    def consider(self, job: Job) -> None:
        """Starts it, makes room for it, keeps seats for it, or lets it wait."""
        gang = self._within_quota(job)
        refusal = gang if isinstance(gang, NoRoom) else self._start(gang)
        if refusal is None:
            return
        at_s = self._make_room(job)
        if at_s is not None:
            text = "others are asked to leave for it, at their next checkpoint where that is near"
            self._waits.append(Wait(job.name, Cause.PREEMPTING, text, at_s))
            return
        if not isinstance(gang, NoRoom):
            at_s = self._keep(gang)
        elif self._starves(job):
            # Its queue goes to nobody behind it, so that it is free at last.
            self.ledger.charge(job, job.tasks_least * job.task.gpu_share)
        self._waits.append(Wait(job.name, refusal.cause, refusal.text, at_s))

    def decisions(self) -> Decisions:
        return Decisions(tuple(self._starts), tuple(self._preemptions), tuple(self._waits))

    def wait(self, wait: Wait) -> None:
        self._waits.append(wait)

    def _within_quota(self, job: Job) -> Job | NoRoom:
        """The job with as many tasks as its quota admits."""
        share = job.task.gpu_share
        refusal = self.ledger.admits(job, job.gpus)
        if refusal is None:
            return job
        least, most = job.tasks_least, job.tasks
        if least == most or self.ledger.admits(job, least * share) is not None:
            return refusal
        while most - least > 1:
            middle = (least + most) // 2
            if self.ledger.admits(job, middle * share) is None:
                least = middle
            else:
                most = middle
        return replace(job, tasks=least, tasks_min=job.tasks_least)

    def _start(self, job: Job) -> NoRoom | None:
        packer = self._free if self._now_s + self._bound_s(job) <= self._kept_from_s else self._open
        kind, mask = self._kind(job, packer)
        if not job.kept and (known := self._refused.get(kind)) and job.tasks_least >= known[0]:
            return known[1]
        seats = seats_for(packer, job, mask)
        if isinstance(seats, NoRoom):
            if packer is not self._free and not isinstance(find(self._free.fleet, job, mask), NoRoom):
                seats = NoRoom(
                    Cause.BEHIND, "it fits, on what is kept for jobs before it that could not start otherwise"
                )
            if not job.kept:
                self._refused[kind] = job.tasks_least, seats
            return seats
        kept = {seat for _, seat in job.kept}
        for seat in seats:
            if seat not in kept:
                self._take(packer, seat, job.task)
        self.ledger.charge(job, len(seats) * job.task.gpu_share)
        self._starts.append(Start(job, seats))
        return None

    def _take(self, packer: Packer, seat: Seat, task: Task) -> None:
        packer.take(seat, task)
        if self._free is not self._open:
            if packer is self._open:
                self._free.take(seat, task)
            else:
                withhold(self._open, self._open.fleet, seat, task)

    def _make_room(self, job: Job) -> float | None:
        """When those who leave for it are gone, now or from before; None when nobody does."""
        leaving = [one for one in self._snapshot.running if one.leaving and one.leaving_for == job.name]
        kind, mask = self._kind(job, self._open)
        if leaving and self._hold_of(job, leaving, mask):
            return self._now_s + self._snapshot.policy.checkpoint_wait_s
        search = kind, job.tasks_least, job.queue, job.priority
        if self._searches_left == 0 or search in self._unmoved or not self._outranks(job):
            return None
        self._searches_left -= 1
        if self._holdings is None:
            self._holdings = Holdings(self._free.fleet, self._snapshot.running)
        found = victims(self._open, self._snapshot, self.ledger, job, self._now_s, mask, self._holdings)
        if not found:
            self._unmoved.add(search)
            return None
        self.ledger.promise(job, job.tasks_least * job.task.gpu_share, found)
        self._preemptions.extend(found)
        chosen = {one.job for one in found}
        leaving += [one for one in self._snapshot.running if one.job.name in chosen]
        self._hold_of(job, leaving, mask)
        return max(one.by_s for one in found)

    def _outranks(self, job: Job) -> bool:
        """Whether anybody who runs may have the weaker claim; a quick look."""
        if not self._snapshot.policy.preemption or job.harvest:
            return False
        tree = self.ledger.tree
        guaranteed = tree.guaranteed[tree.path(tree.of(job))].max() > 0
        return bool(self._harvested or guaranteed or self._least_priority < job.priority)

    def _hold_of(self, job: Job, leaving: list[Running], mask: Mask) -> bool:
        """Keeps seats for it, with what these give up; False when that is not enough."""
        fleet = self._open.fleet
        later = without(fleet, Holdings(fleet, leaving), np.ones(len(leaving), bool))
        least = replace(job, tasks=job.tasks_least) if not job.kept else job
        seats = seats_for(Packer(later, self._open.mix), least, mask)
        if isinstance(seats, NoRoom):
            return False
        self._hold(seats, job.task, None)
        return True

    def _keep(self, job: Job) -> float | None:
        """Keeps seats for a job that starves or is large, of those who have them until they end; when it can be expected to start."""
        starves = self._starves(job)
        if self._keeps_left == 0 or not (starves or self._large(job)):
            return None
        self._keeps_left -= 1
        _, mask = self._kind(job, self._open)
        started = (Running(one.job, one.seats, self._now_s) for one in self._starts)
        holdings = Holdings(self._free.fleet, (*self._snapshot.running, *started))
        end_s: Times = np.array([self._end_s(one) for one in holdings.running], np.float64)
        # For one that starves by seniority: who ran before is gone one day, and who starts elsewhere until then changes nothing.
        turn_s = holdings.start_s if starves else end_s
        times = np.unique(turn_s)

        def later(at: int) -> Fleet:
            fleet = without(self._free.fleet, holdings, turn_s <= times[at])
            self._kept.off(fleet)
            return fleet

        low, high = 0, len(times) - 1
        if high < 0 or isinstance(find(later(high), job, mask), NoRoom):
            return None
        while low < high:
            middle = (low + high) // 2
            if isinstance(find(later(middle), job, mask), NoRoom):
                low = middle + 1
            else:
                high = middle
        seats = seats_for(Packer(later(low), self._free.mix), job, mask)
        if isinstance(seats, NoRoom):
            return None
        at_s = float(end_s[turn_s <= times[low]].max())
        self._hold(seats, job.task, None if starves else at_s)
        return at_s

    def _hold(self, seats: tuple[Seat, ...], task: Task, until_s: float | None) -> None:
        """The seats are kept: until then others may use them who end before, without a time nobody."""
        if until_s is not None:
            self._kept_from_s = min(self._kept_from_s, until_s)
            if self._open is self._free:
                self._open = self._free.copy()
        self._kept.add(self._free.fleet, seats, task)
        for seat in seats:
            withhold(self._open, self._open.fleet, seat, task)
            if until_s is None and self._free is not self._open:
                withhold(self._free, self._free.fleet, seat, task)

    def _kind(self, job: Job, packer: Packer) -> tuple[_Kind, Mask]:
        """What other jobs fit where it does, and the nodes that it may use for as long as it may run."""
        snapshot, bound_s = self._snapshot, self._bound_s(job)
        of = job.queue, job.name if job.name in self._named else "", bool(job.kept)
        begun = sum(one.start_s < self._now_s + bound_s for one in snapshot.reservations)
        known = self._masks.get((*of, begun))
        if known is None:
            mask = open_to(self._free.fleet, snapshot, job, self._now_s, bound_s)
            if not job.kept:
                mask &= ~self._spared
            same = [number for number, other in self._masks.values() if (other == mask).all()]
            known = self._masks[*of, begun] = same[0] if same else len(self._masks), mask
        number = known[0] if packer is self._open else -1 - known[0]
        return (job.task, job.one_a_node, job.near, tuple(job.speeds.items()), job.excluded, number), known[1]

    def _starves(self, job: Job) -> bool:
        return self._now_s - job.submit_s >= self._snapshot.policy.starving_s and not job.harvest

    def _large(self, job: Job) -> bool:
        """A gang on several nodes: what ends here and there makes no room for it by itself."""
        return job.tasks_least > 1 and not job.harvest

    def _bound_s(self, job: Job) -> float:
        return np.inf if job.time_limit_s is None else job.time_limit_s

    def _end_s(self, one: Running) -> float:
        bound_s = one.start_s + self._bound_s(one.job)
        return bound_s if np.isfinite(bound_s) else self._now_s + max(self._now_s - one.start_s, 60.0)
