"""The scheduler's policy: from what is stored and what is seen to what should be, at one moment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from switchgear.scheduler import jobs as job_life
from switchgear.scheduler import nodes as node_life
from switchgear.scheduler.model import (
    JobRecord,
    JobState,
    LauncherRef,
    NodeRecord,
    NodeState,
    NodeStatus,
    Observation,
    Wanted,
    WantedLauncher,
)
from switchgear.scheduler.placement import NotPlaced, Offer, place

#: How long recovery has to end the launchers of a job that has ended before they are stopped.
FINISH_GRACE_S = 10.0
#: A pass does not hold up heartbeats for longer than a few tenths of a second, on a thousand nodes; the next one goes on.
PLACEMENTS_PER_PASS_MAX = 50


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All nodes, all jobs that have not ended and those that ended within `FINISH_GRACE_S`."""

    nodes: tuple[NodeRecord, ...]
    jobs: tuple[JobRecord, ...]


@dataclass(frozen=True, slots=True)
class Decisions:
    """Records to write, whole."""

    nodes: tuple[NodeRecord, ...]
    jobs: tuple[JobRecord, ...]


@dataclass(slots=True)
class _World:
    nodes: dict[str, NodeRecord]
    jobs: dict[str, JobRecord]
    status: dict[str, NodeStatus] = field(default_factory=dict)


def decide(snapshot: Snapshot, observed: Observation, now_unix_ns: int) -> Decisions:
    """Brings nodes up to date with what is seen, then places what waits, oldest first."""
    world = _world(snapshot, observed)
    _judge_nodes(world, observed.complete, now_unix_ns)
    _judge_launchers(world, now_unix_ns)
    _place_pending(world)
    before_nodes = {node.name: node for node in snapshot.nodes}
    before_jobs = {job.name: job for job in snapshot.jobs}
    return Decisions(
        tuple(node for node in world.nodes.values() if node is not before_nodes.get(node.name)),
        tuple(job for job in world.jobs.values() if job != before_jobs[job.name]),
    )


def replace_nodes(
    job: JobRecord, excluded: Iterable[str], snapshot: Snapshot, observed: Observation, *, reason: str, revision: int
) -> JobRecord:
    """The job on a new placement without the excluded nodes, or in the queue when there is none."""
    world = _world(snapshot, observed)
    job = job_life.excluding(job, excluded, revision)
    if job.state is JobState.PENDING:
        return job  # its turn comes in the order of the queue
    shut = job_life.excluded_now(job, world.nodes)
    seats = place(job_life.request_of(job, world.nodes, shut), _offers(world, shut))
    if isinstance(seats, NotPlaced):
        return job_life.waiting(job, f"{seats.reason}; {reason}" if reason else seats.reason)
    return job_life.placed(job, seats, world.nodes)


def wanted(jobs: Iterable[JobRecord]) -> dict[str, Wanted]:
    """What should run on each node, from the placements alone."""
    run = defaultdict[str, list[WantedLauncher]](list)
    leave = defaultdict[str, set[LauncherRef]](set)
    for job in jobs:
        for seat in job.placement.nodes:
            ref = LauncherRef(job.name, seat.launcher_epoch)
            if job.ended:
                leave[seat.node].add(ref)
            else:
                run[seat.node].append(WantedLauncher(ref, job.spec, seat.gpu_indices))
    return {node: Wanted(tuple(run[node]), frozenset(leave[node])) for node in {*run, *leave}}


def _world(snapshot: Snapshot, observed: Observation) -> _World:
    return _World(
        {node.name: node for node in snapshot.nodes}, {job.name: job for job in snapshot.jobs}, dict(observed.nodes)
    )


def _judge_nodes(world: _World, complete: bool, now_unix_ns: int) -> None:
    for name, status in world.status.items():
        if not status.silent:
            world.nodes[name] = node_life.heard(world.nodes.get(name), name, status.inventory, now_unix_ns)
    for name, node in world.nodes.items():
        status_or_none = world.status.get(name)
        silent = complete if status_or_none is None else status_or_none.silent
        if silent and node.reachable:
            world.nodes[name] = node_life.lost(node)


def _judge_launchers(world: _World, now_unix_ns: int) -> None:
    for name, status in world.status.items():
        for ref, why in status.unstartable:
            job = world.jobs.get(ref.job)
            if (
                job
                and not job.ended
                and any((s.node, s.launcher_epoch) == (name, ref.epoch) for s in job.placement.nodes)
            ):
                message = f"its launcher could not be started on {name}: {why}"
                world.jobs[ref.job] = job_life.moved(job, JobState.FAILED, message, now_unix_ns)


def _place_pending(world: _World) -> None:
    queue = sorted(
        (job for job in world.jobs.values() if job.state is JobState.PENDING), key=lambda job: job.create_revision
    )
    head, placed = "", 0
    for job in queue:
        if placed == PLACEMENTS_PER_PASS_MAX:
            return
        if head:
            after = job_life.waiting(job, f"waits behind {head}")
        else:
            shut = job_life.excluded_now(job, world.nodes)
            seats = place(job_life.request_of(job, world.nodes, shut), _offers(world, shut))
            if isinstance(seats, NotPlaced):
                head, after = job.name, job_life.waiting(job, seats.reason)
            else:
                placed += 1
                after = job_life.placed(job, seats, world.nodes)
        world.jobs[job.name] = after


def _offers(world: _World, shut: frozenset[str]) -> list[Offer]:
    used = defaultdict[str, set[int]](set)
    for job in world.jobs.values():
        if not job.ended:
            for seat in job.placement.nodes:
                used[seat.node].update(seat.gpu_indices)
    running = {(seat.node, job.name) for job in world.jobs.values() if not job.ended for seat in job.placement.nodes}
    return [
        Offer(
            node.name,
            tuple(gpu.index for gpu in node.inventory.gpus if gpu.index not in used[node.name]),
            "excluded for this job" if node.name in shut else _obstacle(node, world.status.get(node.name), running),
        )
        for node in world.nodes.values()
    ]


def _obstacle(node: NodeRecord, status: NodeStatus | None, running: set[tuple[str, str]]) -> str:
    if node.state is not NodeState.HEALTHY:
        return node.state.lower()
    if status is None or not status.connected:
        return "without a connected agent"
    # Their ranks may hold GPUs that are free on paper.
    if any((node.name, ref.job) not in running for ref in status.launchers):
        return "still stopping an ended job"
    return ""
