"""Run times that are learned, whose turn it is, who may run in front of others, and when they start."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from switchgear.cli.main import main
from switchgear.core.errors import Invalid
from switchgear.planner.baselines.queue import policies
from switchgear.planner.forecast import list_starts, sampled_starts
from switchgear.planner.model import Ended, Job, Node, Policy, Running, Seat, Snapshot, Task
from switchgear.planner.order import order
from switchgear.planner.plan import plan
from switchgear.planner.runtimes import History, Learning, RunTimes
from switchgear.planner.simulate.clock import Arrival, Clock
from switchgear.planner.simulate.planned import LEVELS, Planned
from switchgear.planner.simulate.queue import QueueOutcome, replay
from switchgear.planner.simulate.trace import Trace, read

TASKS = {gpus: Task(gpus=gpus) for gpus in (1, 2, 4, 8)}
HOUR_S = 3600.0


def ended(key: str, seconds: float, at: int, gpus: float = 1.0) -> Ended:
    return Ended("ann", key, "", gpus, seconds, at * 60.0 + seconds, at * 60.0)


def job(name: str, submit_s: float = 1e6, key: str = "", gpus: int = 1, **more: object) -> Job:
    return Job(name, TASKS[gpus], submit_s, user="ann", key=key, **more)  # type: ignore[arg-type]


def history(key: str, seconds: float, count: int = 60) -> tuple[Ended, ...]:
    return tuple(ended(key, seconds, at) for at in range(count))


def turns(snapshot: Snapshot, now_s: float, shares: dict[tuple[str, str], float] | None = None) -> list[str]:
    return [one.name for one in order(snapshot, shares or {}, RunTimes.of(snapshot, now_s), now_s)]


def test_jobs_like_those_that_always_ran_for_an_hour_are_expected_to_run_for_an_hour() -> None:
    run_times = RunTimes.of(Snapshot((), ended=history("train", HOUR_S)), 1e6)
    low_s, middle_s, high_s = run_times.quantiles(job("new", key="train"), 0.0, LEVELS)
    assert 0.75 * HOUR_S < low_s <= middle_s <= high_s < 1.3 * HOUR_S


def test_the_first_of_a_sweep_to_end_teach_how_long_the_others_take() -> None:
    before = history("train", 10 * HOUR_S, 200)
    sweep = tuple(Ended("ann", "train", "", 1.0, 60.0, 1e6 + 60, 1e6) for _ in range(16))
    other, same = job("old", 500.0, "train"), job("new", 1e6, "train")
    run_times = RunTimes.of(Snapshot((), ended=(*before, *sweep)), 1e6 + 100)
    assert run_times.quantiles(same, 0.0, (0.5,))[0] < 0.1 * run_times.quantiles(other, 0.0, (0.5,))[0]


def test_a_job_that_still_runs_teaches_that_its_like_may_take_longer_than_it_has_so_far() -> None:
    short = history("train", 100.0)
    running = tuple(Running(job(f"r{at}", 60.0 * 70, "train"), (Seat("n", (at,)),), 60.0 * 70) for at in range(8))
    alone = RunTimes.of(Snapshot((), ended=short), 1e6)
    beside = RunTimes.of(Snapshot((), running=running, ended=short), 1e6)
    asked = job("new", 1e6, "train")
    assert beside.quantiles(asked, 0.0, (0.9,))[0] > 100 * alone.quantiles(asked, 0.0, (0.9,))[0]


def test_of_what_ended_long_ago_nothing_is_left_and_who_still_runs_since_then_counts() -> None:
    known = (*(ended("train", 10.0, at) for at in range(80)), *(ended("train", HOUR_S, at) for at in range(80, 96)))
    learning = Learning(blocks_max=2)
    (short_s,) = RunTimes(History(known), learning=learning).quantiles(job("next", key="train"), 0.0, (0.1,))
    assert short_s > HOUR_S * 0.8
    runs = ((job(f"old-{at}", -1e6, "train"), 1e6) for at in range(40))
    means_s = [
        RunTimes(History(known), longer, learning=learning).means_s((job("next", key="train"),), 2e5)[0]
        for longer in ((), runs)
    ]
    assert means_s[1] > 2 * means_s[0]


def test_what_has_run_already_is_part_of_every_quantile_and_a_time_limit_bounds_it() -> None:
    run_times = RunTimes.of(Snapshot((), ended=history("train", 100.0)), 1e6)
    assert (run_times.quantiles(job("new", key="train"), 5000.0, LEVELS) >= 5000.0).all()
    assert (run_times.quantiles(job("new", key="train", time_limit_s=50.0), 0.0, LEVELS) <= 50.0).all()


def test_four_of_five_run_times_of_generated_jobs_are_within_the_interval_of_10_to_90_percent() -> None:
    assert 0.75 <= np.mean([inside_interval(seed) for seed in (1, 2, 3)]) <= 0.85


def inside_interval(seed: int) -> float:
    random_ = np.random.default_rng(seed)
    middle = {f"key-{at}": random_.uniform(5, 10) for at in range(12)}
    keys = random_.choice(list(middle), 3000)
    seconds = np.exp([random_.normal(middle[key], 1.0) for key in keys])
    known = tuple(
        ended(key, one_s, at) for at, (key, one_s) in enumerate(zip(keys[:2500], seconds[:2500], strict=True))
    )
    run_times = RunTimes.of(Snapshot((), ended=known), 1e9)
    asked = [job(f"new-{at}", 60.0 * 2500 + at, key) for at, key in enumerate(keys[2500:])]
    inside = [
        low_s <= truth_s <= high_s
        for (low_s, high_s), truth_s in zip(
            (run_times.quantiles(one, 0.0, (0.1, 0.9)) for one in asked), seconds[2500:], strict=True
        )
    ]
    return float(np.mean(inside))


def test_who_is_expected_to_be_done_soon_comes_first_and_waiting_makes_up_for_it() -> None:
    known = history("short", 60.0) + history("long", 20 * HOUR_S)
    waits = (job("a", 1e6, "long"), job("b", 1e6, "short"))
    assert turns(Snapshot((), waits, ended=known), 1e6) == ["b", "a"]
    aged = (job("a", 1e6 - 30 * HOUR_S, "long"), job("b", 1e6, "short"))
    assert turns(Snapshot((), aged, ended=known), 1e6) == ["a", "b"]


def test_priority_goes_before_age_age_of_those_who_starve_before_shares_and_shares_before_run_times() -> None:
    known = history("short", 60.0) + history("long", 20 * HOUR_S)
    had = {("", "ann"): 4.0, ("", "bob"): 0.1}
    waits = (
        job("harvest", key="short", harvest=True, priority=9),
        job("short", key="short"),
        Job("poor", TASKS[1], 1e6, user="bob", key="long"),
        job("starving", 1e6 - 25 * HOUR_S, "long"),
        job("urgent", key="long", priority=1),
    )
    expected = ["urgent", "starving", "poor", "short", "harvest"]
    assert turns(Snapshot((), waits, ended=known), 1e6, had) == expected


def test_small_differences_in_what_users_have_had_do_not_undo_the_order_by_run_time() -> None:
    known = history("short", 60.0) + history("long", 20 * HOUR_S)
    waits = job("short", key="short"), Job("poorer", TASKS[1], 1e6, user="bob", key="long")
    had = {("", "ann"): 0.95, ("", "bob"): 0.75}
    assert turns(Snapshot((), waits, ended=known), 1e6, had) == ["short", "poorer"]


def test_each_node_that_is_kept_is_lent_until_its_own_start_is_due() -> None:
    nodes = tuple(Node(f"n{at}", 8) for at in range(2))
    half = tuple(range(4))
    running = tuple(
        Running(Job(f"r{at}", TASKS[4], 0.0, time_limit_s=left_s), (Seat(f"n{at}", half),), 0.0)
        for at, left_s in enumerate((1000.0, 5000.0))
    )
    large = tuple(Job(f"large-{at}", TASKS[8], 0.0, time_limit_s=500.0) for at in range(2))
    short = Job("short", TASKS[4], 0.0, time_limit_s=3000.0)
    long = Job("long", TASKS[4], 0.0, time_limit_s=6000.0)
    found = plan(Snapshot(nodes, (*large, short, long), running), 1.0)
    assert [(one.job.name, one.seats[0].node) for one in found.starts] == [("short", "n1")]
    assert {wait.job: wait.start_s for wait in found.waits if wait.job in {"large-0", "large-1"}} == {
        "large-0": 1000.0,
        "large-1": 5000.0,
    }


@pytest.mark.parametrize(("limit_s", "node"), [(900.0, "n0"), (4000.0, "n1"), (9000.0, "n1")])
def test_who_ends_later_goes_to_a_node_that_is_not_empty_before(limit_s: float, node: str) -> None:
    nodes = tuple(Node(f"n{at}", 8) for at in range(3))
    running = tuple(
        Running(Job(f"r{at}", TASKS[4], 0.0, time_limit_s=left_s), (Seat(f"n{at}", tuple(range(4))),), 0.0)
        for at, left_s in enumerate((1000.0, 5000.0))
    )
    (start,) = plan(Snapshot(nodes, (Job("j", TASKS[4], 0.0, time_limit_s=limit_s),), running), 1.0).starts
    assert start.seats[0].node == node


def test_no_job_is_let_in_front_of_a_kept_start_that_it_would_delay_when_run_times_are_known_exactly() -> None:
    nodes = tuple(Node(f"n{at}", 8) for at in range(2))
    arrivals = [
        Arrival(Job("first", TASKS[4], 0.0, time_limit_s=1000.0), 1000.0),
        Arrival(Job("large", TASKS[8], 1.0, tasks=2, time_limit_s=500.0), 500.0),
        *(Arrival(Job(f"fits-{at}", TASKS[2], 2.0 + at, time_limit_s=300.0), 300.0) for at in range(20)),
        *(Arrival(Job(f"late-{at}", TASKS[2], 2.5 + at, time_limit_s=3000.0), 3000.0) for at in range(20)),
    ]
    clock = Clock(Snapshot(nodes), arrivals, plan, tick_s=60.0)
    clock.run(until_s=20_000)
    assert clock.outcomes["large"].start_s == 1000.0
    assert clock.outcomes["fits-0"].start_s == 2.0


@pytest.mark.parametrize("seed", [1, 2])
def test_whoever_starves_starts_within_the_longest_run_of_each_that_starves_before_it(seed: int) -> None:
    random_ = random.Random(seed)
    longest_s, starving_s = 3000.0, 2000.0
    gangs = [Arrival(Job(f"gang-{at}", TASKS[8], 5.0 + at, tasks=2, key="gang"), longest_s) for at in range(2)]
    small = [
        Arrival(
            Job(f"small-{at}", TASKS[random_.choice((1, 2, 4))], at * 60.0, key="small"), random_.uniform(60, longest_s)
        )
        for at in range(70)
    ]
    world = Snapshot(tuple(Node(f"n{at}", 8) for at in range(2)), policy=Policy(starving_s=starving_s))
    clock = Clock(world, [*gangs, *small], plan)
    clock.run(until_s=9_000)
    for before, gang in enumerate(gangs):
        start_s = clock.outcomes[gang.job.name].start_s
        assert start_s is not None
        assert start_s - gang.job.submit_s <= starving_s + (before + 1) * longest_s + 600.0


def test_in_a_world_each_job_takes_the_nodes_that_are_free_first_and_gangs_take_whole_ones() -> None:
    release_s = np.array([[[0.0, 0.0], [5.0, 9.0]]])
    wants = np.array([[1, 2], [2, 2], [1, 1]])
    run_s = np.array([[4.0, 10.0, 1.0]])
    starts_s = list_starts(wants, run_s, release_s, [None, None, None])
    assert starts_s.tolist() == [[0.0, 9.0, 19.0]]


def test_a_job_that_waits_is_told_when_it_can_be_expected_to_start_the_same_each_time() -> None:
    nodes = (Node("n", 8),)
    running = (Running(job("r", 0.0, "train", 8), (Seat("n", tuple(range(8))),), 9e5),)
    known = tuple(ended("train", 2e5, at, 8.0) for at in range(100))
    snapshot = Snapshot(nodes, (job("w", 9e5, "train", 8),), running, ended=known)
    (wait,) = plan(snapshot, 1e6).waits
    bounds_s = wait.start_low_s, wait.start_s, wait.start_high_s
    assert [one_s for one_s in bounds_s if one_s is not None] == sorted(one_s or 0.0 for one_s in bounds_s)
    assert wait.start_s == pytest.approx(1.1e6, rel=0.05)
    assert plan(snapshot, 1e6) == plan(snapshot, 1e6)
    assert np.isfinite(sampled_starts(snapshot, running, snapshot.pending, RunTimes.of(snapshot, 1e6), 1e6)).all()


def test_without_a_history_nobody_is_told_a_time() -> None:
    running = (Running(job("r", 0.0, "train", 8), (Seat("n", tuple(range(8))),), 9e5),)
    (wait,) = plan(Snapshot((Node("n", 8),), (job("w", 9e5, "train", 8),), running), 1e6).waits
    assert wait.start_s is None


def lines(jobs: int = 120) -> Iterator[str]:
    random_ = random.Random(5)
    yield "timestamp,duration,num_gpus,gpu_time,cluster"
    for at in range(jobs):
        gpus = random_.choice((1, 1, 1, 2, 4, 8, 16))
        seconds = random_.choice((60, 600, 7200))
        yield f"2017-10-{9 + at // 60:02} {at % 60 // 20:02}:{at % 60:02}:00,{seconds},{gpus},{seconds * gpus},a"


def planned(trace: Trace) -> QueueOutcome:
    return replay(trace, Planned(trace, [], nodes=2, gpus_per_node=8), nodes=2, gpus_per_node=8)


def test_every_policy_brings_every_job_to_its_end_without_running_longer_than_it_has_work() -> None:
    trace = read(lines(60))
    for outcome in [
        planned(trace),
        *(replay(trace, one, nodes=2, gpus_per_node=8) for one in policies(trace).values()),
    ]:
        assert (outcome.wait_s >= -1e-6).all()
        assert np.isfinite(outcome.end_s).all()


def test_a_replay_under_the_planner_is_the_same_each_time() -> None:
    trace = read(lines(40))
    assert planned(trace).end_s.tolist() == planned(trace).end_s.tolist()


def test_strict_fifo_lets_nobody_pass_easy_lets_pass_whom_it_does_not_delay_and_a_stop_costs_its_restart() -> None:
    text = ["timestamp,duration,num_gpus"]
    text += [
        f"2017-10-09 00:00:0{at},{run},{gpus}" for at, (run, gpus) in enumerate([(100, 4), (100, 8), (50, 4), (500, 2)])
    ]
    trace = read(text)
    named = policies(trace)
    waits_s = {
        name: replay(trace, named[name], nodes=1, gpus_per_node=8).wait_s for name in ("fifo", "easy", "skip-ahead")
    }
    assert waits_s["fifo"].tolist() == [0.0, 99.0, 198.0, 197.0]
    assert waits_s["easy"].tolist() == [0.0, 99.0, 0.0, 197.0]
    assert waits_s["skip-ahead"].tolist() == [0.0, 551.0, 0.0, 49.0]
    long = read([text[0], "2017-10-09 00:00:00,2000,8", "2017-10-09 00:30:00,10,8"])
    stopped = replay(long, policies(long)["las"], nodes=1, gpus_per_node=8, restart_s=60.0)
    assert stopped.preemptions == 1
    assert stopped.wait_s.tolist() == pytest.approx([70.0, 0.0], abs=0.1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no column timestamp"),
        ("timestamp,num_gpus\n", "line 1: no column duration"),
        ("timestamp,duration,num_gpus\n", "no job"),
        ("timestamp,duration,num_gpus\n2017-10-09 00:00:00,5,1\nyesterday,5,1\n", 'line 3: timestamp "yesterday"'),
        ("timestamp,duration,num_gpus\n2017-10-09 00:00:00,nan,1\n", 'line 2: duration "nan"'),
        ("timestamp,duration,num_gpus\n2017-10-09 00:00:00,5,0\n", 'line 2: num_gpus "0"'),
        ("timestamp,duration,num_gpus\n2017-10-09 00:00:00,5\n", "line 2: 2 cells"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_with_the_line_and_what_it_should_be(text: str, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        read(text.splitlines())


def test_simulate_queue_prints_figures_of_each_policy_and_of_the_run_times_that_were_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text("\n".join(lines(30)))
    size = ["--nodes", "2", "--gpus-per-node", "8", "--start", "2017-10-09", "--days", "1"]
    assert main(["simulate", "queue", "--jobs", str(path), *size, "--policy", "all", "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert list(found["policies"]) == ["fifo", "skip-ahead", "easy", "las", "sjf", "switchgear"]
    ours = found["policies"]["switchgear"]
    assert ours["waitHoursMean"] <= ours["waitHoursMax"]
    assert 0 <= ours["runTimes"]["learned"]["coverage"] <= 1
    assert "switchgear: 30 of 30 jobs" in said.err
