"""What would start a waiting job now: changes that were tried out by planning with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from switchgear.planner.changes import Change, End, Set, SetQueue, apply
from switchgear.planner.defrag import moves_for
from switchgear.planner.model import Cause, Decisions, Job, NoRoom, Preempt
from switchgear.planner.openings import openings
from switchgear.planner.plan import plan
from switchgear.planner.relaxations import relaxations
from switchgear.planner.standing import Standing
from switchgear.planner.wording import amount, named

#: Proposals for one job: more is no help.
PROPOSALS_MAX = 5
#: Plans that are made to find them; fewer where nodes and jobs are more than `_SIZE` / so many, since each plan takes a second there.
PROOFS_MAX, _PROOFS_LEAST = 16, 6
_SIZE = 100_000
#: Ways to let a job in, tried together with the end of others when nothing alone does, and rounds in which more others wait for it.
_TOGETHER_MAX = 6


@dataclass(frozen=True, slots=True)
class Proposal:
    """With these changes the job starts now: planned, not guessed. text: goes on from `it would start now …`.

    cost_gpu_s: work that others would do again. instead_of: jobs that start now as things are, and would not. As text it is a line that
    `changes.parse` reads.
    """

    changes: tuple[Change, ...]
    text: str
    cost_gpu_s: float = 0.0
    instead_of: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "; ".join(map(str, self.changes))


@dataclass(frozen=True, slots=True)
class _Idea:
    changes: tuple[Change, ...]
    text: str
    cost_gpu_s: float = 0.0


def proposals(standing: Standing, job: Job, causes: Iterable[NoRoom], before: tuple[str, ...]) -> tuple[Proposal, ...]:
    """What would start it now, the cheapest first; at most `PROPOSALS_MAX`.

    First by what others lose, then by how many start later for it, then by what the job gives up: a hold, time, nearness, the size of its pieces,
    labels, GPU models, CPUs and memory, its queue, its size, its rank; then what operators can do. Of each kind the smallest change that
    helps. causes: why it waits. before: jobs that start or wait in its stead. At most `PROOFS_MAX` plans.
    """
    return _Search(standing, job, {one.cause for one in causes}, before).found()


class _Search:
    def __init__(self, standing: Standing, job: Job, causes: set[Cause], before: tuple[str, ...]) -> None:
        self._standing, self._causes, self._before = standing, causes, before
        snapshot = standing.snapshot
        size = len(snapshot.nodes) + len(snapshot.pending) + len(snapshot.running)
        self._proofs_left = min(max(_SIZE // max(size, 1), _PROOFS_LEAST), PROOFS_MAX)
        #: On a large fleet those who wait as things are are taken to wait on, once the job has started.
        self._then = standing.starts if self._proofs_left < PROOFS_MAX else None
        self._name = job.name
        #: The plan that was made last.
        self._tried = standing.decisions
        self._released = tuple(_release(job, standing))
        #: The job without what keeps it from being looked at.
        self._job = Set(job.name, self._released).of(job)

    def found(self) -> tuple[Proposal, ...]:
        if self._released and (alone := self._prove(self._of_job((), f"if {_in_words(self._released)}"))):
            return (alone,)
        proven: list[Proposal] = []
        for series in self._series():
            if (proposal := next(filter(None, map(self._prove, series)), None)) is not None:
                proven.append(proposal)
            if len(proven) == PROPOSALS_MAX:
                break
        if not proven:
            self._proofs_left = max(self._proofs_left, _PROOFS_LEAST)
            proven = list(islice(filter(None, map(self._prove, self._together())), 1))
        return tuple(sorted(proven, key=lambda one: (one.cost_gpu_s, len(one.instead_of))))

    def _series(self) -> Iterator[Iterable[_Idea]]:
        """Kinds of changes, cheapest kind first; within a kind the smallest first, of which the first that helps is taken."""
        job, standing = self._job, self._standing
        fits = standing.place(job) is not None
        for kind in relaxations(standing, job, self._causes):
            if fits and standing.admits(job) is None and not kind.helps_behind:
                continue
            yield (
                self._of_job(settings, text)
                for settings, text in kind.ways
                if standing.startable(Set(job.name, settings).of(job))
            )
        if self._before or Cause.BEHIND in self._causes:
            yield self._ahead()
        for changes, text in openings(standing, job):
            yield [_Idea((*self._release(), *changes), text)]
        yield (self._limits(),) if Cause.QUOTA in self._causes else ()
        yield self._moves()
        yield self._ends()

    def _of_job(self, settings: tuple[tuple[str, str], ...], text: str) -> _Idea:
        return _Idea((Set(self._name, (*self._released, *settings)),), text)

    def _release(self) -> tuple[Change, ...]:
        return (Set(self._name, self._released),) if self._released else ()

    def _ahead(self) -> Iterator[_Idea]:
        """Before those that go before it."""
        top = self._top()
        if top > self._job.priority:
            yield self._of_job((("priority", str(top)),), f"with priority {top} instead of {self._job.priority}")
        if self._before:
            held = tuple(Set(name, (("hold", "yes"),)) for name in self._before)
            yield _Idea((*self._release(), *held), f"if {named(self._before)} waited instead")

    def _top(self) -> int:
        return 1 + max(job.priority for job in self._standing.snapshot.pending)

    def _limits(self) -> _Idea:
        """Queues whose limits are in the way have higher ones."""
        ledger, job, tree = self._standing.ledger, self._job, self._standing.ledger.tree
        more = job.tasks_least * job.task.gpu_share - ledger.charged(job)
        raised = [
            (tree.names[queue], float(ledger.used[queue] + more))
            for queue in tree.path(tree.of(job)).tolist()
            if ledger.used[queue] + more > tree.limit[queue]
        ]
        changes = tuple(SetQueue(name, (("limit", f"{limit:.9g}"),)) for name, limit in raised)
        text = " and ".join(f"{name} might have {limit:g} GPUs" for name, limit in raised)
        return _Idea((*self._release(), *changes), f"if {text}")

    def _moves(self) -> Iterator[_Idea]:
        moves = moves_for(self._standing, self._job)
        if moves:
            cost = sum(cost for _, cost in moves)
            text = f"if {named([change.job for change, _ in moves])} moved to other nodes, which costs {amount(cost)}"
            yield _Idea((*self._release(), *(change for change, _ in moves)), text, cost)

    def _ends(self) -> Iterator[_Idea]:
        running = [one.job for one in self._standing.snapshot.running]
        willing = [job.name for job in running if job.preemptible]
        for among in (willing, [job.name for job in running])[: 1 + (len(willing) < len(running))]:
            ends = self._standing.stops(self._job, among, wait_s=0.0)
            if ends:
                yield self._ending(ends, (), "")

    def _ending(self, gone: tuple[Preempt, ...], settings: tuple[tuple[str, str], ...], lead: str) -> _Idea:
        """Who runs is ended, and who starts now waits instead."""
        ended = [one for one in gone if one.job not in self._standing.starts]
        held = [one.job for one in gone if one.job in self._standing.starts]
        cost = sum(one.lost_gpu_s for one in ended)
        changes: list[Change] = [Set(self._name, (*self._released, *settings))] if self._released or settings else []
        changes += [Set(name, (("hold", "yes"),)) for name in held]
        parts = [lead] if lead else []
        if ended:
            changes.append(End(tuple(one.job for one in ended)))
            parts.append(f"if {named([one.job for one in ended])} ended, which loses {amount(cost)}")
        if held:
            parts.append(f"if {named(held)} waited instead")
        return _Idea(tuple(changes), ", and ".join(parts), cost)

    def _together(self) -> Iterator[_Idea]:
        """Less of it, the end of others, and before all others."""
        standing, job, top = self._standing, self._job, str(self._top())
        everybody = [one.job.name for one in (*standing.snapshot.running, *standing.starting)]
        ways = [((), ""), *_possible(standing, job, self._causes)]
        for settings, text in ways[:_TOGETHER_MAX]:
            ends = standing.stops(Set(job.name, settings).of(job), everybody, wait_s=0.0)
            if ends is None:
                continue
            first = text + " and " * bool(text) + f"with priority {top}"
            idea = self._ending(ends, (*settings, ("priority", top)), first)
            for _ in range(_TOGETHER_MAX):
                yield idea
                held = {change.job for change in idea.changes if isinstance(change, Set)}
                ahead = [one.job.name for one in self._tried.starts if one.job.name not in held]
                if not ahead:
                    break
                others = tuple(Set(name, (("hold", "yes"),)) for name in ahead)
                idea = replace(
                    idea, changes=(*idea.changes, *others), text=f"{idea.text}, and if {named(ahead)} waited instead"
                )

    def _prove(self, idea: _Idea) -> Proposal | None:
        if self._proofs_left == 0 or not idea.changes:
            return None
        self._proofs_left -= 1
        standing = self._standing
        changed = apply(standing.snapshot, idea.changes)
        after = self._tried = plan(changed, standing.now_s, told=False, only_if=self._name, then=self._then)
        started = {start.job.name for start in after.starts}
        if self._name not in started:
            return None
        instead_of = tuple(name for name in standing.starts if name not in started)
        more = _more(standing.decisions, after)
        text = idea.text
        if more:
            text += f"; {named([one.job for one in more])} would have to leave"
        named_already = {change.job for change in idea.changes if isinstance(change, Set)}
        if unsaid := [name for name in instead_of if name not in named_already]:
            text += f"; {named(unsaid)} would not start now"
        return Proposal(idea.changes, text, idea.cost_gpu_s + sum(one.lost_gpu_s for one in more), instead_of)


def _possible(standing: Standing, job: Job, causes: set[Cause]) -> list[tuple[tuple[tuple[str, str], ...], str]]:
    """Ways to ask for less that an empty fleet could hold."""
    idle = Standing(replace(standing.snapshot, running=(), pending=()), Decisions(), standing.now_s)
    return [
        way
        for kind in relaxations(idle, job, causes)
        for way in islice((way for way in kind.ways if idle.startable(Set(job.name, way[0]).of(job))), 1)
    ]


def _release(job: Job, standing: Standing) -> Iterator[tuple[str, str]]:
    """Settings without which it is not even looked at."""
    if job.held:
        yield "hold", "no"
    if job.not_before_s > standing.now_s:
        yield "not-before", "now"
    live = {one.name for one in standing.snapshot.pending} | {one.job.name for one in standing.snapshot.running}
    if job.after & live:
        yield "after", "none"


def _in_words(released: Iterable[tuple[str, str]]) -> str:
    words = {
        "hold": "it were not held",
        "not-before": "it need not wait for its time",
        "after": "it did not come after others",
    }
    return " and ".join(words[key] for key, _ in released)


def _more(before: Decisions, after: Decisions) -> list[Preempt]:
    """Who would have to leave and does not as things are."""
    known = {one.job for one in before.preemptions}
    return [one for one in after.preemptions if one.job not in known]
