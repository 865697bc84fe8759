"""What the ledgers of jobs come to: ratios, mean times, costs by cause and node, and the report for people."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ledger_world import at, begun, booked, killed, now, started, steps
from recovery_world import World

from switchgear.recovery import model as m
from switchgear.recovery.goodput import (
    FLEET_COSTS_MAX,
    GROUPS_MAX,
    Goodput,
    Sum,
    duration,
    of_job,
    report,
    stepping_ns,
    told_apart,
)
from switchgear.recovery.ledger import COSTS_MAX, OTHER, Bucket, Cost, Ledger, add_cost


def test_causes_beyond_the_bound_are_told_as_one() -> None:
    costs: tuple[Cost, ...] = ()
    for number in range(COSTS_MAX + 50):
        costs = add_cost(costs, Cost("RANK_KILLED", f"nodes/{number}", 1, lost_gpu_ns=number))
    assert len(costs) == COSTS_MAX
    assert sum(cost.incidents for cost in costs) == COSTS_MAX + 50
    assert sum(cost.lost_gpu_ns for cost in costs) == sum(range(COSTS_MAX + 50))


def test_causes_and_nodes_of_a_large_fleet_beyond_the_bound_are_told_as_one() -> None:
    total = Sum()
    nodes = FLEET_COSTS_MAX + 50
    for first in range(0, nodes, 50):
        costs = tuple(Cost("RANK_KILLED", f"nodes/{n}", 1, lost_gpu_ns=n) for n in range(first, first + 50))
        total.add(Ledger(gpus=1, costs=costs))
    told = total.told().costs
    assert (len(told), told[0].node, told[-1].cause) == (FLEET_COSTS_MAX, f"nodes/{nodes - 1}", "OTHER")
    assert sum(cost.lost_gpu_ns for cost in told) == sum(range(nodes))


def test_reliability_is_the_sum_of_the_jobs() -> None:
    world = begun(steps_to=91)
    killed(world, fault_s=24, detected_s=24.5, stopped_s=25)
    world.checked(step=91)
    world.seconds = 26
    started(world, 26)
    steps(world, 92, 26)
    one = of_job(world.state, now(world))
    total = Sum()
    total.add(world.state.ledger)
    total.add(world.state.ledger)
    both = total.told()
    assert (one.mttf_s, one.mttr_s) == (9, 2)
    assert (both.mttf_s, both.mttr_s, both.jobs) == (9, 2, 2)
    assert both.gpu_ns == 2 * one.gpu_ns
    assert both.goodput == one.goodput == pytest.approx(9 / 26)
    assert one.ettr == pytest.approx(9 / 16)
    assert [cost.incidents for cost in both.costs] == [2]


def test_the_report_says_where_the_time_went_and_what_took_it() -> None:
    world = begun(steps_to=91)
    killed(world, fault_s=24.1, detected_s=24.5, stopped_s=25)
    world.checked(step=81)
    world.seconds = 26
    started(world, 26)
    steps(world, 82, 26)
    world.seconds = 30
    steps(world, 121, 30)
    assert report(world.state, of_job(world.state, now(world)), 10).splitlines() == [
        "where the 30.0 s of 4 ranks went:",
        "  queue        33.3%       10.0 s",
        "  startup      16.7%       5.00 s",
        "  productive   40.3%       12.1 s",
        "  detection     1.3%       0.40 s",
        "  stop          1.7%       0.50 s",
        "  restart       3.3%       1.00 s",
        "  redo          3.4%       1.02 s",
        "goodput 40.3%, ETTR 60.4%; 121 steps, 10 of them made again",
        "1 incident, one each 12.1 s of productive time, 5.90 s from the fault to the next new step:",
        "  RANK_KILLED on a: 1 x, 2.92 s lost",
    ]


def test_steps_of_a_later_attempt_that_have_no_number_are_not_called_productive() -> None:
    world = begun(steps_to=91)
    world.state.spec = replace(world.state.spec, checkpoint_directory="")
    killed(world, fault_s=24.1, detected_s=24.1, stopped_s=24.1)
    started(world, 24.1)
    for at_s, count in ((25, 1), (30, 51)):
        world.seconds = at_s
        for node, pair in (("nodes/a", (0, 1)), ("nodes/b", (2, 3))):
            told = tuple(m.RankStep(rank, None, at(at_s), at(25), 0, count) for rank in pair)
            world.happen(m.Progress(node, 2, told))
    assert booked(world) == pytest.approx(
        {"queue": 10, "startup": 5, "productive": 9, "redo": 0.1, "load": 0.9, "unknown": 5}
    )
    world.seconds = 31
    found = of_job(world.state, now(world))
    assert (found.goodput, found.ettr) == (pytest.approx(9 / 31), pytest.approx(9 / 21))
    assert stepping_ns(world.state) == 14_000_000_000
    assert (
        "goodput at least 29.0%, ETTR at least 42.9%; steps after a restart have no number, so how many of them were made "
        "again is not known"
    ) in report(world.state, found, 0)


def test_a_program_whose_steps_nobody_sees_has_no_known_goodput() -> None:
    world = World()
    world.place("nodes/a", "nodes/b")
    world.seconds = 5
    lines = report(world.state, of_job(world.state, now(world)), 0).splitlines()
    assert lines[-1] == "no two steps were seen, so its goodput is not known"


def test_of_no_job_nothing_is_known() -> None:
    nothing = Sum().told()
    assert nothing == Goodput(0, 0, dict.fromkeys(Bucket, 0), 0, ())
    assert (nothing.ettr, nothing.mttf_s, nothing.mttr_s) == (None, None, None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00 s"),
        (9.99, "9.99 s"),
        (9.996, "10.0 s"),
        (99.9, "99.9 s"),
        (99.96, "1 min 40 s"),
        (250, "4 min 10 s"),
        (3600 * 3 + 300, "3 h 05 min"),
    ],
)
def test_durations_are_told_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_accounts_beyond_the_bound_are_told_as_one() -> None:
    sums = dict[str, Sum]()
    for number in range(GROUPS_MAX + 5):
        sums[f"a{number:04}"] = Sum(by_node=False)
        sums[f"a{number:04}"].add(Ledger(gpus=1, gpu_ns={Bucket.PRODUCTIVE: 10_000 - number}))
    told = told_apart(sums)
    assert (len(told), told[0][0], told[-1][0]) == (GROUPS_MAX, "a0000", OTHER)
    assert (told[-1][1].jobs, told[-1][1].gpu_ns) == (6, sum(10_000 - number for number in range(999, 1005)))
