"""The recovery machine, driven by events as launchers and services would report them."""

from __future__ import annotations

from recovery_world import START_NS, World, kinds

from switchgear.recovery import model as m
from switchgear.recovery.goodput import productive_ns
from switchgear.recovery.machine import (
    LAUNCHER_START_S,
    LEASE_MARGIN_S,
    LEASE_S,
    resume,
    step,
    steps_redone,
)


def test_an_attempt_starts_once_every_launcher_reports_and_the_checkpoints_are_checked() -> None:
    world = World()
    assert kinds(world.place("nodes/a", "nodes/b")) == []
    assert kinds(world.hello("nodes/a")) == []
    assert kinds(world.hello("nodes/b")) == ["Check"]
    assert kinds(world.checked()) == ["SaveAttempt", "Start", "Start"]
    assert world.state.generation == 1
    starts = [effect for effect in world.effects if isinstance(effect, m.Start)]
    assert [(s.node, s.node_rank, s.attempt.master_port, s.attempt.resume_step) for s in starts] == [
        ("nodes/a", 0, 5000, 0),
        ("nodes/b", 1, 5000, 0),
    ]


def test_without_a_checkpoint_directory_nothing_is_checked() -> None:
    world = World(checkpoint_directory="")
    world.place("nodes/a", "nodes/b")
    world.hello("nodes/a")
    assert kinds(world.hello("nodes/b")) == ["SaveAttempt", "Start", "Start"]


def test_a_killed_rank_is_restarted_in_place_from_the_newest_verified_checkpoint() -> None:
    world = World()
    world.run_to(57)
    world.seconds = 10.0
    effects = world.happen(world.exit(1, -9, step=57))
    assert kinds(effects) == ["Stop", "Stop", "SaveIncident"]
    world.seconds = 10.2
    world.happen(
        world.exit(0, -9, by_us=True, step=57),
        world.exit(2, -9, by_us=True, step=58),
        world.exit(3, -9, by_us=True, step=57),
    )
    assert kinds(world.stopped("nodes/a")) == []
    assert "Check" in kinds(world.stopped("nodes/b"))
    world.checked(step=50)
    assert world.state.generation == 2
    world.seconds = 11.0
    world.progress(51, new=False)
    assert world.state.incident is not None
    world.seconds = 11.5
    world.progress(58)
    incident = world.last_incident()
    assert (incident.state, incident.fault, incident.rank, incident.node) == ("RESOLVED", "RANK_KILLED", 1, "nodes/a")
    assert (incident.decision, incident.failed_step, incident.resume_step, incident.steps_redone) == (
        "RESTART_IN_PLACE",
        57,
        50,
        7,
    )
    assert set(incident.timeline) == {"fault", "detected", "stopped", "decided", "first_step", "first_new_step"}
    assert incident.summary == (
        "Rank 1 on nodes/a was killed by SIGKILL after step 57 (its launcher saw process 101 end); the job was restarted in place from the verified checkpoint "
        "of step 50; it cost 1.5 s until the first new step and 7 steps made again."
    )
    assert steps_redone(world.state) == 7


def test_the_culprit_is_the_rank_that_fell_and_not_the_peer_that_noticed_first() -> None:
    world = World()
    world.run_to(5)
    witness = world.exit(
        2, 1, exception="RuntimeError: [gloo/tcp/pair.cc:1] Connection closed by peer [127.0.0.1]:1", at_s=4.0
    )
    world.happen(witness)
    assert world.state.incident is not None
    assert world.state.incident.rank == 2  # all that is known so far
    world.happen(world.exit(1, -9, at_s=4.1), world.exit(0, -9, by_us=True), world.exit(3, -9, by_us=True))
    world.stopped("nodes/a", "nodes/b")
    assert world.last_incident().rank == 1
    assert world.last_incident().fault is m.Fault.RANK_KILLED


def test_the_same_exception_before_the_first_step_stops_after_the_second_time() -> None:
    world = World()
    world.place("nodes/a", "nodes/b")
    world.hello("nodes/a")
    world.hello("nodes/b")
    for _ in range(2):
        world.checked()
        world.happen(*(world.exit(rank, 1, exception="ValueError: no such file") for rank in range(4)))
        world.stopped("nodes/a", "nodes/b")
    assert world.state.phase is m.Phase.ENDED
    assert world.state.generation == 2
    incident = world.last_incident()
    assert (incident.state, incident.decision) == ("ESCALATED", "STOP")
    assert (
        "raised ValueError: no such file before its first step (its launcher saw process 100 end); the job was stopped: the same error came twice"
        in incident.summary
    )
    assert world.state.outbox[-1].outcome is m.JobOutcome.FAILED


