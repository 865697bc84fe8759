"""Small full fleets with queues and jobs at random, by a seed, to try preemption on; and the best choice of victims, by trying all."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np

from switchgear.planner.claims import Claim
from switchgear.planner.fleet import Fleet
from switchgear.planner.gangs import seats_for
from switchgear.planner.holdings import Holdings
from switchgear.planner.mix import Mix
from switchgear.planner.model import Job, Near, Node, NoRoom, Policy, Preempt, Queue, Running, Seat, Snapshot, Task
from switchgear.planner.packing import Packer
from switchgear.planner.quota import Ledger
from switchgear.planner.victims import victims

LEVELS = ("leaf",)
QUEUES = (
    (),
    (Queue("a", guaranteed=6), Queue("b", guaranteed=4)),
    (Queue("a", guaranteed=8, limit=12), Queue("b", guaranteed=2, limit=16, lends=False)),
    (
        Queue("p", guaranteed=8),
        Queue("a", parent="p", guaranteed=4),
        Queue("b", parent="p", guaranteed=2),
        Queue("c", guaranteed=4, limit=8),
    ),
)
TASKS = (Task(gpus=1, cpu_milli=1000), Task(gpus=2), Task(gpus=4, cpu_milli=2000), Task(gpu_milli=500, cpu_milli=500))


def job(random_: random.Random, name: str, queues: tuple[Queue, ...]) -> Job:
    return Job(
        name,
        random_.choice(TASKS),
        0.0,
        tasks=random_.choice((1, 1, 2, 3)),
        one_a_node=random_.random() < 0.7,
        queue=random_.choice(("", *(queue.name for queue in queues))),
        priority=random_.randint(0, 2),
        preemptible=random_.random() < 0.9,
        harvest=random_.random() < 0.15,
        near=(Near("leaf"),) if random_.random() < 0.3 else (),
    )


def full(seed: int, running_max: int = 9) -> tuple[Snapshot, Job]:
    """A fleet with jobs that run, and one more job. The time is 0."""
    random_ = random.Random(seed)
    queues = random_.choice(QUEUES)
    nodes = tuple(Node(f"n{at}", 4, cpu_milli=8000, topology=(f"l{at // 2}",)) for at in range(random_.randint(2, 5)))
    snapshot = Snapshot(nodes, queues=queues, levels=LEVELS, policy=Policy(guaranteed_run_s=300.0))
    packer = packer_of(snapshot)
    for at in range(40):
        one = job(random_, f"r{at}", queues)
        seats = seats_of(packer, one)
        if seats and len(snapshot.running) < running_max:
            take(packer, one, seats)
            running = Running(
                one,
                seats,
                start_s=-random_.uniform(0, 5000),
                checkpoint_s=random_.choice((None, -random_.uniform(0, 3000))),
                checkpoint_interval_s=random_.choice((None, 600.0, 3600.0)),
                restart_s=random_.uniform(10, 100),
            )
            snapshot = replace(snapshot, running=(*snapshot.running, running))
    return snapshot, job(random_, "new", queues)


def packer_of(snapshot: Snapshot) -> Packer:
    return Packer(Fleet(snapshot.nodes, snapshot.levels, snapshot.running), Mix())


def seats_of(packer: Packer, one: Job) -> tuple[Seat, ...]:
    """() when it does not fit."""
    found = seats_for(packer, one, np.ones(len(packer.fleet), bool))
    return () if isinstance(found, NoRoom) else found


def take(packer: Packer, one: Job, seats: tuple[Seat, ...]) -> None:
    for seat in seats:
        packer.take(seat, one.task)


def stopped_for(snapshot: Snapshot, one: Job, now_s: float = 0.0) -> tuple[Preempt, ...] | None:
    packer = packer_of(snapshot)
    return victims(packer, snapshot, Ledger(snapshot), one, now_s, np.ones(len(packer.fleet), bool))


def room_without(snapshot: Snapshot, one: Job, stopped: set[str]) -> tuple[Seat, ...]:
    """Seats for the job when these have stopped; () where there are none, or quotas do not let it in."""
    left = replace(snapshot, running=tuple(other for other in snapshot.running if other.job.name not in stopped))
    if Ledger(left).admits(one, one.gpus) is not None:
        return ()
    return seats_of(packer_of(left), one)


def loss(snapshot: Snapshot, stopped: set[str]) -> tuple[float, float]:
    """GPU-seconds that those lose who do not harvest, and those who do: what is to be least, in this order."""
    holdings = Holdings(packer_of(snapshot).fleet, snapshot.running)
    lost_gpu_s, _ = holdings.losses(0.0, snapshot.policy.checkpoint_wait_s)
    sums = [0.0, 0.0]
    for at, other in enumerate(snapshot.running):
        if other.job.name in stopped:
            sums[other.job.harvest] += float(lost_gpu_s[at])
    return sums[0], sums[1]


def least_loss(snapshot: Snapshot, one: Job) -> tuple[float, float] | None:
    """Of all sets of jobs that may be stopped and make room; None when there is none."""
    holdings = Holdings(packer_of(snapshot).fleet, snapshot.running)
    claim = Claim(Ledger(snapshot), holdings, one, one.gpus, started_by_s=-snapshot.policy.guaranteed_run_s)
    might = np.flatnonzero(claim.perhaps).tolist()
    best: tuple[float, float] | None = None
    for count in range(len(might) + 1):
        for chosen in itertools.combinations(might, count):
            names = {snapshot.running[at].job.name for at in chosen}
            lost = loss(snapshot, names)
            if (
                (best is None or lost < best)
                and (not chosen or claim.upheld(chosen))
                and room_without(snapshot, one, names)
            ):
                best = lost
    return best
