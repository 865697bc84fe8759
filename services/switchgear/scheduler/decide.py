"""The scheduler's policy: from what is stored and what is seen to what should be, at one moment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

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
from switchgear.scheduler.placement import NotPlaced, Offer, could_ever_fit, counted, place

#: How long recovery has to end the launchers of a job that has ended before they are stopped.
FINISH_GRACE_S = 10.0
#: A pass does not hold up heartbeats for longer than a few tenths of a second, on a thousand nodes; the next one goes on.
PLACEMENTS_PER_PASS_MAX = 50
#: A launcher that so many nodes could not start fails for a reason of its job: it does not go through the whole fleet.
EXCLUDED_NODES_MAX = 32


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All nodes, all jobs that have not ended and those that ended within `FINISH_GRACE_S`."""

    nodes: tuple[NodeRecord, ...]
    jobs: tuple[JobRecord, ...]


@dataclass(frozen=True, slots=True)
class Decisions:
    """Records to write, whole, and nodes to delete."""

    nodes: tuple[NodeRecord, ...]
    jobs: tuple[JobRecord, ...]
    forgotten: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.nodes or self.jobs or self.forgotten)


def decide(snapshot: Snapshot, observed: Observation, now_unix_ns: int) -> Decisions:
    """Brings nodes up to date with what is seen, then places what waits, oldest first."""
    nodes = _judged(snapshot.nodes, observed, now_unix_ns)
    in_use = {seat.node for job in snapshot.jobs if not job.ended for seat in job.placement.nodes}
    forgotten = node_life.forgotten(nodes, in_use, now_unix_ns)
    world = _World((node for node in nodes if node.name not in forgotten), snapshot.jobs, observed)
    _judge_launchers(world, now_unix_ns)
    _place_pending(world, now_unix_ns)
    before_nodes = {node.name: node for node in snapshot.nodes}
    before_jobs = {job.name: job for job in snapshot.jobs}
    return Decisions(
        tuple(node for node in world.nodes.values() if node is not before_nodes.get(node.name)),
        tuple(job for job in world.jobs.values() if job != before_jobs[job.name]),
        forgotten & before_nodes.keys(),
    )


def replace_nodes(
    job: JobRecord,
    excluded: Iterable[str],
    snapshot: Snapshot,
    observed: Observation,
    *,
    reason: str,
    avoided: Iterable[str] = (),
) -> JobRecord:
    """The job on a new placement without the excluded nodes, or in the queue when there is none.

    avoided: those of them that the job does not get again until they are HEALTHY anew.
    In the queue nothing is excluded any more but what is seen: a node that is cordoned, unreachable or still has a launcher of
    the job. One that is well and free again may be the only one that the job can have.
    """
    world = _World(snapshot.nodes, snapshot.jobs, observed)
    for name in avoided:
        if node := world.nodes.get(name):
            job = job_life.excluding(job, node, reason, fatal=True)
    if job.state is JobState.PENDING:
        return job  # its turn comes in the order of the queue
    after = world.placed(job, frozenset(excluded))
    if isinstance(after, NotPlaced):
        return job_life.waiting(job, f"{after.reason}; {reason}" if reason else after.reason)
    return after


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
                run[seat.node].append(WantedLauncher(ref, job.spec, seat.gpu_indices, job.trace_parent))
    return {node: Wanted(tuple(run[node]), frozenset(leave[node])) for node in {*run, *leave}}


def _judged(nodes: Iterable[NodeRecord], observed: Observation, now_unix_ns: int) -> list[NodeRecord]:
    """The nodes as they are by what is seen of them."""
    judged = {node.name: node for node in nodes}
    status = dict(observed.nodes)
    for name, seen in status.items():
        if not seen.silent:
            judged[name] = node_life.heard(judged.get(name), name, seen.inventory, now_unix_ns)
    for name, node in judged.items():
        silent = status[name].silent if name in status else observed.complete
        if silent and node.reachable:
            judged[name] = node_life.lost(node)
    return list(judged.values())


