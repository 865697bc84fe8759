"""The scheduler's policy: from what is stored and what is seen to what should be, at one moment."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from switchgear.planner import model as planner
from switchgear.planner.fleet import Fleet
from switchgear.planner.plan import plan
from switchgear.scheduler import jobs as job_life
from switchgear.scheduler import nodes as node_life
from switchgear.scheduler.model import (
    JobRecord,
    JobState,
    LauncherRef,
    Leaving,
    NodeRecord,
    NodeState,
    NodeStatus,
    Observation,
    PlacedNode,
    Rules,
    Wanted,
    WantedLauncher,
)
from switchgear.scheduler.offers import offers
from switchgear.scheduler.placement import NotPlaced, Seat, could_ever_fit, counted, place
from switchgear.scheduler.planning import View
from switchgear.scheduler.shared import outside, shared
from switchgear.scheduler.turns import turned

#: How long recovery has to end the launchers of a job that has ended before they are stopped.
FINISH_GRACE_S = 10.0
#: What is decided must be under way before too much has changed since; the next pass goes on.
PLACEMENTS_PER_PASS_MAX = 500
#: Sentences about jobs that wait, which change as others come and go: written so many at a time, first those whose turn is next.
MESSAGES_PER_PASS_MAX = 100
#: A launcher that so many nodes could not start fails for a reason of its job: it does not go through the whole fleet.
EXCLUDED_NODES_MAX = 32


#: What its launchers do is news of a job in these.
_UNDER_WAY = frozenset({JobState.STARTING, JobState.RECOVERING})
#: Nodes that are closed may be what is missing.
_FOR_WANT_OF_NODES = frozenset(planner.Cause) - {
    planner.Cause.HELD,
    planner.Cause.NOT_YET,
    planner.Cause.DEPENDENCY,
    planner.Cause.QUOTA,
    planner.Cause.BEHIND,
    planner.Cause.PREEMPTING,
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All nodes, all jobs that have not ended and those that ended within `FINISH_GRACE_S`."""

    nodes: tuple[NodeRecord, ...]
    jobs: tuple[JobRecord, ...]
    rules: Rules = field(default_factory=Rules)


@dataclass(frozen=True, slots=True)
class Planned:
    """What the planner was asked, when, and what it said."""

    snapshot: planner.Snapshot
    now_s: float
    decisions: planner.Decisions


@dataclass(frozen=True, slots=True)
class Decisions:
    """Records to write, whole, and nodes to delete.

    planned: None when nothing was there to be planned. more: there was more to do than one pass does.
    """

    nodes: tuple[NodeRecord, ...]
    jobs: tuple[JobRecord, ...]
    forgotten: frozenset[str] = frozenset()
    planned: Planned | None = None
    more: bool = False

    def __bool__(self) -> bool:
        return bool(self.nodes or self.jobs or self.forgotten)


def decide(snapshot: Snapshot, observed: Observation, now_unix_ns: int, view: View | None = None) -> Decisions:
    """Brings nodes up to date with what is seen, then places what waits as the planner says.

    view: of the pass before; what has not changed since is not worked out again.
    """
    nodes = _judged(snapshot.nodes, observed, now_unix_ns)
    in_use = {seat.node for job in snapshot.jobs if not job.ended for seat in job.placement.nodes}
    forgotten = node_life.forgotten(nodes, in_use, now_unix_ns)
    known = (node for node in nodes if node.name not in forgotten)
    world = _World(replace(snapshot, nodes=tuple(known)), observed, now_unix_ns, view or View())
    _judge_launchers(world, now_unix_ns)
    for job in turned(world.jobs.values(), snapshot.rules, now_unix_ns):
        world.put(job)
    planned = _planned(world, now_unix_ns)
    more = planned is not None and _carry_out(world, planned, now_unix_ns)
    before_nodes = {node.name: node for node in snapshot.nodes}
    before_jobs = {job.name: job for job in snapshot.jobs}
    return Decisions(
        tuple(node for node in world.nodes.values() if node is not before_nodes.get(node.name)),
        tuple(job for job in world.jobs.values() if job != before_jobs[job.name]),
        forgotten & before_nodes.keys(),
        planned,
        more,
    )


