"""Why a job waits and what would start it: told right, and tried out."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from typing import Any

import planner_causes
import planner_world
import pytest
from planner_causes import NAME, NOW_S

from switchgear.core.errors import NotFound
from switchgear.planner.changes import apply, parse
from switchgear.planner.explain import Explanation, explain
from switchgear.planner.model import Cause, Job, Near, Node, Policy, Queue, Running, Seat, Snapshot, Task
from switchgear.planner.plan import plan
from switchgear.planner.proposals import PROPOSALS_MAX

#: 16 causes, 208 snapshots.
SEEDS = range(13)
NODES = tuple(Node(f"n{at}", 8, "H100", topology=(f"l{at // 2}",)) for at in range(4))


def starts(snapshot: Snapshot, now_s: float) -> set[str]:
    return {start.job.name for start in plan(snapshot, now_s).starts}


def check_changes(snapshot: Snapshot, found: Explanation, now_s: float) -> None:
    """Each change starts the job when it is applied as it is written, and the cheapest comes first."""
    for change in found.changes:
        assert found.job in starts(apply(snapshot, parse([str(change)])), now_s), str(change)
    costs = [change.cost_gpu_s for change in found.changes]
    assert costs == sorted(costs)
    assert len(costs) <= PROPOSALS_MAX


def test_the_cause_named_first_is_the_known_one_and_each_proposed_change_starts_the_job() -> None:
    wrong: list[str] = []
    changes = 0
    for cause in planner_causes.CASES:
        for seed in SEEDS:
            snapshot = planner_causes.case(cause, seed)
            found = explain(snapshot, NAME, NOW_S)
            if found.causes[0].cause is not cause:
                wrong.append(f"{cause} {seed}: {found.causes[0]}")
            assert found.changes, f"{cause} {seed}: nothing is proposed"
            check_changes(snapshot, found, NOW_S)
            changes += len(found.changes)
    count = len(planner_causes.CASES) * len(SEEDS)
    share = f"{count} snapshots, {100 * (1 - len(wrong) / count):.1f} % right, {changes} changes all start the job"
    sys.stdout.write(f"{share}\n")
    assert count >= 200
    assert len(wrong) <= 0.05 * count, wrong


@pytest.mark.parametrize("seed", range(3))
def test_in_any_world_each_waiting_job_is_told_a_cause_and_changes_that_start_it(seed: int) -> None:
    random_ = random.Random(seed)
    snapshot = planner_world.world(random_, 6)
    snapshot = planner_world.with_pending(random_, snapshot, "first", 20, 0.0)
    snapshot = planner_world.after(snapshot, plan(snapshot, 0.0), 0.0)
    snapshot = planner_world.with_pending(random_, snapshot, "then", 3, 5000.0)
    waits = plan(snapshot, 5000.0).waits
    for wait in waits[::4]:
        found = explain(snapshot, wait.job, 5000.0)
        assert found == explain(snapshot, wait.job, 5000.0)
        assert found.causes
        check_changes(snapshot, found, 5000.0)
    assert waits
    for one in snapshot.running[:3]:
        assert "it has run for 83 min on " in explain(snapshot, one.job.name, 5000.0).text


def running(name: str, node: str, gpus: int = 8, **fields: object) -> Running:
    job = Job(name, Task(gpus=gpus), 0.0, **fields)  # type: ignore[arg-type]
    return Running(job, (Seat(node, tuple(range(gpus))),), 0.0, 3100.0, 600.0)


def test_who_is_behind_is_told_whom_it_waits_for_and_what_a_higher_priority_would_do() -> None:
    first, second = Job("jobs/first", Task(gpus=8), 10.0, tasks=4), Job("jobs/second", Task(gpus=8), 20.0)
    found = explain(Snapshot(NODES, (first, second)), "jobs/second", 3600.0)
    assert found.causes[0].cause is Cause.BEHIND
    assert found.text == "it would start now if others did not start before it: jobs/first"
    assert [(str(change), change.instead_of) for change in found.changes] == [
        ("set jobs/second priority=1", ("jobs/first",))
    ]


def test_a_time_limit_lets_a_job_start_on_what_is_kept_for_a_larger_one() -> None:
    snapshot = Snapshot(
        NODES,
        (Job("jobs/gang", Task(gpus=8), 10.0, tasks=4), Job("jobs/small", Task(gpus=8), 20.0)),
        (running("jobs/r", "n0", time_limit_s=7200.0),),
    )
    found = explain(snapshot, "jobs/small", 3600.0)
    assert found.causes[0].cause is Cause.BEHIND
    assert found.changes[0].text == "with a time limit of 60 min instead of no limit"
    assert found.changes[0].instead_of == ()


def test_the_changes_say_how_little_is_enough() -> None:
    used = tuple(running(f"jobs/r{at}", f"n{at}") for at in (1, 3))
    gang = Job("jobs/gang", Task(gpus=8), 10.0, tasks=2, near=(Near("leaf"),))
    found = explain(Snapshot(NODES, (gang,), used, levels=("leaf",)), "jobs/gang", 3600.0)
    assert found.causes[0].cause is Cause.TOPOLOGY
    assert [change.text for change in found.changes] == [
        "with one leaf preferred, not required",
        "with 1 task instead of 2",
        "if jobs/r1 moved to other nodes, which costs 480 GPU-seconds",
        "if jobs/r1 ended, which loses 1.24 GPU-hours",
    ]


def test_a_queue_at_its_limit_is_the_cause_and_a_higher_one_is_what_operators_can_do() -> None:
    used = (running("jobs/r0", "n0", queue="a"),)
    job = Job("jobs/a", Task(gpus=8), 10.0, queue="a")
    found = explain(Snapshot(NODES, (job,), used, (Queue("a", limit=8), Queue("b"))), "jobs/a", 3600.0)
    assert found.causes[0].cause is Cause.QUOTA
    assert [str(change) for change in found.changes] == [
        "set jobs/a queue=b",
        "queue a limit=16",
        "end jobs/r0",
    ]


def test_a_job_that_is_held_is_told_as_well_what_it_would_wait_for_then() -> None:
    used = tuple(running(f"jobs/r{at}", f"n{at}") for at in range(4))
    found = explain(Snapshot(NODES, (Job("jobs/a", Task(gpus=8), 10.0, held="by me"),), used), "jobs/a", 3600.0)
    assert [one.cause for one in found.causes] == [Cause.HELD, Cause.GPUS]
    assert str(found.changes[0]).startswith("set jobs/a hold=no; end jobs/r")


def test_of_a_job_that_runs_it_is_told_why_it_is_there_and_where_it_would_be_now() -> None:
    nodes = (replace(NODES[0], incident=True), *NODES[1:])
    snapshot = Snapshot(nodes, running=(running("jobs/a", "n0"), running("jobs/b", "n1")), levels=("leaf",))
    assert explain(snapshot, "jobs/b", 7200.0).text.endswith("; it would be placed there again now")
    text = explain(snapshot, "jobs/a", 7200.0).text
    assert text.startswith("it has run for 2 h on n0 with H100")
    assert "; today it would be placed on n2 with H100" in text
    leaving = replace(snapshot, running=(replace(snapshot.running[0], leaving=True, leaving_for="jobs/x"),))
    assert explain(leaving, "jobs/a", 7200.0).text.endswith("; it is leaving for jobs/x")


def test_a_job_that_starts_now_is_told_so_and_one_that_nobody_knows_is_not_found() -> None:
    snapshot = Snapshot(NODES, (Job("jobs/a", Task(gpus=8), 10.0),), policy=Policy(spares=1))
    assert explain(snapshot, "jobs/a", 20.0).text.startswith("it starts now on n")
    with pytest.raises(NotFound):
        explain(snapshot, "jobs/b", 20.0)


def test_a_plan_that_is_made_for_one_job_ends_when_that_cannot_start_and_else_looks_only_at_those_that_are_named() -> (
    None
):
    free, wide, narrow, last = (
        Job(name, Task(gpus=gpus), 0.0) for name, gpus in (("a", 1), ("b", 9), ("c", 1), ("d", 1))
    )
    snapshot = Snapshot(
        (Node("n", 8),), pending=tuple(replace(job, priority=-at) for at, job in enumerate((free, wide, narrow, last)))
    )

    def starts(**options: Any) -> list[str]:
        return [start.job.name for start in plan(snapshot, 0.0, told=False, **options).starts]

    assert starts() == ["a", "c", "d"]
    assert starts(only_if="b") == ["a"]
    assert starts(only_if="c") == ["a", "c", "d"]
    assert starts(only_if="a", then=["d"]) == ["a", "d"]