class _World:
    """Nodes and jobs in the course of one decision, and what the nodes have left."""

    def __init__(self, nodes: Iterable[NodeRecord], jobs: Iterable[JobRecord], observed: Observation) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.jobs = {job.name: job for job in jobs}
        self.status = dict(observed.nodes)
        self._used = defaultdict[str, set[int]](set)
        #: (node, job)
        self._seated = set[tuple[str, str]]()
        # Made once, when the first job asks: most passes place nothing, and a fleet has more nodes than a pass has placements.
        self._offers: dict[str, Offer] = {}
        for job in self.jobs.values():
            self._seat(job)

    def placed(self, job: JobRecord, excluded: frozenset[str] = frozenset()) -> JobRecord | NotPlaced:
        """The job on nodes that are free now; `excluded` are not, nor are those that could not start its launcher."""
        seats = place(job_life.request_of(job, self.nodes, excluded), self._all_offers())
        return seats if isinstance(seats, NotPlaced) else job_life.placed(job, seats, self.nodes)

    def put(self, job: JobRecord) -> None:
        """Takes over a decision: the next one is made on what is left."""
        before = self.jobs[job.name]
        self.jobs[job.name] = job
        if before.placement == job.placement and before.ended == job.ended:
            return
        if not before.ended:
            for seat in before.placement.nodes:
                self._used[seat.node].difference_update(seat.gpu_indices)
                self._seated.discard((seat.node, job.name))
        self._seat(job)
        for seat in (*before.placement.nodes, *job.placement.nodes):
            if seat.node in self._offers:
                self._offers[seat.node] = self._offer(self.nodes[seat.node])

    def _seat(self, job: JobRecord) -> None:
        if not job.ended:
            for seat in job.placement.nodes:
                self._used[seat.node].update(seat.gpu_indices)
                self._seated.add((seat.node, job.name))

    def _all_offers(self) -> Collection[Offer]:
        if not self._offers:
            self._offers = {node.name: self._offer(node) for node in self.nodes.values()}
        return self._offers.values()

    def _offer(self, node: NodeRecord) -> Offer:
        used = self._used[node.name]
        free = tuple(gpu.index for gpu in node.inventory.gpus if gpu.index not in used)
        return Offer(node.name, free, self._obstacle(node, self.status.get(node.name)))

    def _obstacle(self, node: NodeRecord, status: NodeStatus | None) -> str:
        if node.state is not NodeState.HEALTHY:
            return node.state.lower()
        if status is None or not status.connected:
            return "without a connected agent"
        # Their ranks may hold GPUs that are free on paper.
        if any((node.name, ref.job) not in self._seated for ref in status.launchers):
            return "still stopping an ended job"
        return ""


def _judge_launchers(world: _World, now_unix_ns: int) -> None:
    """A node that cannot start a launcher is left out, for this job."""
    for name, status in world.status.items():
        for ref, why in status.unstartable:
            job = world.jobs.get(ref.job)
            if (
                job is None
                or job.ended
                or (name, ref.epoch) not in {(s.node, s.launcher_epoch) for s in job.placement.nodes}
            ):
                continue
            job = job_life.excluding(job, world.nodes[name], why)
            after = _given_up(world, job, now_unix_ns) or world.placed(job)
            world.put(job_life.waiting(job, after.reason) if isinstance(after, NotPlaced) else after)


def _place_pending(world: _World, now_unix_ns: int) -> None:
    queue = sorted(
        (job for job in world.jobs.values() if job.state is JobState.PENDING), key=lambda job: job.create_revision
    )
    head, placed = "", 0
    for job in queue:
        if placed == PLACEMENTS_PER_PASS_MAX:
            return
        if head:
            world.put(job_life.waiting(job, f"waits behind {head}"))
            continue
        after = world.placed(job)
        if isinstance(after, NotPlaced):
            after = _given_up(world, job, now_unix_ns) or job_life.waiting(job, after.reason)
            head = "" if after.ended else job.name
        else:
            placed += 1
        world.put(after)


def _given_up(world: _World, job: JobRecord, now_unix_ns: int) -> JobRecord | None:
    """The job as FAILED when too few nodes are left that may start it, now or later; else None."""
    shut = job_life.unstartable_now(job, world.nodes)
    left = [len(node.inventory.gpus) for node in world.nodes.values() if node.name not in shut]
    if not shut or (len(shut) <= EXCLUDED_NODES_MAX and could_ever_fit(job_life.request_of(job, world.nodes), left)):
        return None
    last = [entry for entry in job.excluded if entry.node in shut][-1]
    others = f" (nor on {counted(len(shut) - 1, 'other node')})" if len(shut) > 1 else ""
    message = f"its launcher could not be started on {last.node}{others}: {last.reason}"
    return job_life.moved(job, JobState.FAILED, message, now_unix_ns)