def picture(snapshot: Snapshot, observed: Observation, now_unix_ns: int, view: View) -> planner.Snapshot:
    """What the planner would be asked now."""
    nodes = _judged(snapshot.nodes, observed, now_unix_ns)
    return _World(replace(snapshot, nodes=tuple(nodes)), observed, now_unix_ns, view).picture()


def upheld(
    decisions: Decisions,
    before: Snapshot,
    fresh: Snapshot,
    *,
    seen_before: Observation,
    seen: Observation,
    written: Mapping[str, JobRecord],
) -> Decisions:
    """Those decisions of which nothing has changed that they rest on since they were made; the next pass makes the others anew.

    A person may have cordoned a node meanwhile, a launcher that has just been started must not be overlooked, recovery may have taken
    a node for another job. written: jobs of the same pass that were written since.
    """
    nodes_before, nodes = ({node.name: node for node in one.nodes} for one in (before, fresh))
    expected = {**{job.name: job for job in before.jobs}, **written}
    jobs = {job.name: job for job in fresh.jobs}
    status_before, status = dict(seen_before.nodes), dict(seen.nodes)
    moved = {name for name in {*nodes_before, *nodes} if not _same_node(nodes_before.get(name), nodes.get(name))} | {
        name for name in {*status_before, *status} if status_before.get(name) != status.get(name)
    }
    for name in {*expected, *jobs}:
        was, now = expected.get(name), jobs.get(name)
        if was is not now and (was is None or now is None or was.placement != now.placement or was.ended != now.ended):
            moved |= {seat.node for one in (was, now) if one for seat in one.placement.nodes}

    def holds(job: JobRecord) -> bool:
        was = expected[job.name]
        placed = {seat.node for seat in job.placement.nodes} - {seat.node for seat in was.placement.nodes}
        return jobs.get(job.name) == was and not placed & moved

    return replace(
        decisions,
        nodes=tuple(node for node in decisions.nodes if node.name not in moved),
        jobs=tuple(job for job in decisions.jobs if holds(job)),
        forgotten=decisions.forgotten - moved,
    )


def _same_node(before: NodeRecord | None, after: NodeRecord | None) -> bool:
    """When it was last heard, and that its GPUs were taken or freed, is no change."""
    if before is None or after is None or before is after:
        return before is after
    return replace(before, last_seen_unix_ns=after.last_seen_unix_ns, revision=after.revision) == after


def replace_nodes(
    job: JobRecord,
    excluded: Iterable[str],
    snapshot: Snapshot,
    observed: Observation,
    *,
    reason: str,
    avoided: Iterable[str] = (),
    now_unix_ns: int = 0,
) -> JobRecord:
    """The job on a new placement without the excluded nodes, or in the queue when there is none.

    avoided: those of them that the job does not get again until they are HEALTHY anew.
    In the queue nothing is excluded any more but what is seen: a node that is cordoned, unreachable or still has a launcher of
    the job. One that is well and free again may be the only one that the job can have.
    A job that is PREEMPTED goes to the queue: its ranks are gone.
    """
    if job.state is JobState.PREEMPTED:
        return job_life.left(job, now_unix_ns)
    world = _World(snapshot, observed, now_unix_ns, View())
    for name in avoided:
        if node := world.nodes.get(name):
            job = job_life.excluding(job, node, reason, fatal=True)
    if job.state is JobState.PENDING:
        return job  # its turn comes in the order of the queue
    after = world.placed(job, frozenset(excluded))
    if isinstance(after, NotPlaced):
        return job_life.waiting(job, f"{after.reason}; {reason}" if reason else after.reason)
    return after


