"""A job that is to leave its nodes for another: stopped everywhere first, then handed back, and never taken for done or failed."""

from __future__ import annotations

from recovery_world import World, kinds

from switchgear.recovery import model as m
from switchgear.recovery.machine import resume


def running() -> World:
    world = World()
    world.run_to(10)
    return world


def asks(world: World) -> list[m.Call]:
    return [call for call in world.state.outbox if call.kind == "replace"]


def test_its_nodes_are_handed_back_once_nothing_runs_on_any_of_them() -> None:
    world = running()
    stops = [e for e in world.happen(m.Vacate("for jobs/k")) if isinstance(e, m.Stop)]
    assert {stop.node for stop in stops} == {"nodes/a", "nodes/b"}
    assert all(stop.grace_s > 0 for stop in stops)
    # A script that saves on SIGTERM and ends well has not done its work.
    world.happen(*(world.exit(rank, 0, by_us=True, step=10) for rank in (0, 1)))
    world.stopped("nodes/a")
    assert (world.state.phase, asks(world)) == (m.Phase.STOPPING, [])
    world.happen(*(world.exit(rank, -9, by_us=True, step=10) for rank in (2, 3)))
    world.stopped("nodes/b")
    (call,) = asks(world)
    assert (world.state.phase, call.epoch, call.node) == (m.Phase.REPLACING, 1, "nodes/a,nodes/b")
    assert (world.state.incident, world.state.vacating) == (None, "")
    assert world.state.attempt is not None
    assert (world.state.attempt.state, world.state.attempt.end_reason) == (m.AttemptState.STOPPED, "for jobs/k")


def test_it_goes_on_from_its_newest_checkpoint_where_it_is_placed_next() -> None:
    world = running()
    world.happen(m.Vacate("for jobs/k"))
    world.happen(*(world.exit(rank, -9, by_us=True, step=10) for rank in range(4)))
    world.stopped("nodes/a")
    world.stopped("nodes/b")
    world.place("nodes/c", "nodes/d", epoch=2)
    world.hello("nodes/c", epoch=2)
    world.hello("nodes/d", epoch=2)
    effects = world.checked("nodes/c", step=8)
    starts = [effect for effect in effects if isinstance(effect, m.Start)]
    assert [(start.node, start.attempt.generation, start.attempt.resume_step) for start in starts] == [
        ("nodes/c", 2, 8),
        ("nodes/d", 2, 8),
    ]


def test_ranks_that_end_by_themselves_in_that_moment_have_done_their_work() -> None:
    world = running()
    world.happen(m.Vacate("for jobs/k"))
    world.happen(*(world.exit(rank, 0, step=10) for rank in range(4)))
    world.stopped("nodes/a")
    world.stopped("nodes/b")
    assert (world.state.phase, world.state.outcome) == (m.Phase.ENDED, m.JobOutcome.SUCCEEDED)


def test_before_its_first_attempt_it_leaves_at_once_and_a_restart_of_recovery_changes_nothing() -> None:
    world = World()
    world.place("nodes/a", "nodes/b")
    world.happen(m.Vacate("for jobs/k"))
    assert len(asks(world)) == 1
    world.state = resume(world.state, m.Now(0.0, 0))
    world.happen(m.Vacate("for jobs/k"))
    assert len(asks(world)) == 1


def test_told_twice_it_is_stopped_once() -> None:
    world = running()
    world.happen(m.Vacate("for jobs/k"))
    assert kinds(world.happen(m.Vacate("for jobs/k"))) == []


def test_a_job_that_the_scheduler_has_put_back_asks_once_and_waits_without_blaming_anybody() -> None:
    world = World()
    world.place("nodes/a", "nodes/b", epoch=1)
    world.hello("nodes/a", epoch=1)
    world.happen(m.Vacate("node b: Slurm holds it for another job", for_others=False))
    world.happen(m.Vacate("waits for 2 nodes", for_others=False))
    assert (world.state.phase, len(asks(world)), world.state.preemptions) == (m.Phase.REPLACING, 1, 0)
    world.seconds += 600
    world.happen(m.Tick())
    assert (world.state.incident, world.state.failures) == (None, [])
    world.place("nodes/a", "nodes/b", epoch=2)
    assert world.state.phase is m.Phase.WAITING
