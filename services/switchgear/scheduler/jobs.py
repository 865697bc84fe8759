"""The life cycle of a job. Every function answers with the job as it is after the event."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from switchgear.core.errors import FailedPrecondition, Reason
from switchgear.scheduler.model import (
    ExcludedNode,
    JobRecord,
    JobState,
    NodeRecord,
    NodeState,
    PlacedNode,
    PlacementRecord,
)
from switchgear.scheduler.placement import Request, Seat


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
        return replace(job, state=JobState.STARTING, message=f"starts on {where}", placement=placement)
    return replace(job, message=f"placed anew on {where}", placement=placement)


def waiting(job: JobRecord, message: str) -> JobRecord:
    """The job in the queue: it holds no GPU, and its next placement is a new epoch."""
    return replace(job, state=JobState.PENDING, message=message, placement=replace(job.placement, nodes=()))


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

    A PENDING job only takes a final state: until it is placed it has no other story.
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
    # All of its launchers run: what kept one from starting elsewhere may be gone when it is placed the next time.
    if state is JobState.RUNNING:
        return replace(after, excluded=tuple(entry for entry in after.excluded if entry.fatal))
    return after
