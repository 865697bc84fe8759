"""The walk of one planning cycle: over what is free now, and what is kept of it for those who wait."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from switchgear.planner.backfill import Backfill
from switchgear.planner.diagnose import Diagnosis
from switchgear.planner.emptying import Emptying
from switchgear.planner.fleet import Fleet, Mask, Reals
from switchgear.planner.future import Kept, withhold, without
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
from switchgear.planner.quota import ROUNDING_GPUS, Ledger
from switchgear.planner.reasons import why_here
from switchgear.planner.reservations import open_to, spared
from switchgear.planner.runtimes import RunTimes
from switchgear.planner.victims import victims

#: Jobs that seats are kept for, at most: each costs a search through what ends when.
KEPT_MAX = 8
#: Jobs for which others may be asked to leave in one cycle, since a search takes up to a fifth of a second; the next cycle goes on.
SEARCHES_MAX = 3

#: Nodes with so many free GPUs are counted again after so many starts: until then there are fewer of them, not more.
COUNTED_STARTS = 64
#: Ends of what starts in a cycle are worked out again when there is so much more of it.
MORE_STARTS = 1.25
#: Kinds of jobs whose cause is looked for; the others are told what was counted on the way.
DIAGNOSED_MAX = 32

#: What makes two jobs alike in where they fit, but for how many tasks they have.
_Kind = tuple[Task, bool, tuple[Near, ...], tuple[tuple[str, float], ...], frozenset[str], int]


@dataclass(frozen=True, slots=True)
class _Terms:
    """end_s: when each of the holders is expected to end."""

    holdings: Holdings
    end_s: Reals


class Cycle:
    """Jobs are considered one after the other, each on what those before it leave."""

    def __init__(self, snapshot: Snapshot, mix: Mix, run_times: RunTimes, now_s: float) -> None:
        self._snapshot, self._now_s = snapshot, now_s
        self.ledger = Ledger(snapshot)
        #: What is free now, and what of it is kept for nobody: one and the same until something is kept until a time.
        self._free = self._open = Packer(
            Fleet(snapshot.nodes, snapshot.levels, snapshot.running, snapshot.pending), mix
        )
        self._kept = Kept(self._free.fleet)
        #: Until when others may have what is kept of each node; inf: nothing is, or it is kept from everybody. And all such times.
        self._until_s: Reals = np.full(len(snapshot.nodes), np.inf)
        self._times = list[float]()
        self._keeps_left, self._searches_left = KEPT_MAX, SEARCHES_MAX
        #: Nothing is freed within a cycle: what did not fit once does not later. Kind, and the last time that it does not end before -> tasks, and why.
        self._refused: dict[tuple[_Kind, float], tuple[int, NoRoom]] = {}
        #: Without everybody who may have a weaker claim than jobs of this priority that reclaim or do not; and whether there is anybody.
        self._cleared: dict[tuple[int, bool], tuple[Fleet, bool]] = {}
        self._unmoved: set[tuple[_Kind, int, str, int]] = set()
        #: The kind that was asked for last.
        self._last: tuple[Job, tuple[_Kind, Mask]] | None = None
        #: Starts when nodes were counted by free GPUs, and how many have at least so many.
        self._counted, self._with_free = -COUNTED_STARTS, list[int]()
        self._masks: dict[tuple[object, ...], tuple[int, Mask]] = {}
        self._spared = spared(self._free.fleet, snapshot, now_s)
        self._leaving: dict[str, list[Running]] = defaultdict(list)
        for one in snapshot.running:
            if one.leaving:
                self._leaving[one.leaving_for].append(one)
        self._named = frozenset[str]().union(*(one.jobs for one in snapshot.reservations))
        self._holdings = Holdings(self._free.fleet, snapshot.running)
        self._backfill = Backfill(run_times, snapshot.pending, now_s)
        #: Of those who run and of those who start, what they hold, since when and until when; None: not asked for yet.
        self._running_terms: _Terms | None = None
        self._starting_terms: _Terms | None = None
        #: None: not asked for yet.
        self._emptying: Emptying | None = None
        self._starts: list[Start] = []
        self._preemptions: list[Preempt] = []
        #: Who waits, why, and until when as far as that is known.
        self._refusals: list[tuple[Job, NoRoom, float | None]] = []
        #: What is free, whoever it is kept for: that of `_free` until something is kept from everybody.
        self._bare = self._free.fleet
        self._vacated = self._free.fleet.vacated()
        self._idle_ledger = Ledger(replace(snapshot, running=(), pending=()))
        self._holds: dict[tuple[object, ...], bool] = {}

    def consider(self, job: Job) -> None:
        """Starts it, makes room for it, keeps seats for it, or lets it wait."""
        gang = self._within_quota(job)
        refusal = gang if isinstance(gang, NoRoom) else self._start(job, gang)
        if refusal is None:
            return
        at_s = self._make_room(job)
        if at_s is not None:
            text = "others are asked to leave for it, at their next checkpoint where that is near"
            refusal = NoRoom(Cause.PREEMPTING, text)
        elif not isinstance(gang, NoRoom):
            at_s = self._keep(gang)
        elif self._starves(job) and self._possible(job):
            # Nobody behind it has of its queue what it waits for.
            self.ledger.charge(job, job.tasks_least * job.task.gpu_share)
        self._refusals.append((job, refusal, at_s))

    def decisions(self, *, told: bool = True) -> Decisions:
        """The waits in the order in which the jobs were considered, with causes as things stand after all starts.

        told: look for causes and reasons; otherwise causes are what was met on the way, and there are no reasons.
        """
        if not told:
            waits = [Wait(job.name, why.cause, why.text, at_s) for job, why, at_s in self._refusals]
            return Decisions(tuple(self._starts), tuple(self._preemptions), tuple(waits))
        diagnosis = Diagnosis(self._bare, self._snapshot, self._now_s)
        causes: dict[tuple[_Kind, int, int], NoRoom] = {}
        waits = []
        for job, why, at_s in self._refusals:
            kind, mask = self._kind(job)
            if why.cause is not Cause.PREEMPTING and (why.cause is not Cause.QUOTA or not self._holdable(job)):
                like = kind, job.tasks, job.tasks_least
                if job.kept:
                    why = diagnosis.cause(job, mask)
                elif like in causes:
                    why = causes[like]
                elif len(causes) < DIAGNOSED_MAX:
                    why = causes[like] = diagnosis.cause(job, mask)
            waits.append(Wait(job.name, why.cause, why.text, at_s))
        starts = (replace(one, reason=why_here(self._bare, one.job, one.seats)) for one in self._starts)
        return Decisions(tuple(starts), tuple(self._preemptions), tuple(waits))

    def _possible(self, job: Job) -> bool:
        """Whether it could start if nothing ran: if not, nobody leaves for it, and nothing is kept."""
        gpus = job.tasks_least * job.task.gpu_share
        return self._holdable(job) and self._idle_ledger.admits(job, gpus) is None

    def _holdable(self, job: Job) -> bool:
        """Whether the nodes that it may use would hold it if nothing ran."""
        kind, mask = self._kind(job)
        like = kind, job.tasks_least, job.kept
        if like not in self._holds:
            self._holds[like] = not isinstance(find(self._vacated, job, mask), NoRoom)
        return self._holds[like]

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

    def _start(self, job: Job, gang: Job) -> NoRoom | None:
        """gang: the job with the tasks that its quota admits."""
        kind, mask = self._kind(job)
        end_s = self._backfill.end_s(job)
        missed_s = max((time for time in self._times if time < end_s), default=-np.inf)
        if not job.kept and (known := self._refused.get((kind, missed_s))) and job.tasks_least >= known[0]:
            return known[1]
        found = self._scarce(job) or self._seats(gang, mask, end_s)
        if isinstance(found, NoRoom):
            if not job.kept:
                self._refused[kind, missed_s] = job.tasks_least, found
            return found
        packer, seats = found
        start = Start(job, seats)
        for seat in _fresh(start):
            self._take(packer, seat, job.task)
        if self._emptying is not None:
            self._emptying.add(self._rows(seats), end_s)
        self.ledger.charge(job, len(seats) * job.task.gpu_share)
        self._starts.append(start)
        return None

    def _seats(self, job: Job, mask: Mask, end_s: float) -> tuple[Packer, tuple[Seat, ...]] | NoRoom:
        """Where a job is put that ends then: also on what is kept from a later time on, else on what is kept for nobody."""
        packer, late = self._free, self._until_s < end_s
        seats = seats_for(packer, job, mask & ~late, self._worth(packer, job, end_s))
        if isinstance(seats, NoRoom) and late.any():
            packer = self._open
            seats = seats_for(packer, job, mask, self._worth(packer, job, end_s))
        return seats if isinstance(seats, NoRoom) else (packer, seats)

    def _worth(self, packer: Packer, job: Job, end_s: float) -> Reals | None:
        """How good nodes are for it by when they fall free whole; None: nobody knows, or shares are put where they fit best."""
        if not job.task.gpus or end_s == np.inf:
            return None
        if self._emptying is None:
            self._emptying = Emptying(len(packer.fleet), self._now_s)
            running, _ = self._terms()
            self._emptying.add(running.holdings.node, running.end_s[running.holdings.job])
            for start in self._starts:
                self._emptying.add(self._rows(start.seats), np.inf)
        return self._emptying.worth(end_s, packer.fleet.whole_free)

    def _scarce(self, job: Job) -> NoRoom | None:
        """A refusal without a search, by how many nodes had so many GPUs free not long ago."""
        fleet, gpus = self._bare, job.task.gpus
        if not gpus or gpus > fleet.gpu_free.shape[1]:
            return None
        if len(self._starts) >= self._counted + COUNTED_STARTS:
            self._counted = len(self._starts)
            sizes = np.arange(fleet.gpu_free.shape[1] + 1)
            self._with_free = (fleet.whole_free[fleet.open, None] >= sizes).sum(axis=0).tolist()
        nodes = self._with_free[gpus]
        needs = job.tasks_least - len(job.kept) if job.one_a_node else 1
        if nodes >= needs or job.tasks_least <= len(job.kept):
            return None
        return NoRoom(Cause.GPUS, f"{nodes} nodes have {gpus} GPUs free, and it needs {needs} of them")

    def _take(self, packer: Packer, seat: Seat, task: Task) -> None:
        if self._bare is not self._free.fleet:
            self._bare.take(seat, task)
        packer.take(seat, task)
        if self._free is not self._open:
            if packer is self._open:
                self._free.take(seat, task)
            else:
                withhold(self._open, self._open.fleet, seat, task)

    def _make_room(self, job: Job) -> float | None:
        """When those who leave for it are gone, now or from before; None when nobody does."""
        leaving = self._leaving[job.name]
        kind, mask = self._kind(job)
        if leaving and self._hold_of(job, leaving, mask):
            return self._now_s + self._snapshot.policy.checkpoint_wait_s
        search = kind, job.tasks_least, job.queue, job.priority
        if self._searches_left == 0 or search in self._unmoved:
            return None
        if not self._may_find_room(job) or not self._possible(job):
            self._unmoved.add(search)
            return None
        self._searches_left -= 1
        found = victims(self._open, self._snapshot, self.ledger, job, self._now_s, mask, self._holdings)
        if not found:
            self._unmoved.add(search)
            return None
        self.ledger.promise(job, job.tasks_least * job.task.gpu_share, found)
        self._preemptions.extend(found)
        chosen = {one.job for one in found}
        leaving.extend(one for one in self._snapshot.running if one.job.name in chosen)
        self._hold_of(job, leaving, mask)
        return max(one.by_s for one in found)

    def _may_find_room(self, job: Job) -> bool:
        """Whether it would fit if everybody left who may have the weaker claim (`claims.Claim`): a quick look before a search."""
        if not self._snapshot.policy.preemption or job.harvest:
            return False
        ledger = self.ledger
        path = ledger.tree.path(ledger.tree.of(job))[1:]
        more = job.tasks_least * job.task.gpu_share - ledger.charged(job)
        reclaims = bool((ledger.used[path] + more <= ledger.tree.guaranteed[path] + ROUNDING_GPUS).any())
        cleared = self._cleared.get((job.priority, reclaims))
        if cleared is None:
            holdings, policy = self._holdings, self._snapshot.policy
            weaker = holdings.harvest | (holdings.priority < job.priority) | reclaims
            weaker &= ~holdings.stays & (holdings.start_s <= self._now_s - policy.guaranteed_run_s)
            cleared = without(self._bare, holdings, weaker), bool(weaker.any())
            self._cleared[job.priority, reclaims] = cleared
        fleet, any_weaker = cleared
        return any_weaker and not isinstance(find(fleet, job, self._kind(job)[1]), NoRoom)

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
        if self._keeps_left == 0 or not (starves or self._large(job)) or not self._possible(job):
            return None
        self._keeps_left -= 1
        _, mask = self._kind(job)
        terms = self._terms()
        # For one that starves by seniority: who ran before is gone one day, and who starts elsewhere until then changes nothing.
        turns = [one.holdings.start_s if starves else one.end_s for one in terms]
        times = np.unique(np.concatenate(turns))

        def later(at: int) -> Fleet:
            fleet = self._bare
            for one, turn_s in zip(terms, turns, strict=True):
                fleet = without(fleet, one.holdings, turn_s <= times[at])
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
        at_s = max(
            float(one.end_s[turn_s <= times[low]].max(initial=self._now_s))
            for one, turn_s in zip(terms, turns, strict=True)
        )
        self._hold(seats, job.task, None if starves else at_s)
        return at_s if np.isfinite(at_s) else None

    def _terms(self) -> tuple[_Terms, _Terms]:
        """Of who runs, and of who starts now."""
        if self._running_terms is None:
            self._running_terms = _Terms(self._holdings, self._backfill.ends_s(self._holdings.running))
        # Not after each start: those that came since are taken for ones that do not end, for as long as they are few.
        if self._starting_terms is None or len(self._starts) > len(self._starting_terms.holdings) * MORE_STARTS:
            starting = tuple(Running(one.job, one.seats, self._now_s) for one in self._starts)
            self._starting_terms = _Terms(Holdings(self._bare, starting), self._backfill.ends_s(starting))
        return self._running_terms, self._starting_terms

    def _hold(self, seats: tuple[Seat, ...], task: Task, until_s: float | None) -> None:
        """The seats are kept: until then others may use them who end before, without a time nobody."""
        if until_s is not None:
            if self._open is self._free:
                self._open = self._free.copy()
            rows = self._rows(seats)
            self._until_s[rows] = np.minimum(self._until_s[rows], until_s)
            self._times.append(until_s)
        elif self._bare is self._free.fleet:
            self._bare = self._bare.copy()
        self._kept.add(self._free.fleet, seats, task)
        for seat in seats:
            withhold(self._open, self._open.fleet, seat, task)
            if until_s is None and self._free is not self._open:
                withhold(self._free, self._free.fleet, seat, task)

    def _rows(self, seats: Iterable[Seat]) -> list[int]:
        return [self._free.fleet.at[seat.node] for seat in seats if seat.node in self._free.fleet.at]

    def _kind(self, job: Job) -> tuple[_Kind, Mask]:
        """What other jobs fit where it does, and the nodes that it may use for as long as it may run."""
        if self._last and self._last[0] is job:
            return self._last[1]
        snapshot = self._snapshot
        bound_s = np.inf if job.time_limit_s is None else job.time_limit_s
        of = job.queue, job.name if job.name in self._named else "", bool(job.kept)
        begun = sum(one.start_s < self._now_s + bound_s for one in snapshot.reservations)
        known = self._masks.get((*of, begun))
        if known is None:
            mask = open_to(self._free.fleet, snapshot, job, self._now_s, bound_s)
            if not job.kept:
                mask &= ~self._spared
            same = [number for number, other in self._masks.values() if (other == mask).all()]
            known = self._masks[*of, begun] = same[0] if same else len(self._masks), mask
        kind = job.task, job.one_a_node, job.near, tuple(job.speeds.items()), job.excluded, known[0]
        found = kind, known[1]
        self._last = job, found
        return found

    def _starves(self, job: Job) -> bool:
        return self._now_s - job.submit_s >= self._snapshot.policy.starving_s and not job.harvest

    def _large(self, job: Job) -> bool:
        """As large as a node, or on several: what ends here and there makes no room for it by itself."""
        return not job.harvest and job.tasks_least * job.task.gpu_share >= self._free.fleet.gpu_free.shape[1] > 0


def _fresh(start: Start) -> Iterable[Seat]:
    """The seats that it did not keep."""
    kept = {seat for _, seat in start.job.kept}
    return (seat for seat in start.seats if seat not in kept)
