"""The life cycle of a job. Every function answers with the job as it is after the event."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from switchgear.core.errors import FailedPrecondition, Reason
from switchgear.scheduler.model import (
    ExcludedNode,
    JobRecord,
    JobState,
    Leaving,
    Lent,
    NodeRecord,
    NodeState,
    PlacedNode,
    PlacementRecord,
    Turn,
)
from switchgear.scheduler.placement import Request, Seat

_NOBODY = Leaving("", 0, 0)
_WAITS = "waits for its launcher on"
#: What is committed so soon after ranks were told to end was made because of that: recovery kills them 20 s after it has told them.
STOP_NS_MAX = 30_000_000_000


def request_of(job: JobRecord, nodes: Mapping[str, NodeRecord], excluded: frozenset[str] = frozenset()) -> Request:
    """What the job needs now: the seats that it has on HEALTHY nodes which are not excluded are kept.

    excluded: nodes that it must not get beside those that could not start its launcher.
    """
    shut = excluded | excluded_now(job, nodes)
    return Request(
        job.spec.nnodes,
        job.spec.nproc_per_node,
        tuple(
            (rank, Seat(placed.node, placed.gpu_indices))
            for rank, placed in enumerate(job.placement.nodes)
            if placed.node not in shut
            and not placed.lost
            and (node := nodes.get(placed.node)) is not None
            and node.state is NodeState.HEALTHY
        ),
        shut,
        job.spec.nnodes_min,
    )


def placed(job: JobRecord, seats: Sequence[Seat], nodes: Mapping[str, NodeRecord]) -> JobRecord:
    """The job on a new placement. A node that it has already keeps its launcher epoch: its launcher lives on."""
    epoch = job.placement.epoch + 1
    before = {placed.node: placed for placed in job.placement.nodes}
    placement = PlacementRecord(
        epoch,
        tuple(
            before.get(seat.node) or PlacedNode(seat.node, seat.gpu_indices, nodes[seat.node].inventory.address, epoch)
            for seat in seats
        ),
    )
    where = ", ".join(seat.node for seat in seats)
    if len(seats) < job.spec.nnodes:
        where += f" ({len(seats)} of {job.spec.nnodes} nodes: no more are free)"
    if job.state is JobState.PENDING:
        # One that starts on fewer nodes still lacks what it gave up.
        lent = job.turn.lent if len(seats) < job.spec.nnodes else None
        turn = replace(job.turn, withheld="", cause="", lent=lent)
        return replace(job, state=JobState.STARTING, message=f"starts on {where}", placement=placement, turn=turn)
    return replace(job, message=f"placed anew on {where}", placement=placement)


def waiting(job: JobRecord, message: str, cause: str = "") -> JobRecord:
    """The job in the queue: it holds no GPU, and its next placement is a new epoch."""
    turn = replace(job.turn, cause=cause)
    if turn.leaving is not None:
        turn = replace(turn, leaving=None, held=turn.held or turn.leaving.then)
    return replace(job, state=JobState.PENDING, message=message, placement=replace(job.placement, nodes=()), turn=turn)


def given_back(job: JobRecord, withheld: str) -> JobRecord:
    """The job in the queue since its engine keeps a node from it. Nothing of that speaks against the job, nor against the node."""
    after = waiting(job, f"has given its nodes back; {withheld}")
    return replace(after, turn=replace(after.turn, withheld=withheld))


def hold(job: JobRecord, reason: str) -> JobRecord:
    """The job stays in the queue. Raises FailedPrecondition (JOB_RUNS, JOB_ENDED) when it is not in it."""
    if job.state is not JobState.PENDING:
        raise FailedPrecondition(
            f"{job.name} is {job.state}: "
            + (
                "it has ended"
                if job.ended
                else "only a job in the queue can be held; `switchgear jobs requeue --hold` puts it there"
            ),
            Reason.JOB_ENDED if job.ended else Reason.JOB_RUNS,
            job=job.name,
            state=job.state.value,
        )
    return replace(job, message=f"held: {reason}", turn=replace(job.turn, held=reason))


def release(job: JobRecord) -> JobRecord:
    """The job may start, or start again once it has left its nodes."""
    leaving = replace(job.turn.leaving, then="") if job.turn.leaving else None
    message = "waits for its next turn in the queue" if job.turn.held else job.message
    return replace(job, message=message, turn=replace(job.turn, held="", leaving=leaving))


def asked_to_leave(job: JobRecord, leaving: Leaving) -> JobRecord:
    """The job goes on until it `must_leave`. In the queue already, it stays there."""
    if job.state is JobState.PENDING:
        return hold(job, leaving.then) if leaving.then else job
    return replace(
        job, message=f"is to leave at its next checkpoint, {_for(leaving)}", turn=replace(job.turn, leaving=leaving)
    )


def must_leave(job: JobRecord, now_unix_ns: int) -> bool:
    """Whether it has made the checkpoint that was waited for, or there is no more time."""
    turn = job.turn
    if turn.leaving is None or job.ended or job.state in (JobState.PENDING, JobState.PREEMPTED):
        return False
    return _saved_since(turn, turn.leaving) or now_unix_ns >= turn.leaving.by_unix_ns


def _saved_since(turn: Turn, leaving: Leaving) -> bool:
    return turn.checkpoint_unix_ns is not None and turn.checkpoint_unix_ns > leaving.asked_unix_ns


def preempted(job: JobRecord, now_unix_ns: int) -> JobRecord:
    """Recovery stops its ranks, and then has it put into the queue."""
    leaving = job.turn.leaving or _NOBODY
    how = ""
    if leaving.for_job and job.turn.saves_when_stopped and leaving.by_unix_ns <= leaving.asked_unix_ns:
        how = " and asked for a checkpoint, as it makes one then"
    elif leaving.for_job and _saved_since(job.turn, leaving):
        how = " at the checkpoint that was awaited"
    elif leaving.for_job:
        awaited = leaving.by_unix_ns > leaving.asked_unix_ns
        how = ", since no checkpoint came in time" if awaited else " at once, since its next checkpoint is too far away"
    message = f"its ranks are being stopped{how}, {_for(leaving)}"
    # To be shown again: a script may have been changed, and a large checkpoint may need more than the grace.
    turn = replace(job.turn, stopped_unix_ns=now_unix_ns, saves_when_stopped=False)
    return replace(job, state=JobState.PREEMPTED, message=message, turn=turn)


def stays(job: JobRecord) -> JobRecord:
    """Nobody needs its GPUs any more."""
    return replace(job, message="goes on: its GPUs are not needed any more", turn=replace(job.turn, leaving=None))


def left(job: JobRecord, now_unix_ns: int) -> JobRecord:
    """A PREEMPTED job whose ranks are gone, in the queue."""
    leaving = job.turn.leaving or _NOBODY
    message = (
        f"held: {leaving.then}"
        if leaving.then
        else f"has left, {_for(leaving)}; goes on from its newest good checkpoint"
    )
    turn = replace(job.turn, preemptions=job.turn.preemptions + bool(leaving.for_job))
    if leaving.for_job:
        gpus = sum(len(seat.gpu_indices) for seat in job.placement.nodes)
        turn = replace(turn, lent=Lent(leaving.for_job, now_unix_ns, gpus))
    return waiting(replace(job, turn=turn), message)


def saved(job: JobRecord, commit_unix_ns: int) -> JobRecord:
    """A checkpoint of the job was verified."""
    newest = job.turn.checkpoint_unix_ns
    if newest is not None and commit_unix_ns <= newest:
        return job
    turn, interval_s = job.turn, job.turn.checkpoint_interval_s
    told = turn.stopped_unix_ns is not None and 0 < commit_unix_ns - turn.stopped_unix_ns <= STOP_NS_MAX
    if told and (
        turn.placed_unix_ns is None or commit_unix_ns < turn.placed_unix_ns or job.state is JobState.PREEMPTED
    ):
        return replace(job, turn=replace(turn, checkpoint_unix_ns=commit_unix_ns, saves_when_stopped=True))
    # The time between two says nothing when it was stopped between them.
    if newest is not None and (turn.stopped_unix_ns is None or newest > (turn.placed_unix_ns or 0)):
        interval_s = (commit_unix_ns - newest) / 1e9
    return replace(job, turn=replace(turn, checkpoint_unix_ns=commit_unix_ns, checkpoint_interval_s=interval_s))


def timed(before: JobRecord | None, after: JobRecord, now_unix_ns: int) -> JobRecord:
    """`after` with the time for which it has had nodes."""
    had = before is not None and not before.ended and bool(before.placement.nodes)
    has = not after.ended and bool(after.placement.nodes)
    turn = after.turn
    if has and not had:
        # The newest checkpoint stays what it starts from; the time between two says nothing across a wait.
        return replace(after, turn=replace(turn, placed_unix_ns=now_unix_ns))
    if had and not has:
        return replace(after, turn=replace(turn, placed_unix_ns=None, ran_ns=round(turn.ran_s(now_unix_ns) * 1e9)))
    return after


def lost(job: JobRecord, seat: PlacedNode, reason: str) -> JobRecord:
    """The engine has taken a seat away: recovery ends what runs there, and asks for another."""
    return _seated(job, seat, replace(seat, lost=reason))


def queued(job: JobRecord, seat: PlacedNode, waits: str) -> JobRecord:
    """Its launcher on that seat waits for the engine, or with an empty text does so no longer."""
    after = _seated(job, seat, replace(seat, waits=waits))
    if not waits and not job.message.startswith(_WAITS):
        return after  # something newer is said of it
    waiting = next((one for one in after.placement.nodes if one.waits), None)
    return replace(after, message=f"{_WAITS} {waiting.node}: {waiting.waits}" if waiting else "its launchers start")


def _seated(job: JobRecord, before: PlacedNode, after: PlacedNode) -> JobRecord:
    seats = tuple(after if one is before else one for one in job.placement.nodes)
    return replace(job, placement=replace(job.placement, nodes=seats))


def _for(leaving: Leaving) -> str:
    return f"for {leaving.for_job}" if leaving.for_job else "since somebody asked for it"


def excluding(job: JobRecord, node: NodeRecord, reason: str, *, fatal: bool = False) -> JobRecord:
    """The job without a node that could not start its launcher, or is broken, until the node becomes HEALTHY anew."""
    kept = [entry for entry in job.excluded if entry.node != node.name]
    return replace(job, excluded=(*kept, ExcludedNode(node.name, node.healthy_revision, reason, fatal)))


def excluded_now(job: JobRecord, nodes: Mapping[str, NodeRecord]) -> frozenset[str]:
    """The nodes of exclusions that are still in force."""
    return _in_force(job.excluded, nodes)


def unstartable_now(job: JobRecord, nodes: Mapping[str, NodeRecord]) -> frozenset[str]:
    """Those of them that could not start the job's launcher."""
    return _in_force([entry for entry in job.excluded if not entry.fatal], nodes)


