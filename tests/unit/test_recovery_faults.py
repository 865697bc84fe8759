"""What the simulation and a close reading found in the recovery machine, each as the shortest story that shows it."""

from __future__ import annotations

from recovery_world import START_NS, World, kinds

from switchgear.recovery import model as m
from switchgear.recovery.machine import LEASE_MARGIN_S, LEASE_S, resume

XID = m.NodeSignal("nodes/b", "nodes/b/gpus/0", "GPU_LOST", "Xid 79", START_NS, simulated=True)
PEER_LOST = "RuntimeError: [gloo/transport/tcp/pair.cc] Connection closed by peer"


def stop_all(world: World, step: int | None = 10) -> None:
    world.happen(*(world.exit(rank, -9, by_us=True, step=step) for rank in range(4)))
    world.stopped("nodes/a", "nodes/b")


def test_a_start_that_reached_the_next_launcher_is_stopped_before_anything_else_starts() -> None:
    """Once two generations lived at the same time: the newcomer had the start, its hello said nothing of it yet."""
    world = World()
    world.run_to(10)
    effects = world.hello("nodes/b", generation=0, who="newcomer")
    assert [(e.node, e.generation) for e in effects if isinstance(e, m.Stop)] == [("nodes/a", 1), ("nodes/b", 1)]
    world.happen(world.exit(0, -9, by_us=True), world.exit(1, -9, by_us=True))
    world.stopped("nodes/a")
    assert world.state.phase is m.Phase.STOPPING
    world.stopped("nodes/b")
    assert world.state.phase is m.Phase.CHECKING


def test_a_launcher_that_comes_back_while_its_ranks_are_being_started_is_told_to_stop_them() -> None:
    """Simulation, seed 6515: its hello named no rank, so it was taken for stopped, and the next generation met the ranks."""
    world = World()
    world.place("nodes/a", "nodes/b")
    world.hello("nodes/a")
    world.hello("nodes/b")
    world.checked()
    effects = world.hello("nodes/b", generation=1)
    assert [e.node for e in effects if isinstance(e, m.Stop)] == ["nodes/a", "nodes/b"]
    world.stopped("nodes/a")
    assert world.state.phase is m.Phase.STOPPING
    assert world.last_incident().cause == "the launcher on nodes/b lost contact while it started its ranks"


def test_a_rank_that_cannot_be_started_leaves_its_siblings_to_be_stopped() -> None:
    """Once the next generation started while the siblings of that rank still lived."""
    world = World()
    world.place("nodes/a", "nodes/b")
    world.hello("nodes/a")
    world.hello("nodes/b")
    world.checked()
    world.happen(m.StartFailed("nodes/b", 1, "fork: no memory", permanent=False, reserved_port=5000))
    world.stopped("nodes/a")
    assert world.state.phase is m.Phase.STOPPING
    world.stopped("nodes/b")
    assert world.state.phase is m.Phase.CHECKING


def test_two_starts_that_fail_for_different_reasons_are_not_the_same_error() -> None:
    world = World()
    world.place("nodes/a", "nodes/b")
    world.hello("nodes/a")
    world.hello("nodes/b")
    for message in ("fork: no memory", "no space left"):
        world.checked()
        world.happen(m.StartFailed("nodes/b", world.state.generation, message, permanent=False, reserved_port=5000))
        world.stopped("nodes/a", "nodes/b")
    assert world.state.phase is m.Phase.CHECKING


def test_a_node_with_a_lost_gpu_that_falls_silent_is_not_waited_for() -> None:
    """Once the job hung: a node with evidence against it was not looked at any more."""
    world = World()
    world.run_to(10)
    world.happen(XID)
    world.happen(world.exit(0, -9, by_us=True), world.exit(1, -9, by_us=True))
    world.stopped("nodes/a")
    world.seconds += LEASE_S + LEASE_MARGIN_S + 1
    world.happen(m.LauncherSeen("nodes/a", "launcher-nodes/a"), m.Tick())
    assert world.state.phase is m.Phase.REPLACING
    assert world.last_incident().fault is m.Fault.GPU_LOST


