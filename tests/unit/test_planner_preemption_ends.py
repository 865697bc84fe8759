"""Preemption goes round in no circle: what once ran together does not come back unless a job arrives or ends."""

from __future__ import annotations

import random
from dataclasses import replace

import preemption_world
import pytest
from preemption_world import packer_of, seats_of, stopped_for

from switchgear.planner.model import Job, Node, Policy, Queue, Running, Selector, Snapshot, Task
from switchgear.planner.quota import Ledger

TASKS = (*preemption_world.TASKS, Task(gpus=4, selectors=(Selector("disk", frozenset({"nvme"})),)))


def started(snapshot: Snapshot, job: Job, now_s: float) -> Snapshot | None:
    """The snapshot when the job has started, with others stopped for it where that is due; None when it cannot."""
    stopped = stopped_for(snapshot, job, now_s)
    if stopped is None:
        return None
    gone = {one.job for one in stopped}
    left = tuple(one for one in snapshot.running if one.job.name not in gone)
    victims = tuple(one.job for one in snapshot.running if one.job.name in gone)
    waiting = tuple(one for one in snapshot.pending if one.name != job.name)
    after = replace(snapshot, running=left, pending=(*waiting, *victims))
    seats = seats_of(packer_of(after), job)
    assert seats, "victims were told to leave in vain"
    assert Ledger(after).admits(job, len(seats) * job.task.gpu_share) is None
    return replace(after, running=(*left, Running(job, seats, now_s)))


def run(snapshot: Snapshot, random_: random.Random, steps_max: int) -> tuple[int, int]:
    """Pending jobs start in any order, for as long as one can. Steps, and jobs that were stopped."""
    seen = {frozenset(one.job.name for one in snapshot.running)}
    stops = 0
    for step in range(steps_max):
        order = random_.sample(snapshot.pending, len(snapshot.pending))
        after = next((found for job in order if (found := started(snapshot, job, step + 1.0))), None)
        if after is None:
            return step, stops
        stops += len(after.pending) - len(snapshot.pending) + 1
        snapshot = after
        names = frozenset(one.job.name for one in snapshot.running)
        # A job that harvests counts for nothing, so that only the others need to be new.
        assert names not in seen
        seen.add(names)
    raise AssertionError(f"it goes on after {steps_max} steps")


#: With the last three, victims that a guarantee needs are missed when `Claim.upheld` does not look at all of them together.
@pytest.mark.parametrize("seed", [*range(12), 44, 110, 112])
def test_with_nobody_arriving_or_ending_preemption_comes_to_an_end_and_nothing_comes_back(seed: int) -> None:
    random_ = random.Random(seed)
    queues = random_.choice(preemption_world.QUEUES)
    nodes = tuple(
        Node(f"n{at}", 4, labels={"disk": "nvme"} if at < 2 else {}, topology=(f"l{at // 2}",)) for at in range(4)
    )
    jobs = (preemption_world.job(random_, f"j{at}", queues) for at in range(16))
    pending = tuple(replace(job, preemptible=True, task=random_.choice(TASKS)) for job in jobs)
    policy = Policy(guaranteed_run_s=0.0)
    snapshot = Snapshot(nodes, pending, queues=queues, levels=preemption_world.LEVELS, policy=policy)
    run(snapshot, random_, steps_max=400)


def test_an_oversized_job_and_the_guarantees_of_two_queues_do_not_chase_each_other() -> None:
    """a stops for its own queue's large job, b reclaims from that, stops for its own queue's large job, and a reclaims from that: each step
    looks natural, and were the first one allowed it would go on for ever."""
    only = Task(gpus=4, selectors=(Selector("name", frozenset({"n0"})),))
    nodes = tuple(Node(f"n{at}", 4, labels={"name": f"n{at}"}) for at in range(2))
    pending = tuple(
        job
        for queue in ("red", "blue")
        for job in (
            Job(f"{queue}-small", only, 0.0, queue=queue),
            Job(f"{queue}-large", Task(gpus=4), 0.0, tasks=2, queue=queue, priority=1),
        )
    )
    queues = (Queue("red", guaranteed=4), Queue("blue", guaranteed=4))
    snapshot = Snapshot(nodes, pending, queues=queues, policy=Policy(guaranteed_run_s=0.0))
    for seed in range(10):
        steps, _ = run(snapshot, random.Random(seed), steps_max=50)
        assert steps <= 3