def _in_force(excluded: Iterable[ExcludedNode], nodes: Mapping[str, NodeRecord]) -> frozenset[str]:
    return frozenset(
        entry.node
        for entry in excluded
        if (node := nodes.get(entry.node)) is not None and node.healthy_revision <= entry.revision
    )


def moved(job: JobRecord, state: JobState, message: str, now_unix_ns: int) -> JobRecord:
    """The job in a state that recovery saw it in.

    A PENDING job only takes a final state: until it is placed it has no other story. Nor does one that is PREEMPTED, until its ranks are gone.
    Raises FailedPrecondition (JOB_ENDED) when it has ended in another state.
    """
    if job.ended and state is not job.state:
        raise FailedPrecondition(
            f"{job.name} has ended as {job.state}; it cannot become {state}",
            Reason.JOB_ENDED,
            job=job.name,
            state=job.state.value,
        )
    after = replace(job, state=state, message=message)
    if after.ended:
        return replace(after, end_time_unix_ns=job.end_time_unix_ns or now_unix_ns, excluded=())
    if job.state is JobState.PENDING:
        return job
    if job.state is JobState.PREEMPTED:
        return replace(job, message=message) if state is JobState.PREEMPTED else job
    # All of its launchers run: what kept one from starting elsewhere may be gone when it is placed the next time.
    if state is JobState.RUNNING:
        return replace(after, excluded=tuple(entry for entry in after.excluded if entry.fatal))
    return after
