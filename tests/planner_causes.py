"""Snapshots in which it is known why a job waits, at random, by a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace

from switchgear.planner.model import (
    Cause,
    Job,
    Near,
    Node,
    Policy,
    Queue,
    Reservation,
    Running,
    Seat,
    Selector,
    Snapshot,
    Task,
)

#: The job that waits, and the time.
NAME, NOW_S = "jobs/asked", 100_000.0
LEVELS = ("spine", "leaf")


class World:
    """Nodes of 8 GPUs in leaves of 4; what is in the way of others, and of the job that is asked about, is put on them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.count = self.random.choice((8, 8, 12))
        self.nodes = [
            Node(
                f"nodes/n{at}",
                8,
                "H100",
                cpu_milli=128_000,
                memory_mib=1 << 20,
                labels={"zone": "west"},
                topology=(f"s{at // 8}", f"l{at // 4}"),
            )
            for at in range(self.count)
        ]
        self.running: list[Running] = []
        self.pending: list[Job] = []
        self.queues: list[Queue] = []
        self.reservations: list[Reservation] = []
        self.policy = Policy()

    def fill(self, at: int, task: Task, gpus: tuple[int, ...], **fields: object) -> None:
        job = Job(f"jobs/r{len(self.running)}", task, 0.0, **fields)  # type: ignore[arg-type]
        start_s = NOW_S - self.random.uniform(1000, 50_000)
        saved_s = self.random.choice((None, start_s + 500))
        self.running.append(Running(job, (Seat(self.nodes[at].name, gpus),), start_s, saved_s))

    def full(self, *numbers: int, **fields: object) -> None:
        """Nothing is free on these nodes."""
        for at in numbers:
            first = self.random.choice((0, 0, 2, 4))
            for gpus in filter(None, (tuple(range(first)), tuple(range(first, 8)))):
                self.fill(at, Task(gpus=len(gpus)), gpus, **fields)

    def some(self, count: int, among: int | None = None) -> list[int]:
        return sorted(self.random.sample(range(among or self.count), count))

    def rest(self, *used: int) -> list[int]:
        return [at for at in range(self.count) if at not in used]

    def change(self, at: int, **fields: object) -> None:
        self.nodes[at] = replace(self.nodes[at], **fields)  # type: ignore[arg-type]

    def ask(self, task: Task | None = None, **fields: object) -> None:
        job = Job(NAME, task or Task(gpus=8), NOW_S - self.random.uniform(10, 5000))
        self.pending.append(replace(job, **fields))  # type: ignore[arg-type]

    def noise(self) -> None:
        """What has nothing to do with the job: others who are held, a node for others only, a queue that nobody uses, a reservation that is over."""
        taken = self.count
        self.nodes.append(Node("nodes/other", 8, "H100", taints=frozenset({"others"}), topology=("s9", "l9")))
        self.fill(taken, Task(gpus=8, tolerates=frozenset({"others"})), tuple(range(8)))
        for at in range(self.random.randrange(4)):
            task = Task(gpus=self.random.choice((1, 4, 8)))
            self.pending.append(Job(f"jobs/h{at}", task, NOW_S - 9000 + at, tasks=2, held="for a test"))
        self.queues.append(Queue("queues/idle", limit=64))
        names = frozenset(node.name for node in self.nodes[:2])
        self.reservations.append(Reservation("reservations/over", names, 0.0, NOW_S - 1))

    def snapshot(self) -> Snapshot:
        self.noise()
        self.random.shuffle(self.pending)
        return Snapshot(
            tuple(self.nodes),
            tuple(self.pending),
            tuple(self.running),
            tuple(self.queues),
            tuple(self.reservations),
            LEVELS,
            policy=self.policy,
        )


def _task(world: World) -> Task:
    return Task(gpus=world.random.choice((1, 2, 4, 8)), cpu_milli=world.random.choice((0, 4000)))


def held(world: World) -> None:
    world.full(*world.some(3))
    world.ask(_task(world), tasks=world.random.choice((1, 2)), held="by its owner")


def not_yet(world: World) -> None:
    world.full(*world.some(3))
    world.ask(_task(world), tasks=2, not_before_s=NOW_S + world.random.uniform(60, 9000))


def dependency(world: World) -> None:
    world.full(*world.some(3))
    world.ask(_task(world), tasks=2, after=frozenset({world.running[0].job.name}))


def impossible(world: World) -> None:
    world.full(*world.some(world.count - 3))
    kind = world.random.randrange(5)
    if kind == 0:
        world.ask(Task(gpus=world.random.choice((9, 16))))
    elif kind == 1:
        world.ask(tasks=world.count + 2)
    elif kind == 2:
        world.ask(Task(gpus=1, cpu_milli=200_000))
    elif kind == 3:
        world.ask(Task(gpus=4, gpu_models=frozenset({"B300"})))
    else:
        world.ask(tasks=5, near=(Near("leaf"),))


def nodes_closed(world: World) -> None:
    closed = world.some(world.random.choice((2, 3)))
    world.full(*world.rest(*closed))
    for at in closed:
        world.change(at, closed=world.random.choice(("cordoned", "drained for a new driver")))
    world.ask(tasks=world.random.choice((1, 2)))