def unanswered(job: JobRecord, lost: Iterable[str], observed: Observation) -> list[str]:
    """Those of the lost nodes on which the engine still believes the job's launcher to run: it is not the launcher alone that has ended."""
    seats = {seat.node: LauncherRef(job.name, seat.launcher_epoch) for seat in job.placement.nodes}
    status = dict(observed.nodes)
    return [name for name in lost if name in seats and name in status and seats[name] in status[name].launchers]


def wanted(jobs: Iterable[JobRecord], nodes: Iterable[NodeRecord] = ()) -> dict[str, Wanted]:
    """What should run on each node, from the placements alone, and which nodes we keep out of service."""
    run = defaultdict[str, list[WantedLauncher]](list)
    leave = defaultdict[str, set[LauncherRef]](set)
    for job in jobs:
        for seat in job.placement.nodes:
            ref = LauncherRef(job.name, seat.launcher_epoch)
            if job.ended:
                leave[seat.node].add(ref)
            else:
                run[seat.node].append(
                    WantedLauncher(ref, job.spec, seat.gpu_indices, job.trace_parent, job.create_time_unix_ns)
                )
    closed = {node.name: node_life.kept_out_by_us(node) for node in nodes}
    closed = {name: reason for name, reason in closed.items() if reason}
    return {
        node: Wanted(tuple(run[node]), frozenset(leave[node]), closed.get(node, "")) for node in {*run, *leave, *closed}
    }


def _judged(nodes: Iterable[NodeRecord], observed: Observation, now_unix_ns: int) -> list[NodeRecord]:
    """The nodes as they are by what is seen of them."""
    judged = {node.name: node for node in nodes}
    status = dict(observed.nodes)
    for name, seen in status.items():
        if not seen.silent:
            heard = node_life.heard(judged.get(name), name, seen.inventory, now_unix_ns)
            judged[name] = node_life.kept_out(heard, seen)
    for name, node in judged.items():
        silent = status[name].silent if name in status else observed.complete
        if silent and node.reachable:
            judged[name] = node_life.lost(node)
    return list(judged.values())


