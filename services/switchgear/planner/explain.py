"""Why a job waits, what would start it now, and when it starts otherwise; or why a job is where it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from switchgear.core.errors import NotFound
from switchgear.planner.diagnose import Diagnosis
from switchgear.planner.fleet import Fleet
from switchgear.planner.gangs import seats_for
from switchgear.planner.mix import Mix
from switchgear.planner.model import Cause, Decisions, Job, NoRoom, Running, Snapshot, Start, Wait
from switchgear.planner.packing import Packer
from switchgear.planner.plan import plan
from switchgear.planner.proposals import Proposal, proposals
from switchgear.planner.reasons import why_here
from switchgear.planner.standing import Standing
from switchgear.planner.wording import duration, named

#: Why a job is not even looked at.
_OBSTACLES = frozenset({Cause.HELD, Cause.NOT_YET, Cause.DEPENDENCY})


@dataclass(frozen=True, slots=True)
class Explanation:
    """Of one job. text: the binding cause, or why it is where it is, in a sentence.

    causes: what keeps it from starting, the binding one first; empty when it starts or runs. changes: what would start it now, the cheapest
    first, each tried out. start_s: when it is expected to start as things are, four of five outcomes between low and high; None: cannot
    be said.
    """

    job: str
    text: str
    causes: tuple[NoRoom, ...] = ()
    changes: tuple[Proposal, ...] = ()
    start_s: float | None = None
    start_low_s: float | None = None
    start_high_s: float | None = None


def explain(snapshot: Snapshot, name: str, now_s: float) -> Explanation:
    """Why the job waits and what would start it, or why it is where it is.

    About as long as the plans that it takes: one, another with the job alone, and up to `proposals.PROOFS_MAX` to try changes out. Raises NotFound
    when no such job waits or runs.
    """
    for one in snapshot.running:
        if one.job.name == name:
            return Explanation(name, _why_there(snapshot, one, now_s))
    job = next((job for job in snapshot.pending if job.name == name), None)
    if job is None:
        raise NotFound(name)
    decisions = plan(snapshot, now_s)
    standing = Standing(snapshot, decisions, now_s)
    start = next((start for start in decisions.starts if start.job.name == name), None)
    if start is not None:
        return Explanation(name, f"it starts now {why_here(standing.fleet, start.job, start.seats)}")
    wait = next(wait for wait in decisions.waits if wait.job == name)
    alone = _alone(snapshot, job, now_s)
    before = _before(standing, job, alone) if alone else ()
    causes = tuple(_causes(standing, job, wait, alone, before))
    changes = proposals(standing, job, causes, before)
    return Explanation(name, causes[0].text, causes, changes, wait.start_s, wait.start_low_s, wait.start_high_s)


def _alone(snapshot: Snapshot, job: Job, now_s: float) -> Start | None:
    """Its start if nobody else waited."""
    starts = plan(replace(snapshot, pending=(job,)), now_s, told=False).starts
    return next((start for start in starts if start.job.name == job.name), None)


def _causes(standing: Standing, job: Job, wait: Wait, alone: Start | None, before: tuple[str, ...]) -> Iterator[NoRoom]:
    """The binding cause first; then what would bind without it."""
    told = NoRoom(wait.cause, wait.text)
    if wait.cause in _OBSTACLES:
        yield told
        yield from _after_release(standing, job)
        return
    if alone is not None:
        yield NoRoom(Cause.BEHIND, _behind(standing, before))
    elif wait.cause is Cause.PREEMPTING:
        yield told
    found = Diagnosis(standing.fleet, standing.snapshot, standing.now_s).causes(job, standing.mask(job))
    quota = standing.admits(job)
    if found[0].cause is Cause.IMPOSSIBLE:
        yield found[0]
    if quota is not None:
        yield quota
    for one in found:
        if one.cause is Cause.BEHIND:
            if alone is None and quota is None and wait.cause is not Cause.PREEMPTING:
                yield told
        elif one.cause is not Cause.IMPOSSIBLE:
            yield one


def _after_release(standing: Standing, job: Job) -> Iterator[NoRoom]:
    """What would keep it from starting if it were not held and need not wait for anything."""
    free = replace(job, held="", not_before_s=0.0, after=frozenset())
    pending = tuple(free if one.name == job.name else one for one in standing.snapshot.pending)
    snapshot = replace(standing.snapshot, pending=pending)
    decisions = plan(snapshot, standing.now_s)
    for wait in decisions.waits:
        if wait.job == job.name:
            alone = _alone(snapshot, free, standing.now_s)
            then = Standing(snapshot, decisions, standing.now_s)
            yield from _causes(then, free, wait, alone, _before(then, free, alone) if alone else ())


def _before(standing: Standing, job: Job, alone: Start) -> tuple[str, ...]:
    """Who starts, or has seats kept, where the job would go if nobody else waited."""
    nodes = {seat.node for seat in alone.seats}
    starts = standing.decisions.starts
    there = [start.job.name for start in starts if any(seat.node in nodes for seat in start.seats)]
    if there:
        return tuple(there)
    if standing.admits(job) is not None:
        same = [start.job.name for start in starts if start.job.queue == job.queue]
        return tuple(same or (start.job.name for start in starts))
    waits = standing.decisions.waits
    at = next(number for number, wait in enumerate(waits) if wait.job == job.name)
    ahead = [wait.job for wait in waits[:at] if wait.cause not in _OBSTACLES]
    return tuple([wait.job for wait in waits[:at] if wait.start_s is not None] or ahead)


def _behind(standing: Standing, before: tuple[str, ...]) -> str:
    if not before:
        return "it would fit now, and others go before it"
    if before[0] in standing.starts:
        return f"it would start now if others did not start before it: {named(before)}"
    since = [standing.now_s - job.submit_s for job in standing.snapshot.pending if job.name == before[0]]
    waited = f", of which the first has waited for {duration(since[0])}" if since else ""
    return f"it would fit now, on what is kept for those before it: {named(before)}{waited}"


def _why_there(snapshot: Snapshot, one: Running, now_s: float) -> str:
    """Where it is and why, and whether it would go there again."""
    fleet = Fleet(snapshot.nodes, snapshot.levels, snapshot.running, snapshot.pending)
    text = f"it has run for {duration(now_s - one.start_s)} {why_here(fleet, one.job, one.seats)}"
    if one.leaving:
        return text + (f"; it is leaving for {one.leaving_for}" if one.leaving_for else "; it is leaving for another")
    for seat in one.seats:
        fleet.give(seat, one.job.task)
    standing = Standing(snapshot, Decisions(), now_s)
    packer = Packer(fleet, Mix.of([(one.job.task, 1.0)]))
    now = seats_for(packer, replace(one.job, kept=(), held=""), standing.mask(one.job))
    if isinstance(now, NoRoom):
        return f"{text}; it would find no room now: {now.text}"
    if {seat.node for seat in now} == {seat.node for seat in one.seats}:
        return f"{text}; it would be placed there again now"
    return f"{text}; today it would be placed {why_here(fleet, one.job, now)}"