def test_the_same_exception_at_the_same_step_stops_although_the_first_attempt_made_progress() -> None:
    world = World()
    world.run_to(7)
    for _ in range(2):
        exits = [world.exit(rank, 1, exception="AssertionError: step 8", step=7) for rank in range(4)]
        world.happen(*exits)
        world.stopped("nodes/a", "nodes/b")
        if world.state.phase is m.Phase.CHECKING:
            world.checked(step=5)
    assert world.state.phase is m.Phase.ENDED
    assert world.last_incident().decision is m.Decision.STOP


def test_exceptions_use_up_the_restarts_but_faults_of_the_infrastructure_do_not() -> None:
    world = World(max_restarts=1)
    world.run_to(10)
    for number in range(3):  # SIGKILL from outside, each time after progress
        world.happen(world.exit(0, -9, step=10 + number))
        world.happen(*(world.exit(r, -9, by_us=True, step=10 + number) for r in (1, 2, 3)))
        world.stopped("nodes/a", "nodes/b")
        world.checked(step=10)
        world.progress(11 + number)
    assert world.state.restarts_used == 0
    for text in ("RuntimeError: one", "RuntimeError: two"):
        world.happen(*(world.exit(r, 1, exception=text, step=20) for r in range(4)))
        world.stopped("nodes/a", "nodes/b")
        if world.state.phase is m.Phase.CHECKING:
            world.checked(step=10)
            world.progress(30)
    assert world.state.phase is m.Phase.ENDED
    assert "all 1 restarts" in world.last_incident().decision_reason


def test_max_restarts_0_stops_at_the_first_fault() -> None:
    world = World(max_restarts=0)
    world.run_to(10)
    world.happen(*(world.exit(r, -9) for r in range(4)))
    world.stopped("nodes/a", "nodes/b")
    assert world.state.phase is m.Phase.ENDED


def test_three_attempts_without_a_new_step_are_enough() -> None:
    world = World(max_restarts=100)
    world.run_to(10)
    attempts = 0
    while world.state.phase is not m.Phase.ENDED and attempts < 10:
        attempts += 1
        world.happen(*(world.exit(r, -9, step=10) for r in range(4)))
        world.stopped("nodes/a", "nodes/b")
        if world.state.phase is m.Phase.CHECKING:
            world.checked(step=10)
    assert attempts == 4  # the first had made progress


def test_a_lost_gpu_cordons_the_node_at_once_and_moves_the_job_to_another() -> None:
    world = World()
    world.run_to(30)
    effects = world.happen(m.NodeSignal("nodes/b", "nodes/b/gpus/0", "GPU_LOST", "Xid 79", START_NS, simulated=True))
    assert [e.node for e in effects if isinstance(e, m.Stop)] == ["nodes/a", "nodes/b"]
    assert "cordon" in world.calls()
    world.happen(*(world.exit(r, -9, by_us=True, step=30) for r in range(4)))
    world.stopped("nodes/a", "nodes/b")
    assert world.state.phase is m.Phase.REPLACING
    assert world.state.outbox[-1].kind == "replace"
    assert world.state.outbox[-1].node == "nodes/b"
    world.place("nodes/a", "nodes/c", epoch=2, joined={"nodes/a": 1})
    assert world.state.phase is m.Phase.WAITING
    assert "Check" in kinds(world.hello("nodes/c", epoch=2))
    world.checked(step=20)
    world.progress(31)
    incident = world.last_incident()
    assert (incident.state, incident.fault, incident.decision) == ("RESOLVED", "GPU_LOST", "REPLACE_NODE")
    assert incident.summary.startswith(
        "GPU_LOST (simulated) was reported for nodes/b/gpus/0 while the job was at step 30 (node telemetry: Xid 79); the job was "
        "restarted without nodes/b from the verified checkpoint of step 20; it cost"
    )
    assert kinds(world.hello("nodes/b", generation=1)) == ["Finish"]


def test_damaged_checkpoints_are_named_in_the_incident() -> None:
    world = World()
    world.run_to(57)
    world.happen(world.exit(3, -9, step=57), *(world.exit(r, -9, by_us=True, step=57) for r in range(3)))
    world.stopped("nodes/a", "nodes/b")
    world.checked(step=40, quarantined=("/checkpoints/.switchgear-quarantine/50.pt",))
    assert world.last_incident().quarantined == ["/checkpoints/.switchgear-quarantine/50.pt"]
    assert world.last_incident().steps_redone == 17
    assert "1 damaged checkpoint was put into quarantine" in world.last_incident().summary


