"""Where every second of a job's GPUs went, told by hand-made histories: what is in each bucket, and that nothing is missing."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from pydantic import TypeAdapter
from recovery_world import START_NS, World

from switchgear.recovery import model as m
from switchgear.recovery.goodput import FLEET_COSTS_MAX, Goodput, Sum, duration, of_job, report
from switchgear.recovery.ledger import COSTS_MAX, Bucket, Cost, Ledger, add_cost
from switchgear.recovery.machine import LEASE_S, resume, step

GPUS = 4
STATE = TypeAdapter(m.JobState)


def at(seconds: float) -> int:
    return START_NS + round(seconds * 1e9)


def now(world: World) -> m.Now:
    return m.Now(world.seconds, at(world.seconds))


def told(world: World) -> dict[str, float]:
    """Seconds of all GPUs in each bucket that is not empty, up to now. All of them together are the wall clock to the nanosecond."""
    found = of_job(world.state, now(world))
    assert sum(found.buckets.values()) == GPUS * ((world.state.end_ns or at(world.seconds)) - START_NS)
    return {bucket.value: booked / GPUS / 1e9 for bucket, booked in found.buckets.items() if booked}


def booked(world: World) -> dict[str, float]:
    """Those that nothing can change any more."""
    ledger = world.state.ledger
    assert sum(ledger.gpu_ns.values()) == GPUS * (ledger.settled_ns - ledger.start_ns)
    return {bucket.value: gpu_ns / GPUS / 1e9 for bucket, gpu_ns in ledger.gpu_ns.items()}


def started(world: World, at_s: float) -> None:
    per_node = {"nodes/a": (0, 1), "nodes/b": (2, 3)}
    world.happen(
        *(
            m.RankStarted(node, world.state.generation, rank, 100 + rank, at(at_s))
            for node in world.state.attempt.nodes  # type: ignore[union-attr]
            for rank in per_node.get(node, (2, 3))
        )
    )


def steps(world: World, to: int, at_s: float, *, checkpoint_s: float = 0.0, first_s: float | None = None) -> None:
    """All ranks have completed step `to` at that time; heard of now. first_s: of the first step, when it is not heard of already."""
    attempt = world.state.attempt
    assert attempt is not None
    first_ns = at(at_s if first_s is None else first_s)
    new_ns = at(at_s) if to > attempt.high_water_step else 0
    for node in attempt.nodes:
        reports = (
            m.RankStep(rank, to, at(at_s), first_ns, new_ns, checkpoint_ns=round(checkpoint_s * 1e9))
            for rank, view in attempt.ranks.items()
            if view.node == node
        )
        world.happen(m.Progress(node, world.state.generation, tuple(reports)))


def watched(world: World, activity: m.Activity, process: m.ProcessState) -> None:
    """All ranks have made no step since 24 s."""
    for node, ranks in (("nodes/a", (0, 1)), ("nodes/b", (2, 3))):
        idle_s = world.seconds - 24
        said = (m.RankWatch(r, idle_s, activity, process, idle_s, at(24), 91, 0.1) for r in ranks)
        world.happen(m.Watched(node, world.state.generation, tuple(said)))


def begun(*, steps_to: int = 100) -> World:
    """Placed at 10 s, ranks at 12 s, first step at 15 s, then ten steps a second up to `steps_to`."""
    world = World()
    world.seconds = 10
    world.place("nodes/a", "nodes/b")
    world.hello("nodes/a")
    world.hello("nodes/b")
    world.checked()
    world.seconds = 12.5
    started(world, 12)
    world.seconds = 15.5
    steps(world, 1, 15)
    for number in range(11, steps_to + 1, 10):
        world.seconds = 15 + number / 10
        steps(world, number, world.seconds - 0.1)
    return world


def killed(world: World, fault_s: float, detected_s: float, stopped_s: float) -> None:
    """A rank ends; all is gone, and the answer of the check is awaited."""
    world.seconds = detected_s
    world.happen(world.exit(1, -9, at_s=fault_s))
    world.happen(*(world.exit(rank, -9, by_us=True) for rank in (0, 2, 3)))
    world.stopped("nodes/a")
    world.seconds = stopped_s
    world.stopped("nodes/b")


def test_a_job_without_a_fault_waits_starts_and_trains() -> None:
    world = begun(steps_to=91)
    assert booked(world) == {"queue": 10, "startup": 5, "productive": 9}
    world.seconds = 30
    assert told(world) == {"queue": 10, "startup": 5, "productive": 15}
    for rank in range(4):
        world.happen(world.exit(rank, 0, step=91))
    world.stopped("nodes/a", "nodes/b")
    assert world.state.phase is m.Phase.ENDED
    assert told(world) == booked(world) == {"queue": 10, "startup": 5, "productive": 9, "stop": 6}


def test_a_fault_is_told_from_its_first_sign_to_the_first_new_step() -> None:
    world = begun(steps_to=91)  # at 24 s
    killed(world, fault_s=24.05, detected_s=24.5, stopped_s=25)
    world.seconds = 26
    world.checked(step=71)
    world.seconds = 27
    started(world, 26.5)
    assert told(world) == pytest.approx(
        {
            "queue": 10,
            "startup": 5,
            "productive": 9,
            "redo": 0.05,
            "detection": 0.45,
            "stop": 0.5,
            "restart": 1.5,
            "load": 0.5,
        }
    )
    world.seconds = 30
    steps(world, 72, 28)
    steps(world, 101, 30.9)
    world.seconds = 31
    assert booked(world) == pytest.approx(
        {
            "queue": 10, "startup": 5, "productive": 9 + 2 * 10 / 29, "redo": 0.05 + 2 * 19 / 29, "detection": 0.45,
            "stop": 0.5, "restart": 1.5, "load": 1.5,
        }
    )  # fmt: skip
    (cost,) = world.state.ledger.costs
    assert (cost.cause, cost.node, cost.incidents, cost.recovered) == ("RANK_KILLED", "nodes/a", 1, 1)
    assert cost.lost_gpu_ns == sum(
        world.state.ledger.gpu_ns[b] for b in Bucket if b in ("redo", "detection", "stop", "restart", "load")
    )
    assert cost.recovery_ns == at(30.9) - at(24.05)


def test_what_is_open_is_shown_as_what_it_seems_to_be_until_it_is_decided() -> None:
    world = begun(steps_to=91)
    world.seconds = 25
    assert told(world)["productive"] == 10
    killed(world, fault_s=24.2, detected_s=25, stopped_s=25.5)
    assert told(world)["productive"] == booked(world)["productive"] == 9
    world = begun(steps_to=91)
    world.seconds = 25
    world.happen(world.exit(1, -9, at_s=24.2))
    world.seconds = 26
    assert booked(world)["productive"] == 9
    assert told(world) == pytest.approx(
        {"queue": 10, "startup": 5, "productive": 9, "redo": 0.2, "detection": 0.8, "stop": 1}
    )


def test_checkpoints_are_told_apart_from_the_steps_around_them() -> None:
    world = begun(steps_to=91)
    world.seconds = 28
    steps(world, 101, 26, checkpoint_s=1)
    assert booked(world) == pytest.approx({"queue": 10, "startup": 5, "productive": 10, "checkpoint": 1})
    # Time in a checkpoint after the newest step is told when it is over: never more than has passed.
    world.seconds = 29
    steps(world, 101, 26, checkpoint_s=3)
    steps(world, 102, 28.1, checkpoint_s=3)
    assert booked(world) == pytest.approx({"queue": 10, "startup": 5, "productive": 10.1, "checkpoint": 3})


def test_slow_steps_are_degraded_by_what_they_take_beyond_the_usual() -> None:
    world = begun(steps_to=91)
    world.seconds = 34
    steps(world, 101, 34)  # 10 s for what took 1 s
    productive = booked(world)["productive"]
    assert productive == pytest.approx(10, rel=0.05)
    assert booked(world)["degraded"] == pytest.approx(24 + 10 - 5 - 10 - productive)
    steps(world, 111, 34)  # known late
    world.seconds = 35.4
    steps(world, 121, 35.4)  # 1.4 times the usual is no reason for a name
    assert booked(world)["productive"] == pytest.approx(productive + 1.4)


def test_the_first_steps_are_never_called_slow() -> None:
    world = begun(steps_to=11)
    world.seconds = 60
    steps(world, 12, 60)
    assert "degraded" not in booked(world)


@pytest.mark.parametrize(
    ("process", "fault"), [(m.ProcessState.SLEEPING, m.Fault.RANK_HUNG), (m.ProcessState.STOPPED, m.Fault.RANK_STOPPED)]
)
def test_a_job_that_stands_still_is_hung_from_its_last_step_to_the_verdict(
    process: m.ProcessState, fault: m.Fault
) -> None:
    world = begun(steps_to=91)
    world.seconds = 40
    watched(world, m.Activity.STEP, process)
    assert world.state.incident is not None
    assert world.state.incident.fault is fault
    world.seconds = 40.5
    world.happen(*(world.exit(rank, -9, by_us=True) for rank in range(4)))
    world.stopped("nodes/a", "nodes/b")
    assert booked(world) == {"queue": 10, "startup": 5, "productive": 9, "hung": 16, "stop": 0.5}


def test_an_evaluation_between_two_steps_makes_no_step_slow() -> None:
    world = begun(steps_to=91)
    world.seconds = 30
    watched(world, m.Activity.EVALUATION, m.ProcessState.RUNNING)
    world.seconds = 34
    steps(world, 101, 34)
    assert booked(world) == {"queue": 10, "startup": 5, "productive": 19}
    world.happen(*(m.Watched(node, world.state.generation, ()) for node in ("nodes/a", "nodes/b")))
    world.seconds = 44
    steps(world, 111, 44)
    assert booked(world)["degraded"] == pytest.approx(9, rel=0.01)


def test_while_a_node_is_replaced_its_job_is_idle() -> None:
    world = begun(steps_to=91)
    world.seconds = 25
    world.happen(m.NodeSignal("nodes/b", "nodes/b/gpus/0", "GPU_LOST", "Xid 79", at(24.5), simulated=True))
    world.seconds = 26
    world.happen(*(world.exit(rank, -9, by_us=True) for rank in range(4)))
    world.stopped("nodes/a", "nodes/b")
    assert world.state.phase is m.Phase.REPLACING
    world.seconds = 56
    world.place("nodes/a", "nodes/c", epoch=2, joined={"nodes/a": 1})
    world.seconds = 57
    assert told(world) == {
        "queue": 10, "startup": 5, "productive": 9, "redo": 0.5, "detection": 0.5, "stop": 1, "idle": 30, "restart": 1,
    }  # fmt: skip


def test_a_silent_node_is_detection_since_it_was_last_heard() -> None:
    world = begun(steps_to=91)
    world.happen(m.LauncherSeen("nodes/a", "launcher-nodes/a"), m.LauncherSeen("nodes/b", "launcher-nodes/b"))
    heard_s = world.seconds
    world.seconds = heard_s + LEASE_S + 6
    world.happen(m.LauncherSeen("nodes/a", "launcher-nodes/a"), m.Tick())
    world.happen(*(world.exit(rank, -9, by_us=True) for rank in (0, 1)))
    world.stopped("nodes/a")
    lost = booked(world)
    assert (lost["redo"], lost["detection"]) == pytest.approx((heard_s - 24, LEASE_S + 6))


def test_two_faults_in_one_attempt_are_one_incident_and_each_second_is_told_once() -> None:
    world = begun(steps_to=91)
    world.seconds = 24.5
    world.happen(world.exit(1, -9, at_s=24.1), world.exit(2, -11, at_s=24.3))
    world.happen(world.exit(0, -9, by_us=True), world.exit(3, -9, by_us=True))
    world.seconds = 25
    world.stopped("nodes/a", "nodes/b")
    assert booked(world) == pytest.approx(
        {"queue": 10, "startup": 5, "productive": 9, "redo": 0.1, "detection": 0.4, "stop": 0.5}
    )


def test_a_second_fault_before_the_first_step_is_told_from_its_own_time() -> None:
    world = begun(steps_to=91)
    killed(world, fault_s=24, detected_s=25, stopped_s=26)
    world.checked(step=91)
    world.seconds = 27
    started(world, 27)
    killed(world, fault_s=28, detected_s=29, stopped_s=30)
    assert booked(world) == pytest.approx(
        {"queue": 10, "startup": 5, "productive": 9, "stop": 2, "restart": 1, "load": 1, "detection": 2}
    )
    world.checked(step=91)
    world.seconds = 33
    started(world, 31)
    steps(world, 92, 33)
    assert [(cost.incidents, cost.recovered) for cost in world.state.ledger.costs] == [(1, 1)]


def test_a_first_attempt_that_never_made_a_step_was_startup_until_its_fault() -> None:
    world = World()
    world.place("nodes/a", "nodes/b")
    world.hello("nodes/a")
    world.hello("nodes/b")
    world.checked()
    world.seconds = 3
    started(world, 2)
    killed(world, fault_s=5, detected_s=6, stopped_s=7)
    assert booked(world) == {"startup": 5, "detection": 1, "stop": 1}
    assert told(world) == booked(world)


def test_steps_that_only_the_exits_tell_of_were_made_before_the_fault() -> None:
    world = begun(steps_to=91)
    world.seconds = 26
    world.happen(world.exit(1, -9, at_s=25, step=96))
    world.happen(*(world.exit(rank, -9, by_us=True, step=96) for rank in (0, 2, 3)))
    world.stopped("nodes/a", "nodes/b")
    assert booked(world) == pytest.approx(
        {"queue": 10, "startup": 5, "productive": 9.5, "redo": 0.5, "detection": 1}, rel=0.03
    )


def test_a_job_that_is_cancelled_ends_where_it_is() -> None:
    world = World()
    world.seconds = 10
    world.place("nodes/a", "nodes/b")
    world.seconds = 12
    world.happen(m.EndedOutside("cancelled"))
    assert told(world) == booked(world) == {"queue": 10, "startup": 2}
    world.seconds = 100
    assert told(world) == {"queue": 10, "startup": 2}
    running = begun(steps_to=91)
    running.seconds = 25
    running.happen(m.EndedOutside("cancelled"))
    assert booked(running) == {"queue": 10, "startup": 5, "productive": 9, "stop": 1}


def test_a_job_that_is_cancelled_while_it_waits_for_a_node_was_idle() -> None:
    world = begun(steps_to=91)
    world.happen(m.NodeSignal("nodes/b", "", "NODE_FAULT", "machine check", at(world.seconds), simulated=True))
    world.happen(*(world.exit(rank, -9, by_us=True) for rank in range(4)))
    world.stopped("nodes/a", "nodes/b")
    world.seconds += 50
    world.happen(m.EndedOutside("cancelled"))
    assert booked(world)["idle"] == 50
    assert [cost.recovered for cost in world.state.ledger.costs] == [0]


def test_time_in_which_recovery_was_away_is_booked_by_what_the_launchers_then_say() -> None:
    world = begun(steps_to=31)  # up to 18 s
    stored = STATE.dump_python(world.state, mode="json")
    world.seconds = 80
    world.state = resume(STATE.validate_python(stored), m.Now(3.0, at(80)))
    started_s = world.seconds
    world.seconds = 3.0  # another machine's monotonic clock

    def happen(*events: m.Event, unix_s: float) -> None:
        for event in events:
            world.state, _ = step(world.state, event, m.Now(world.seconds, at(unix_s)))

    assert world.state.attempt is not None
    for node in ("nodes/a", "nodes/b"):
        alive = tuple((r, 100 + r, at(12)) for r, view in world.state.attempt.ranks.items() if view.node == node)
        happen(m.LauncherHello(node, 1, f"launcher-{node}", 1, 5000, alive), unix_s=started_s)
    for node in ("nodes/a", "nodes/b"):
        reports = [
            m.RankStep(r, 631, at(78), at(15), at(15))
            for r, view in world.state.attempt.ranks.items()
            if view.node == node
        ]
        happen(m.Progress(node, 1, tuple(reports)), unix_s=started_s)
    assert booked(world) == {"queue": 10, "startup": 5, "productive": 63}


def test_a_clock_that_jumps_takes_no_time_and_gives_none() -> None:
    world = begun(steps_to=91)
    wall_ns = world.state.ledger.at_ns
    for jump_s in (-3600, 86_400):
        world.seconds += 0.5
        event = m.LauncherSeen("nodes/a", "launcher-nodes/a")
        world.state, _ = step(world.state, event, m.Now(world.seconds, at(world.seconds + jump_s)))
    assert world.state.ledger.at_ns - wall_ns == 1_000_000_000


def test_a_clock_that_was_set_back_while_recovery_was_away_takes_nothing_back() -> None:
    world = begun(steps_to=91)
    before = world.state.ledger
    state = resume(world.state, m.Now(0.0, at(5)))
    state, _ = step(state, m.LauncherSeen("nodes/a", "launcher-nodes/a"), m.Now(0.0, at(5)))
    assert (state.ledger.at_ns, state.ledger.gpu_ns) == (before.at_ns, before.gpu_ns)


def test_times_of_a_launcher_whose_clock_is_wrong_stay_within_what_has_passed() -> None:
    for skew_s in (-1000.0, 1000.0):
        world = begun(steps_to=91)
        world.seconds = 26
        steps(world, 101, 26 + skew_s)
        world.seconds = 27
        steps(world, 111, 27 + skew_s)
        found = booked(world)
        assert sum(found.values()) <= 27
        assert sum(told(world).values()) == pytest.approx(27)


def test_a_job_from_before_there_was_a_ledger_is_accounted_for_from_now_on() -> None:
    world = begun(steps_to=91)
    stored = STATE.dump_python(world.state, mode="json")
    del stored["ledger"]
    world.state = STATE.validate_python(stored)
    assert world.state.ledger == Ledger()
    world.seconds = 30
    world.happen(m.LauncherSeen("nodes/a", "launcher-nodes/a"))
    world.seconds = 31
    steps(world, 150, 31)
    assert booked(world) == {"productive": 1}


def test_a_replica_that_serves_is_productive_as_long_as_it_runs() -> None:
    world = World()
    world.state.spec = replace(world.state.spec, inference=True, checkpoint_directory="")
    world.place("nodes/a", "nodes/b")
    world.hello("nodes/a")
    world.hello("nodes/b")
    world.seconds = 3
    started(world, 2)
    world.seconds = 10
    assert told(world) == {"startup": 2, "productive": 8}


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


def test_random_histories_are_told_to_the_nanosecond() -> None:
    rng = random.Random(5)
    for _ in range(50):
        world = begun(steps_to=rng.randrange(1, 60))
        for _ in range(rng.randrange(1, 5)):
            world.seconds += rng.uniform(0, 3)
            detected_s = world.seconds
            killed(world, detected_s - rng.uniform(-1, 2), detected_s, detected_s + rng.uniform(0, 1))
            if world.state.phase is m.Phase.ENDED:
                break
            told(world)
            base = rng.randrange(0, world.state.high_water_step + 1)
            world.checked(step=base)
            world.seconds += rng.uniform(0, 2)
            started(world, world.seconds - rng.uniform(0, 3))
            told(world)
            world.seconds += rng.uniform(0, 2)
            steps(world, base + rng.randrange(1, 50), world.seconds - rng.uniform(0, 3), checkpoint_s=rng.uniform(0, 3))
            told(world)
            booked(world)


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
