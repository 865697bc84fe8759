"""Where every second of a job's GPUs went, told by hand-made histories: what is in each bucket, and that nothing is missing."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from ledger_world import at, begun, booked, killed, started, steps, told, watched
from pydantic import TypeAdapter
from recovery_world import World

from switchgear.recovery import model as m
from switchgear.recovery.ledger import Bucket, Ledger
from switchgear.recovery.machine import LEASE_S, resume, step

STATE = TypeAdapter(m.JobState)


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


def test_gpus_that_the_job_goes_on_without_are_degraded_and_its_steps_are_learned_anew() -> None:
    world = begun(steps_to=91)
    world.seconds = 25
    world.happen(m.NodeSignal("nodes/b", "", "NODE_FAULT", "machine check", at(24), simulated=True))
    world.happen(*(world.exit(rank, -9, by_us=True) for rank in range(4)))
    world.stopped("nodes/a", "nodes/b")
    world.place("nodes/a", epoch=2, joined={"nodes/a": 1})
    world.checked(step=91)
    started(world, 25)
    assert world.state.attempt is not None
    assert len(world.state.attempt.ranks) == 2
    world.seconds = 30
    steps(world, 92, 26)
    world.seconds = 46
    steps(world, 142, 46)  # four times as slow as before: as fast as half of the ranks can
    assert booked(world) == {
        "queue": 10, "startup": 5, "productive": 19, "degraded": 10, "detection": 1, "load": 1,
    }  # fmt: skip


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
    watched(world, m.Activity.COLLECTIVE, process)
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