def test_a_launcher_that_comes_back_with_its_ranks_is_adopted() -> None:
    world = World()
    world.run_to(10)
    world.happen(m.LauncherGone("nodes/a", "launcher-nodes/a"))
    world.state = resume(world.state, m.Now(0.0, START_NS))
    effects = world.hello("nodes/a", generation=1, ranks_alive=((0, 100, 1), (1, 101, 1)))
    effects += world.hello("nodes/b", generation=1, ranks_alive=((2, 102, 1), (3, 103, 1)))
    assert effects == []
    assert world.state.phase is m.Phase.RUNNING
    assert world.state.generation == 1


def test_a_rank_that_died_while_recovery_was_away_is_found_in_the_hello() -> None:
    world = World()
    world.run_to(10)
    world.state = resume(world.state, m.Now(0.0, START_NS))
    world.hello("nodes/b", generation=1, ranks_alive=((2, 102, 1), (3, 103, 1)))
    exits = (world.exit(0, -9, step=10).exit, world.exit(1, -9, by_us=True, step=10).exit)
    effects = world.hello("nodes/a", generation=1, exits=exits)
    assert [e.node for e in effects if isinstance(e, m.Stop)] == ["nodes/b"]
    assert world.last_incident().rank == 0


def test_a_new_launcher_without_ranks_means_that_the_old_one_died_with_them() -> None:
    world = World()
    world.run_to(10)
    effects = world.hello("nodes/a", generation=1, who="another")
    assert world.last_incident().fault is m.Fault.LAUNCHER_LOST
    assert [e.node for e in effects if isinstance(e, m.Stop)] == ["nodes/a", "nodes/b"]
    world.happen(world.exit(2, -9, by_us=True), world.exit(3, -9, by_us=True))
    assert "Check" in kinds(world.stopped("nodes/a", "nodes/b"))


def test_a_start_command_that_was_lost_is_given_again_to_the_same_launcher() -> None:
    world = World()
    world.place("nodes/a", "nodes/b")
    world.hello("nodes/a")
    world.hello("nodes/b")
    world.checked()
    assert kinds(world.hello("nodes/b", generation=0)) == ["Start"]


def test_a_silent_node_is_replaced_only_after_its_lease_and_a_margin() -> None:
    world = World()
    world.run_to(10)
    start = world.seconds
    world.happen(m.LauncherGone("nodes/b", "launcher-nodes/b"))
    world.happen(m.LauncherSeen("nodes/b", "launcher-nodes/b"))
    world.seconds = start + LEASE_S
    world.happen(m.LauncherSeen("nodes/a", "launcher-nodes/a"), m.Tick())
    assert world.state.phase is m.Phase.RUNNING
    world.seconds = start + LEASE_S + LEASE_MARGIN_S + 0.1
    effects = world.happen(m.Tick())
    # b as well: should its stream still stand, a start that waits there must not outlive this decision.
    assert [e.node for e in effects if isinstance(e, m.Stop)] == ["nodes/a", "nodes/b"]
    world.happen(world.exit(0, -9, by_us=True), world.exit(1, -9, by_us=True))
    world.stopped("nodes/a")
    assert world.state.phase is m.Phase.REPLACING
    assert world.last_incident().fault is m.Fault.NODE_LOST


def test_a_node_whose_launcher_never_reports_is_given_up() -> None:
    world = World()
    world.place("nodes/a", "nodes/b")
    world.hello("nodes/a")
    world.seconds = LAUNCHER_START_S + 1
    world.happen(m.LauncherSeen("nodes/a", "launcher-nodes/a"), m.Tick())
    assert world.state.phase is m.Phase.REPLACING
    assert world.state.outbox[-1].node == "nodes/b"


def test_a_second_node_that_fails_while_the_first_is_replaced_is_replaced_too() -> None:
    world = World()
    world.run_to(10)
    world.happen(m.NodeSignal("nodes/b", "nodes/b/gpus/0", "GPU_LOST", "Xid 79", START_NS, simulated=True))
    world.happen(*(world.exit(r, -9, by_us=True) for r in range(4)))
    world.stopped("nodes/a", "nodes/b")
    world.happen(m.NodeSignal("nodes/a", "nodes/a/gpus/0", "GPU_LOST", "Xid 79", START_NS, simulated=True))
    world.place("nodes/a", "nodes/c", epoch=2, joined={"nodes/a": 1})
    assert world.state.phase is m.Phase.REPLACING
    assert world.state.outbox[-1].node == "nodes/a"
    assert world.state.outbox[-1].epoch == 2