def test_a_node_that_was_mended_while_the_job_waited_is_taken_again() -> None:
    """Once the old evidence sent the job away from it until it was given up."""
    world = World()
    world.run_to(10)
    world.happen(XID)
    stop_all(world)
    world.place("nodes/a", "nodes/b", epoch=2)
    assert world.state.phase is m.Phase.WAITING


def test_evidence_between_two_attempts_does_not_count_as_an_attempt() -> None:
    """Once three bad nodes in a row ended the job as if it had made no progress in three attempts."""
    world = World()
    world.run_to(10)
    world.happen(XID)
    stop_all(world)
    for epoch in range(2, 6):
        spare = f"nodes/s{epoch}"
        world.place("nodes/a", spare, epoch=epoch, joined={"nodes/a": 1})
        world.happen(m.NodeSignal(spare, "", "NODE_FAULT", "machine check", START_NS, simulated=True))
        assert world.state.phase is m.Phase.REPLACING
        assert world.state.outbox[-1].node == spare


def test_progress_counts_although_the_word_of_a_lost_node_is_missing() -> None:
    """Simulation, seed 5355: a job was given up for three attempts without a new step, of which one had made ten."""
    world = World()
    world.place("nodes/a", "nodes/b")
    world.hello("nodes/a")
    world.hello("nodes/b")
    world.checked()
    world.happen(m.Progress("nodes/b", 1, tuple(m.RankStep(rank, 10, START_NS, START_NS, START_NS) for rank in (2, 3))))
    world.happen(world.exit(2, 1, exception=PEER_LOST, step=10))
    world.stopped("nodes/a", "nodes/b")
    assert [failure.progressed for failure in world.state.failures] == [True]


def test_the_signal_of_a_node_explains_the_exception_that_came_before_it() -> None:
    """Once the rank was blamed and the summary named the wrong node."""
    world = World()
    world.run_to(10)
    world.happen(world.exit(0, 1, exception=PEER_LOST), XID)
    stop_all(world)
    incident = world.last_incident()
    assert (incident.fault, incident.node, incident.decision) == ("GPU_LOST", "nodes/b", "REPLACE_NODE")
    assert [effect.node for effect in world.effects if isinstance(effect, m.Finish)] == ["nodes/b"]


def test_ranks_that_vanished_are_blamed_before_the_peer_that_noticed() -> None:
    world = World()
    world.run_to(10)
    world.happen(*(m.RankStarted(world.exit(r, 0).exit.node, 1, r, 100 + r, START_NS) for r in range(4)))
    world.happen(world.exit(2, 1, exception=PEER_LOST), world.exit(3, -9, by_us=True))
    world.stopped("nodes/b")
    world.hello("nodes/a", generation=1, who="another")
    world.stopped("nodes/a")
    incident = world.last_incident()
    assert (incident.fault, incident.node) == ("LAUNCHER_LOST", "nodes/a")
    assert world.state.restarts_used == 0


def test_an_attempt_whose_ranks_all_ended_well_is_a_success_whatever_came_in_between() -> None:
    world = World()
    world.run_to(10)
    world.happen(*(world.exit(rank, 0, step=11) for rank in range(4)), XID)
    world.stopped("nodes/a", "nodes/b")
    assert world.state.outcome is m.JobOutcome.SUCCEEDED
    assert world.last_incident().state is m.IncidentState.RESOLVED
    assert world.last_incident().summary.endswith("the job ended well all the same.")


def test_two_nodes_that_fall_silent_at_once_make_one_incident_even_when_it_ends_the_job() -> None:
    """Once the second opened an incident of a job that had just been given up, which then stayed open."""
    world = World(max_restarts=0)
    world.run_to(10)
    world.happen(world.exit(2, -9, step=10))
    world.stopped("nodes/b")
    world.seconds += LEASE_S + LEASE_MARGIN_S + 1
    world.happen(m.Tick())
    assert world.state.phase is m.Phase.ENDED
    assert (world.state.incident, world.state.incident_count) == (None, 1)