class _World:
    """Nodes and jobs in the course of one decision, and what the nodes have left."""

    def __init__(self, snapshot: Snapshot, observed: Observation, now_unix_ns: int, view: View) -> None:
        self.nodes = {node.name: node for node in snapshot.nodes}
        self.jobs = {job.name: job for job in snapshot.jobs}
        self.status = dict(observed.nodes)
        self._rules, self._now_unix_ns, self._view = snapshot.rules, now_unix_ns, view
        #: (node, job)
        self._seated = {
            (seat.node, job.name) for job in self.jobs.values() if not job.ended for seat in job.placement.nodes
        }

    def picture(self) -> planner.Snapshot:
        picture = self._view.snapshot(self.nodes, self.jobs.values(), self._rules, self.obstacles(), self._now_unix_ns)
        return shared(picture, self.jobs, self.status)

    def placed(self, job: JobRecord, excluded: frozenset[str] = frozenset()) -> JobRecord | NotPlaced:
        """The job on nodes that are free now; `excluded` are not, nor are those that could not start its launcher."""
        request = job_life.request_of(job, self.nodes, excluded | outside(job.spec.partition, self.status))
        if job.spec.topology and not request.kept:
            return NotPlaced("waits for its turn, and nodes near each other")
        picture = self.picture()
        seen = next((one.job for one in picture.running if one.job.name == job.name), None)
        seen = seen or next(one for one in picture.pending if one.name == job.name)
        fleet = Fleet(picture.nodes, picture.levels, picture.running)
        seats = place(request, offers(fleet, seen, {seat.node for _, seat in request.kept}))
        if isinstance(seats, NotPlaced):
            return seats
        kept = {seat.node: seat for _, seat in request.kept}
        return job_life.placed(
            job, [kept.get(seat.node) or _by_index(seat, self.nodes[seat.node]) for seat in seats], self.nodes
        )

    def seat(self, node: str, ref: LauncherRef) -> tuple[JobRecord, PlacedNode] | None:
        """The job that has that launcher on the node, and its seat there; None when it has it no longer."""
        job = self.jobs.get(ref.job)
        if job is None or job.ended:
            return None
        seats = (one for one in job.placement.nodes if (one.node, one.launcher_epoch) == (node, ref.epoch))
        return next(((job, seat) for seat in seats), None)

    def cordon_lost(self, node: str, reason: str) -> None:
        """A node that failed under a job, where its engine would hand it out again."""
        if self._rules.cordons_lost and self.nodes[node].standing is NodeState.HEALTHY:
            self.nodes[node] = node_life.cordon(self.nodes[node], reason, node_life.ACTOR_POLICY)

    def put(self, job: JobRecord) -> None:
        """Takes over a decision: the next one is made on what is left."""
        before = self.jobs[job.name]
        self.jobs[job.name] = job
        if before.placement == job.placement and before.ended == job.ended:
            return
        if not before.ended:
            self._seated -= {(seat.node, job.name) for seat in before.placement.nodes}
        if not job.ended:
            self._seated |= {(seat.node, job.name) for seat in job.placement.nodes}

    def obstacles(self) -> dict[str, str]:
        """Why nothing may be placed on a node now, of those on which nothing may."""
        return {
            name: obstacle
            for name, node in self.nodes.items()
            if (obstacle := self._obstacle(node, self.status.get(name)))
        }

    def closed(self) -> str:
        """The same counted, for a person."""
        counts = Counter(self.obstacles().values())
        return ", ".join(f"{count} {obstacle}" for obstacle, count in sorted(counts.items()))

    def _obstacle(self, node: NodeRecord, status: NodeStatus | None) -> str:
        if node.state is not NodeState.HEALTHY:
            return node.state.lower()
        if status is not None and status.obstacle:
            return status.obstacle
        if status is None or not status.connected:
            return "without a connected agent"
        # Their ranks may hold GPUs that are free on paper.
        if any((node.name, ref.job) not in self._seated for ref in status.launchers):
            return "still stopping an ended job"
        return ""


def _by_index(seat: Seat, node: NodeRecord) -> Seat:
    """The planner counts the GPUs of a node, and an inventory may have gaps."""
    return Seat(seat.node, tuple(node.inventory.gpus[gpu].index for gpu in seat.gpu_indices))


def _judge_launchers(world: _World, now_unix_ns: int) -> None:
    """What engines say of launchers. A node that cannot start one is left out, for this job."""
    for name, status in world.status.items():
        for ref, why in status.unstartable:
            if (found := world.seat(name, ref)) is None:
                continue
            job = job_life.excluding(found[0], world.nodes[name], why)
            after = _given_up(world, job, now_unix_ns) or world.placed(job)
            world.put(job_life.waiting(job, after.reason) if isinstance(after, NotPlaced) else after)
        for lost in status.lost:
            if (found := world.seat(name, lost.ref)) is None or found[1].lost:
                continue
            world.put(job_life.lost(*found, lost.reason))
            if lost.by_node:
                world.cordon_lost(name, lost.reason)
        for ref, why in status.cancelled:
            if found := world.seat(name, ref):
                world.put(job_life.moved(found[0], JobState.CANCELLED, why, now_unix_ns))
        for ref, why in status.waiting:
            if (found := world.seat(name, ref)) and found[0].state in _UNDER_WAY and found[1].waits != why:
                world.put(job_life.queued(*found, why))
        for ref, why in status.withheld:
            if (found := world.seat(name, ref)) and found[0].state in _UNDER_WAY:
                world.put(_given_back(world, found[0], name, why))
    for job in [job for job in world.jobs.values() if any(seat.waits for seat in job.placement.nodes)]:
        for seat in job.placement.nodes:
            seen = world.status.get(seat.node)
            if seat.waits and seen and LauncherRef(job.name, seat.launcher_epoch) not in dict(seen.waiting):
                world.put(job_life.queued(world.jobs[job.name], seat, ""))


