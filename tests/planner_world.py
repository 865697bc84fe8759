"""Fleets, queues and jobs at random, by a seed; and what must hold of every plan for them."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace

from switchgear.planner.fleet import Fleet
from switchgear.planner.model import (
    Decisions,
    Job,
    Near,
    Node,
    Policy,
    Queue,
    Reservation,
    Running,
    Selector,
    Snapshot,
    Start,
    Task,
    Workload,
)
from switchgear.planner.simulate.clock import Arrival, NodesChange

LEVELS = ("spine", "leaf")
QUEUES = (
    Queue("research", guaranteed=16, limit=48),
    Queue("vision", "research", guaranteed=8),
    Queue("language", "research", guaranteed=8, limit=32, weight=2),
    Queue("product", guaranteed=16, lends=False),
    Queue("guests", limit=24),
)
TASKS = (
    *(Task(gpus=gpus, cpu_milli=4000 * gpus, memory_mib=16_000 * gpus) for gpus in (1, 2, 4, 8)),
    *(Task(gpu_milli=milli, cpu_milli=2000) for milli in (250, 400, 600)),
    Task(mig_profile="1g.10gb", memory_mib=4000),
    Task(cpu_milli=8000),
    Task(gpus=8, gpu_models=frozenset({"H100"})),
    Task(gpus=1, selectors=(Selector("disk", frozenset({"nvme"})),)),
    Task(gpus=2, tolerates=frozenset({"preview"})),
)


def nodes(random_: random.Random, count: int) -> tuple[Node, ...]:
    return tuple(
        Node(
            f"node-{at}",
            gpus=random_.choice((4, 8, 8, 8)),
            gpu_model=random_.choice(("H100", "H100", "A100")),
            cpu_milli=random_.choice((None, 64_000, 128_000)),
            memory_mib=random_.choice((None, 500_000)),
            labels={"disk": random_.choice(("nvme", "none"))},
            taints=frozenset({"preview"}) if random_.random() < 0.1 else frozenset(),
            topology=(f"spine-{at // 8}", f"leaf-{at // 4}"),
            mig={0: ("1g.10gb",) * 7} if random_.random() < 0.2 else {},
            health=random_.choice((None, 1.0, 0.5)),
            incident=random_.random() < 0.1,
        )
        for at in range(count)
    )


def job(random_: random.Random, name: str, submit_s: float) -> Job:
    task = random_.choice(TASKS)
    tasks = random_.choice((1, 1, 1, 2, 3, 6))
    near: tuple[Near, ...] = ()
    if tasks > 1 and random_.random() < 0.4:
        near = (Near(random_.choice(LEVELS), required=random_.random() < 0.5),)
    harvest = random_.random() < 0.1
    return Job(
        name,
        task,
        submit_s,
        tasks=tasks,
        tasks_min=random_.choice((0, 0, 1)),
        one_a_node=random_.random() < 0.7,
        queue=random_.choice((*(queue.name for queue in QUEUES), "nobody's")),
        user=random_.choice(("ada", "bob", "eve")),
        priority=random_.choice((0, 0, 0, 10)),
        workload=random_.choice(tuple(Workload)),
        near=near,
        time_limit_s=random_.choice((None, 4 * 3600.0)),
        preemptible=random_.random() < 0.8,
        harvest=harvest,
        speeds={"H100": 1.0, "A100": 0.5} if random_.random() < 0.2 else {},
    )


def world(random_: random.Random, count: int) -> Snapshot:
    """Nodes, queues, a reservation and a policy; nobody runs or waits."""
    fleet = nodes(random_, count)
    begins_s = random_.uniform(0, 40_000)
    return Snapshot(
        fleet,
        queues=QUEUES if random_.random() < 0.7 else (),
        reservations=(Reservation("repair", frozenset({fleet[-1].name}), begins_s, begins_s + 7200),),
        levels=LEVELS,
        policy=Policy(spares=random_.choice((0, 0, 1)), starving_s=random_.choice((3600.0, 24 * 3600.0))),
    )


def arrivals(random_: random.Random, count: int, over_s: float) -> tuple[Arrival, ...]:
    return tuple(
        Arrival(
            job(random_, f"job-{at}", random_.uniform(0, over_s)),
            min(random_.expovariate(1 / 3000), 20_000),
            random_.choice((None, 600.0, 1800.0)),
        )
        for at in range(count)
    )


def changes(random_: random.Random, fleet: tuple[Node, ...], count: int, over_s: float) -> tuple[NodesChange, ...]:
    """Nodes that are closed for half an hour."""
    found: list[NodesChange] = []
    for _ in range(count):
        node, at_s = random_.choice(fleet), random_.uniform(0, over_s)
        found += NodesChange(at_s, (replace(node, closed="cordoned"),)), NodesChange(at_s + 1800, (node,))
    return tuple(found)


def with_pending(random_: random.Random, snapshot: Snapshot, names: str, count: int, now_s: float) -> Snapshot:
    """More that waits, for up to two days."""
    jobs = (job(random_, f"{names}-{at}", now_s - random_.choice((0.0, 600.0, 1e5, 2e5))) for at in range(count))
    return replace(snapshot, pending=(*snapshot.pending, *jobs))


def after(snapshot: Snapshot, decisions: Decisions, now_s: float) -> Snapshot:
    """The snapshot when its starts have been made."""
    started = {start.job.name for start in decisions.starts}
    return replace(
        snapshot,
        pending=tuple(one for one in snapshot.pending if one.name not in started),
        running=(*snapshot.running, *(Running(start.job, start.seats, now_s) for start in decisions.starts)),
    )


def check(snapshot: Snapshot, decisions: Decisions, now_s: float) -> None:
    """Raises AssertionError when the plan breaks a promise."""
    assert all(start.job in snapshot.pending for start in decisions.starts)
    told = Counter([*(start.job.name for start in decisions.starts), *(wait.job for wait in decisions.waits)])
    assert told == Counter(one.name for one in snapshot.pending)
    _check_capacity(snapshot, decisions.starts)
    for start in decisions.starts:
        _check_gang(snapshot, start, now_s)
    _check_limits(snapshot, decisions.starts)
    running = {one.job.name: one for one in snapshot.running}
    for preempt in decisions.preemptions:
        victim = running[preempt.job]
        assert victim.job.preemptible
        assert not victim.leaving
        assert now_s - victim.start_s >= snapshot.policy.guaranteed_run_s
        assert preempt.for_job in {wait.job for wait in decisions.waits}
        assert preempt.by_s <= now_s + snapshot.policy.checkpoint_wait_s


def _check_capacity(snapshot: Snapshot, starts: Iterable[Start]) -> None:
    fleet = Fleet(snapshot.nodes, snapshot.levels, snapshot.running, snapshot.pending)
    for start in starts:
        kept = {seat for _, seat in start.job.kept}
        for seat in start.seats:
            if seat not in kept:
                fleet.take(seat, start.job.task)
    assert fleet.gpu_free.min(initial=0) >= 0
    assert fleet.cpu_free.min(initial=0) >= 0
    assert fleet.memory_free.min(initial=0) >= 0
    assert all(free.min() >= 0 for free in fleet.mig_free.values())


def _check_gang(snapshot: Snapshot, start: Start, now_s: float) -> None:
    job, at = start.job, {node.name: node for node in snapshot.nodes}
    assert job.tasks_least <= len(start.seats) <= job.tasks
    on = [at[seat.node] for seat in start.seats]
    assert not job.one_a_node or len({node.name for node in on}) == len(on)
    for node, seat in zip(on, start.seats, strict=True):
        assert not node.closed
        assert node.name not in job.excluded
        assert node.taints <= job.task.tolerates
        assert not job.task.gpu_models or node.gpu_model in job.task.gpu_models
        assert len(seat.gpus) == (job.task.gpus or bool(job.task.gpu_milli or job.task.mig_profile))
        for reservation in snapshot.reservations:
            if reservation.start_s <= now_s < reservation.end_s:
                assert node.name not in reservation.nodes
    for near in job.near:
        if near.required and len(on) > 1:
            level = snapshot.levels.index(near.level)
            assert len({node.topology[level] for node in on}) == 1


def _check_limits(snapshot: Snapshot, starts: tuple[Start, ...]) -> None:
    """A start takes no queue above its limit; what runs there already may have been above it."""
    parents = {queue.name: queue.parent for queue in snapshot.queues}
    used: dict[str, float] = defaultdict(float)
    grown: set[str] = set()

    def charge(job: Job, seats: int) -> set[str]:
        chain: set[str] = set()
        queue = job.queue
        while queue in parents and not job.harvest:
            used[queue] += seats * job.task.gpu_share
            chain.add(queue)
            queue = parents[queue]
        return chain

    for one in snapshot.running:
        if not one.leaving:
            charge(one.job, len(one.seats))
    for start in starts:
        if start.job.task.gpu_share:
            grown |= charge(start.job, len(start.seats))
    for queue in snapshot.queues:
        if queue.limit is not None and queue.name in grown:
            assert used[queue.name] <= queue.limit + 1e-6