def test_a_second_fault_keeps_the_highest_step_and_the_first_time_and_tells_no_old_decision() -> None:
    world = World()
    world.run_to(57)
    world.happen(world.exit(1, -9, step=57, at_s=2.0))
    stop_all(world, 57)
    world.checked(step=50)
    world.seconds = 8.0
    world.progress(52, new=False)
    world.happen(world.exit(3, -9, step=52, at_s=8.0))
    incident = world.last_incident()
    assert (incident.decision, incident.new_generation, incident.resume_step) == (None, 0, None)
    assert incident.summary.endswith("the attempt is being stopped.")
    assert world.state.outbox[-1].outcome is m.JobOutcome.RECOVERING
    stop_all(world, 52)
    world.checked(step=50)
    world.progress(58)
    incident = world.last_incident()
    assert (incident.failed_step, incident.steps_redone) == (57, 7)
    assert incident.timeline["fault"] == START_NS + 2_000_000_000


def test_the_answer_to_a_check_of_an_older_generation_is_not_taken() -> None:
    """Simulation, seed 1734: a launcher that was asked twice answered late, and the job started from scratch."""
    world = World()
    world.run_to(57)
    world.happen(world.exit(1, -9, step=57))
    stop_all(world, 57)
    assert world.state.phase is m.Phase.CHECKING
    assert world.happen(m.Checked("nodes/a", 0, (), ())) == []
    world.checked(step=50)
    assert world.state.attempt is not None
    assert world.state.attempt.resume_step == 50


def test_nothing_starts_while_a_launcher_is_away_although_the_check_has_been_answered() -> None:
    world = World()
    world.place("nodes/a", "nodes/b")
    world.hello("nodes/a")
    world.hello("nodes/b")
    world.happen(m.LauncherGone("nodes/b", "launcher-nodes/b"))
    assert "Start" not in kinds(world.checked())
    assert kinds(world.hello("nodes/b")) == ["Check"]


def test_after_a_crash_the_check_is_asked_once_everybody_is_back() -> None:
    world = World()
    world.place("nodes/a", "nodes/b")
    world.hello("nodes/a")
    world.hello("nodes/b")
    world.state = resume(world.state, m.Now(0.0, START_NS))
    assert kinds(world.hello("nodes/a")) == []
    assert kinds(world.hello("nodes/b")) == ["Check"]


def test_a_checkpoint_of_new_content_does_not_inherit_the_step_of_the_old() -> None:
    world = World()
    world.run_to(10)
    old = m.Checkpoint("/checkpoints/last.pt", m.CheckpointState.COMMITTED, 10, digest="old")
    world.happen(m.CheckpointSeen(1, old))
    new = m.Checkpoint("/checkpoints/last.pt", m.CheckpointState.COMMITTED, None, digest="new")
    world.happen(m.CheckpointSeen(1, new))
    assert world.state.checkpoints["/checkpoints/last.pt"].step is None
    assert (old.generation, new.generation) == (0, 0)  # an event is left as it was


def test_last_words_of_an_old_stream_bring_back_neither_a_generation_nor_a_port() -> None:
    world = World()
    world.run_to(10)
    world.happen(world.exit(1, -9, step=10))
    stop_all(world)
    world.happen(m.AttemptStopped("nodes/a", 0, 4000, 0))
    assert world.state.launchers["nodes/a"].reserved_port == 5001


def test_while_the_scheduler_is_away_only_the_newest_state_waits() -> None:
    world = World(max_restarts=100)
    world.run_to(10)
    for number in range(20):
        world.happen(world.exit(1 + 2 * (number % 2), -9, step=10 + number))
        stop_all(world, 10 + number)
        world.checked(step=10)
        world.progress(11 + number)
    assert len(world.state.outbox) == 2
    assert world.state.outbox[-1].outcome is m.JobOutcome.RUNNING


def test_a_job_that_is_cancelled_during_a_recovery_says_so_in_its_incident() -> None:
    world = World()
    world.run_to(10)
    world.happen(world.exit(1, -9, step=10), m.EndedOutside("cancelled by user"))
    assert world.last_incident().summary.endswith("the job was stopped: cancelled by user.")