def quota(world: World) -> None:
    limit = world.random.choice((8.0, 16.0))
    parent = world.random.random() < 0.5
    if parent:
        world.queues.append(Queue("queues/all", limit=limit))
    world.queues.append(Queue("queues/team", "queues/all" if parent else "", limit=None if parent else limit))
    world.full(*world.some(int(limit) // 8), queue="queues/team")
    world.ask(_task(world), tasks=world.random.choice((1, 2)), queue="queues/team")


def reserved(world: World) -> None:
    kept = world.some(2)
    world.full(*world.rest(*kept))
    names = frozenset(world.nodes[at].name for at in kept)
    begins_s = world.random.choice((NOW_S - 60, NOW_S + 4000))
    world.queues.append(Queue("queues/owners"))
    owners = world.random.choice((frozenset[str](), frozenset({"queues/owners"})))
    world.reservations.append(Reservation("reservations/kept", names, begins_s, begins_s + 9000, queues=owners))
    world.ask(tasks=world.random.choice((1, 2)), time_limit_s=world.random.choice((None, 20_000.0)))


def topology(world: World) -> None:
    free = [leaf * 4 + world.random.randrange(4) for leaf in range(world.count // 4)]
    world.full(*world.rest(*free))
    world.ask(tasks=2, near=(Near("leaf"),))


def gpu_model(world: World) -> None:
    other = world.some(world.random.choice((2, 3)))
    for at in other:
        world.change(at, gpu_model="A100")
    world.full(*world.rest(*other))
    world.ask(Task(gpus=8, gpu_models=frozenset({"H100"})), tasks=world.random.choice((1, 2)))


def selector(world: World) -> None:
    free = world.some(2)
    world.full(*world.rest(*free))
    if world.random.random() < 0.5:
        for at in range(4):
            if at not in free:
                world.change(at, labels={"zone": "east"})
        if not any(node.labels["zone"] == "east" for node in world.nodes):
            world.change(world.rest(*free)[0], labels={"zone": "east"})
        world.ask(Task(gpus=8, selectors=(Selector("zone", frozenset({"east"})),)))
    else:
        for at in free:
            world.change(at, taints=frozenset({"preview"}))
        world.ask(tasks=world.random.choice((1, 2)))


def cpu(world: World) -> None:
    free = world.some(3)
    world.full(*world.rest(*free))
    for at in free:
        world.fill(at, Task(cpu_milli=world.random.choice((100_000, 120_000))), ())
    world.ask(Task(gpus=world.random.choice((4, 8)), cpu_milli=64_000), tasks=world.random.choice((1, 2)))


def memory(world: World) -> None:
    free = world.some(3)
    world.full(*world.rest(*free))
    for at in free:
        world.fill(at, Task(memory_mib=1_000_000), ())
    world.ask(Task(gpus=world.random.choice((4, 8)), memory_mib=500_000), tasks=world.random.choice((1, 2)))


def fragmented(world: World) -> None:
    pieces = world.some(4)
    world.full(*world.rest(*pieces))
    for at in pieces:
        used = world.random.choice((1, 2, 4))
        world.fill(at, Task(gpus=used), tuple(range(used)))
    world.ask(Task(gpus=8), tasks=world.random.choice((1, 2)))


def gpus(world: World) -> None:
    world.full(*range(world.count))
    if world.random.random() < 0.5:
        world.running.pop()
    world.ask(Task(gpus=8), tasks=world.random.choice((2, 3)))


def behind(world: World) -> None:
    free = world.some(2)
    world.full(*world.rest(*free))
    if world.random.random() < 0.5:
        first = Job("jobs/first", Task(gpus=8), NOW_S - 6000, tasks=2, priority=world.random.choice((0, 5)))
    else:
        # It needs one node more than there are free, has waited for longer than anybody should, and seats are kept for it.
        first = Job("jobs/first", Task(gpus=8), 0.0, tasks=3)
    world.pending.append(first)
    world.ask(Task(gpus=world.random.choice((4, 8))), tasks=1)


def preempting(world: World) -> None:
    world.full(*range(world.count))
    world.ask(Task(gpus=8), tasks=world.random.choice((1, 2)), priority=10)


CASES: Mapping[Cause, Callable[[World], None]] = {
    Cause.HELD: held,
    Cause.NOT_YET: not_yet,
    Cause.DEPENDENCY: dependency,
    Cause.IMPOSSIBLE: impossible,
    Cause.NODES_CLOSED: nodes_closed,
    Cause.QUOTA: quota,
    Cause.RESERVED: reserved,
    Cause.TOPOLOGY: topology,
    Cause.GPU_MODEL: gpu_model,
    Cause.SELECTOR: selector,
    Cause.CPU: cpu,
    Cause.MEMORY: memory,
    Cause.FRAGMENTED: fragmented,
    Cause.GPUS: gpus,
    Cause.BEHIND: behind,
    Cause.PREEMPTING: preempting,
}


def case(cause: Cause, seed: int) -> Snapshot:
    """`NAME` waits in it at `NOW_S`, for this cause."""
    world = World(seed)
    CASES[cause](world)
    return world.snapshot()