def test_a_job_ends_well_when_all_ranks_do() -> None:
    world = World()
    world.run_to(100)
    world.happen(world.exit(0, 0), world.exit(1, 0))
    assert kinds(world.stopped("nodes/a")) == []
    world.happen(world.exit(2, 0), world.exit(3, 0))
    assert kinds(world.stopped("nodes/b")) == ["SaveAttempt", "Finish", "Finish"]
    assert world.state.outbox[-1].outcome is m.JobOutcome.SUCCEEDED


def test_a_cancelled_job_is_finished_on_every_launcher() -> None:
    world = World()
    world.run_to(10)
    assert kinds(world.happen(m.EndedOutside("cancelled by user"))) == ["SaveAttempt", "Finish", "Finish"]


def test_reports_of_an_older_generation_change_nothing() -> None:
    world = World()
    world.run_to(10)
    world.happen(world.exit(0, -9, step=10), *(world.exit(r, -9, by_us=True) for r in (1, 2, 3)))
    world.stopped("nodes/a", "nodes/b")
    world.checked(step=5)
    before = world.state
    old = m.Exit(0, "nodes/a", 100, 0, -9, by_us=False)
    world.happen(
        m.RankExited(1, old),
        m.Progress("nodes/a", 1, (m.RankStep(0, 99, 1, 1, 1),)),
        m.RankStarted("nodes/a", 1, 0, 5, 5),
    )
    assert world.state == before


def test_calls_stay_in_the_outbox_until_they_are_confirmed() -> None:
    world = World()
    world.run_to(1)
    (call,) = world.state.outbox
    assert call.outcome is m.JobOutcome.RUNNING
    world.happen(m.CallDone(call.call_id))
    assert world.state.outbox == []


def test_a_step_leaves_the_state_that_it_was_given_as_it_was() -> None:
    world = World()
    world.run_to(10)
    before = world.state
    snapshot = repr(before)
    step(before, world.exit(0, -9, step=10), m.Now(1.0, START_NS))
    step(
        before,
        m.NodeSignal("nodes/b", "nodes/b/gpus/0", "GPU_LOST", "Xid 79", START_NS, simulated=True),
        m.Now(1.0, START_NS),
    )
    world.progress(12)
    assert repr(before) == snapshot


def test_only_new_steps_are_productive_time() -> None:
    world = World()
    world.run_to(10)
    assert productive_ns(world.state) == 1_000_000_000
    world.happen(world.exit(0, -9, step=10), *(world.exit(r, -9, by_us=True, step=10) for r in (1, 2, 3)))
    world.stopped("nodes/a", "nodes/b")
    world.checked(step=5)
    world.seconds += 10
    world.progress(9, new=False)
    assert productive_ns(world.state) == 1_000_000_000
    world.seconds += 1
    world.progress(11)
    world.seconds += 2
    world.progress(15)
    assert productive_ns(world.state) == 3_500_000_000  # one of the two steps in the first of these seconds was new


def test_what_a_node_says_of_the_ranks_of_another_is_ignored_and_told_once() -> None:
    world = World()
    world.run_to(10)
    ended = tuple(m.Exit(rank, "nodes/b", 100 + rank, START_NS, 0, by_us=False) for rank in range(4))
    stolen = [
        m.RankStarted("nodes/b", 1, 0, 5, 5),
        m.Progress("nodes/b", 1, (m.RankStep(0, 99, 1, 1, 1, 99),)),
        m.Loaded("nodes/b", 1, 0, "/checkpoints/99.pt", 99, 5),
        m.RankExited(1, ended[0]),
        m.LauncherHello("nodes/b", 1, "launcher-nodes/b", 1, 5000, ((0, 5, 5), (2, 102, 1)), ended[:2], all_gone=False),
    ]
    before = world.state
    (warning,) = world.happen(*stolen)
    assert warning == m.Warn("nodes/b", "reports about rank 0, which nodes/a has, are ignored")
    assert before.attempt is not None
    assert world.state.attempt is not None
    for rank in (0, 1):
        assert world.state.attempt.ranks[rank] == before.attempt.ranks[rank]
    # With its own ranks over, and what it made up about the others, all ranks would have ended well.
    world.happen(*(m.RankExited(1, one) for one in ended))
    world.stopped("nodes/b")
    assert (world.state.phase, world.calls()) == (m.Phase.RUNNING, ["set_state"])


def test_a_node_without_a_rank_in_the_attempt_cannot_fail_its_start() -> None:
    world = World()
    world.run_to(10)
    assert world.happen(m.StartFailed("nodes/c", 1, "no such script", permanent=True, reserved_port=1)) == []
    assert world.state.phase is m.Phase.RUNNING