def _given_back(world: _World, job: JobRecord, node: str, why: str) -> JobRecord:
    """The job without a node that the engine keeps from it: on another one, where recovery waits for one, or in the queue.

    What has run elsewhere of it keeps its place as long as there is another node; before that nothing is gained by keeping any.
    """
    told = f"node {node.rpartition('/')[2]}: {why}"
    if job.state is JobState.RECOVERING:
        after = world.placed(job, frozenset({node}))
        if not isinstance(after, NotPlaced):
            return replace(after, message=f"{after.message}; {told}")
    return job_life.given_back(job, told)


def _planned(world: _World, now_unix_ns: int) -> Planned | None:
    if all(job.state is not JobState.PENDING for job in world.jobs.values()):
        return None
    snapshot = world.picture()
    now_s = now_unix_ns / 1e9
    return Planned(snapshot, now_s, plan(snapshot, now_s))


def _carry_out(world: _World, planned: Planned, now_unix_ns: int) -> bool:
    """Takes over what the planner decided; whether some of it was left for the next pass."""
    decisions = planned.decisions
    for start in decisions.starts[:PLACEMENTS_PER_PASS_MAX]:
        seats = [_by_index(Seat(seat.node, seat.gpus), world.nodes[seat.node]) for seat in start.seats]
        world.put(job_life.placed(world.jobs[start.job.name], seats, world.nodes))
    for preempt in decisions.preemptions:
        job = world.jobs[preempt.job]
        if job.turn.leaving is None:
            # Seconds as a float are some hundred nanoseconds off, and at once is not soon.
            by_unix_ns = round(preempt.by_s * 1e9) if preempt.by_s > planned.now_s else now_unix_ns
            leaving = Leaving(preempt.for_job, now_unix_ns, max(now_unix_ns, by_unix_ns))
            world.put(job_life.asked_to_leave(job, leaving))
    closed = world.closed()
    told = 0
    for wait in decisions.waits:
        job = world.jobs[wait.job]
        after = _given_up(world, job, now_unix_ns) or job_life.waiting(
            job, _why(wait, closed, job, world), wait.cause.value
        )
        if after != job and (after.ended or told < MESSAGES_PER_PASS_MAX):
            told += not after.ended
            world.put(after)
        elif after != job:
            return True
    return len(decisions.starts) > PLACEMENTS_PER_PASS_MAX


def _why(wait: planner.Wait, closed: str, job: JobRecord, world: _World) -> str:
    text = wait.text
    if wait.cause in _FOR_WANT_OF_NODES:
        shut = len(job_life.excluded_now(job, world.nodes))
        others = ", ".join(part for part in (closed, f"{shut} excluded for this job" if shut else "") if part)
        text = f"{text} (others: {others})" if others else text
    return f"{text}; {job.turn.withheld}" if job.turn.withheld else text


def _given_up(world: _World, job: JobRecord, now_unix_ns: int) -> JobRecord | None:
    """The job as FAILED when too few nodes are left that may start it, now or later; else None."""
    if not job.excluded:
        return None
    shut = job_life.unstartable_now(job, world.nodes)
    away = shut | outside(job.spec.partition, world.status)
    left = [len(node.inventory.gpus) for node in world.nodes.values() if node.name not in away]
    if not shut or (len(shut) <= EXCLUDED_NODES_MAX and could_ever_fit(job_life.request_of(job, world.nodes), left)):
        return None
    last = [entry for entry in job.excluded if entry.node in shut][-1]
    others = f" (nor on {counted(len(shut) - 1, 'other node')})" if len(shut) > 1 else ""
    message = f"its launcher could not be started on {last.node}{others}: {last.reason}"
    return job_life.moved(job, JobState.FAILED, message, now_unix_ns)
