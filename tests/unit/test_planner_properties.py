"""What holds of every plan, whatever waits and runs: tried on worlds at random."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import planner_world
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from switchgear.planner.model import Cause, Decisions, Job, Node, Policy, Queue, Running, Seat, Snapshot, Task
from switchgear.planner.plan import plan
from switchgear.planner.simulate.clock import Arrival, Clock

#: What no waiting helps against.
NEVER = {Cause.IMPOSSIBLE, Cause.QUOTA}


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), nodes=st.integers(0, 8), first=st.integers(0, 20), then=st.integers(0, 20))
def test_a_plan_goes_over_no_capacity_starts_no_half_gang_keeps_quotas_and_answers_for_each_job(
    seed: int, nodes: int, first: int, then: int
) -> None:
    random_ = random.Random(seed)
    snapshot = planner_world.world(random_, nodes) if nodes else Snapshot(())
    snapshot = planner_world.with_pending(random_, snapshot, "first", first, 0.0)
    decisions = plan(snapshot, 0.0)
    planner_world.check(snapshot, decisions, 0.0)
    snapshot = planner_world.after(snapshot, decisions, 0.0)
    now_s = random_.uniform(0, 100_000)
    snapshot = planner_world.with_pending(random_, snapshot, "then", then, now_s)
    decisions = plan(snapshot, now_s)
    planner_world.check(snapshot, decisions, now_s)
    assert plan(snapshot, now_s) == decisions


@pytest.mark.parametrize("seed", range(5))
def test_a_cluster_in_virtual_time_keeps_every_promise_at_each_step_and_brings_every_job_to_its_end(seed: int) -> None:
    random_ = random.Random(seed)
    world = planner_world.world(random_, 8)
    arrivals = planner_world.arrivals(random_, 40, 15_000)
    preemptions = 0

    def checked(snapshot: Snapshot, now_s: float) -> Decisions:
        nonlocal preemptions
        decisions = plan(snapshot, now_s)
        planner_world.check(snapshot, decisions, now_s)
        preemptions += len(decisions.preemptions)
        return decisions

    clock = Clock(world, arrivals, checked, changes=planner_world.changes(random_, world.nodes, 4, 15_000))
    clock.run(until_s=30 * 24 * 3600.0)
    unended = {name for name, outcome in clock.outcomes.items() if outcome.end_s is None}
    assert unended == {wait.job for wait in plan(clock.snapshot(), clock.now_s).waits if wait.cause in NEVER}
    assert preemptions <= len(arrivals)


def starving_world(seed: int, longest_s: float) -> list[Arrival]:
    """32 GPUs that are all taken, three gangs of 24 that come then, and small jobs that come without an end."""
    random_ = random.Random(seed)
    gangs = [Arrival(Job(f"gang-{at}", TASKS[8], 1.0 + at, tasks=3), longest_s) for at in range(3)]
    return [
        *(Arrival(Job(f"first-{at}", TASKS[2], 0.0), random_.uniform(500, longest_s)) for at in range(16)),
        *gangs,
        *(
            Arrival(
                Job(f"small-{at}", TASKS[random_.choice((1, 2, 4))], 10 + at * 120.0), random_.uniform(500, longest_s)
            )
            for at in range(160)
        ),
    ]


TASKS = {gpus: Task(gpus=gpus) for gpus in (1, 2, 4, 8)}


@pytest.mark.parametrize("seed", [1, 2])
def test_who_starves_waits_for_no_longer_than_the_longest_run_for_each_that_starves_before_it(seed: int) -> None:
    starving_s, longest_s, tick_s = 5400.0, 4000.0, 600.0
    nodes = tuple(Node(f"node-{at}", 8) for at in range(4))
    world = Snapshot(nodes, policy=Policy(starving_s=starving_s))
    clock = Clock(world, starving_world(seed, longest_s), plan, tick_s=tick_s)
    clock.run(until_s=20_000)
    for before in range(3):
        outcome = clock.outcomes[f"gang-{before}"]
        assert outcome.start_s is not None
        assert outcome.start_s - outcome.submit_s <= starving_s + (before + 1) * longest_s + tick_s


def test_a_plan_does_not_depend_on_the_order_in_which_a_process_has_its_sets() -> None:
    code = (
        "import random, planner_world\n"
        "from switchgear.planner.plan import plan\n"
        "from switchgear.planner.records import decisions_to_json\n"
        "random_ = random.Random(3)\n"
        "world = planner_world.with_pending(random_, planner_world.world(random_, 8), 'job', 40, 0.0)\n"
        "print(decisions_to_json(plan(world, 0.0)).decode())\n"
    )
    folder = Path(planner_world.__file__).parent
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(folder)},
            check=True,
            capture_output=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(told) == 1


def test_what_victims_leave_is_for_the_one_for_whom_they_left_though_they_have_the_higher_priority() -> None:
    """A borrower fills the fleet with runs of a day; the owner comes for its guarantee an hour later."""
    nodes = tuple(Node(f"node-{at}", 8) for at in range(4))
    policy = Policy(guaranteed_run_s=600.0, checkpoint_wait_s=300.0)
    world = Snapshot(nodes, queues=(Queue("owner", guaranteed=16), Queue("borrower")), policy=policy)
    borrowed = [
        Arrival(Job(f"borrowed-{at}", TASKS[8], 0.0, queue="borrower", priority=10), 86_400.0, 200.0) for at in range(6)
    ]
    gang = Arrival(Job("gang", TASKS[8], 3600.0, tasks=2, queue="owner"), 7200.0)
    clock = Clock(world, [*borrowed, gang], plan)
    clock.run()
    outcome = clock.outcomes["gang"]
    assert outcome.start_s is not None
    assert outcome.start_s - outcome.submit_s <= policy.checkpoint_wait_s
    assert outcome.end_s == outcome.start_s + 7200.0
    assert sum(one.stops for one in clock.outcomes.values()) == 2
    assert all(one.end_s is not None for one in clock.outcomes.values())


def test_jobs_that_fit_only_on_what_a_starving_one_waits_for_are_told_that_it_goes_before_them() -> None:
    nodes = tuple(Node(f"node-{at}", 8) for at in range(2))
    long = Job("long", TASKS[8], 0.0)
    running = (Running(long, (Seat("node-0", tuple(range(8))),), 0.0),)
    pending = (Job("gang", TASKS[8], 0.0, tasks=2), Job("late", TASKS[4], 7000.0, time_limit_s=600.0))
    snapshot = Snapshot(nodes, pending, running, policy=Policy(starving_s=3600.0))
    causes = {wait.job: wait.cause for wait in plan(snapshot, 7200.0).waits}
    assert causes == {"gang": Cause.GPUS, "late": Cause.BEHIND}
    assert [start.job.name for start in plan(snapshot, 3000.0).starts] == ["late"]
