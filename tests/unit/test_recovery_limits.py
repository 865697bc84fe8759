"""What recovery does when it is not answered, told something newer than it knows, or cannot know a step."""

from __future__ import annotations

from dataclasses import replace

from recovery_world import START_NS, World, kinds

from switchgear.recovery import model as m
from switchgear.recovery.faults import CHECK_S_MAX, PROGRESS_UNKNOWN_S, STOP_S_MAX
from switchgear.recovery.machine import CHECK_RETRY_S, CHECK_RETRY_S_MAX


def alive(world: World) -> tuple[m.Event, ...]:
    return tuple(m.LauncherSeen(node, f"launcher-{node}") for node in ("nodes/a", "nodes/b"))


def test_a_launcher_that_remembers_a_newer_generation_than_the_store_gets_one_beyond_it() -> None:
    world = World()
    world.place("nodes/a", "nodes/b")
    world.hello("nodes/a", generation=7)
    world.hello("nodes/b")
    assert "Start" in kinds(world.checked())
    assert world.state.generation == 8
    starts = [effect for effect in world.effects if isinstance(effect, m.Start)]
    assert [start.restart_count for start in starts] == [0, 0]


def test_ranks_of_a_generation_that_the_store_has_lost_are_stopped_first() -> None:
    world = World()
    world.place("nodes/a", "nodes/b")
    effects = world.hello("nodes/a", generation=7, ranks_alive=((0, 100, 1), (1, 101, 1)))
    assert [(e.node, e.generation) for e in effects if isinstance(e, m.Stop)] == [("nodes/a", 7)]
    assert kinds(world.hello("nodes/b")) == []
    assert kinds(world.happen(m.AttemptStopped("nodes/a", 7, 5001, 0))) == ["Check"]


def test_a_start_that_is_refused_for_a_newer_generation_is_made_again_beyond_it() -> None:
    world = World()
    world.place("nodes/a", "nodes/b")
    world.hello("nodes/a")
    world.hello("nodes/b")
    world.checked()
    world.happen(m.Rejected("nodes/b", 1, 7))
    assert world.state.phase is m.Phase.STOPPING
    world.stopped("nodes/a")
    world.checked()
    assert (world.state.phase, world.state.generation) == (m.Phase.STARTING, 8)


def test_a_start_that_came_twice_is_no_fault() -> None:
    world = World()
    world.run_to(5)
    world.happen(m.Rejected("nodes/b", 1, 1))
    assert world.state.phase is m.Phase.RUNNING


def test_a_node_whose_processes_survive_sigkill_is_left() -> None:
    world = World()
    world.run_to(10)
    world.happen(world.exit(0, -9, step=10), world.exit(1, -9, by_us=True, step=10))
    world.stopped("nodes/a")
    world.seconds += STOP_S_MAX
    world.happen(*alive(world), m.Tick())
    assert world.state.phase is m.Phase.STOPPING
    world.seconds += 1
    world.happen(*alive(world), m.Tick())
    assert world.state.phase is m.Phase.REPLACING
    assert [(call.kind, call.node) for call in world.state.outbox[-2:]] == [
        ("cordon", "nodes/b"),
        ("replace", "nodes/b"),
    ]
    assert "outlive SIGKILL" in world.last_incident().evidence[-1]


def test_a_node_that_never_says_which_checkpoint_is_good_is_left() -> None:
    world = World()
    world.place("nodes/a", "nodes/b")
    world.hello("nodes/a")
    world.hello("nodes/b")
    world.seconds += CHECK_S_MAX + 1
    world.happen(*alive(world), m.Tick())
    assert world.state.phase is m.Phase.REPLACING
    assert world.state.outbox[-1].node == "nodes/a"


def test_checkpoints_that_cannot_be_read_for_a_moment_are_asked_for_again() -> None:
    world = World()
    world.place("nodes/a", "nodes/b")
    world.hello("nodes/a")
    world.hello("nodes/b")
    error = m.Checked("nodes/a", 0, (), (), "/checkpoints cannot be listed: stale file handle")
    assert kinds(world.happen(error, m.Tick())) == []
    world.seconds += CHECK_RETRY_S
    assert kinds(world.happen(*alive(world), m.Tick())) == ["Check"]
    assert "Start" in kinds(world.checked(step=30))


def test_checkpoints_that_stay_unreadable_end_the_job_instead_of_starting_it_from_nothing() -> None:
    world = World()
    world.place("nodes/a", "nodes/b")
    world.hello("nodes/a")
    world.hello("nodes/b")
    error = m.Checked("nodes/a", 0, (), (), "/checkpoints cannot be listed: permission denied")
    world.happen(error)
    world.seconds += CHECK_RETRY_S_MAX
    world.happen(error)
    assert world.state.phase is m.Phase.ENDED
    assert "permission denied" in world.last_incident().summary


def test_without_a_checkpoint_folder_the_step_that_it_resumed_from_is_learnt_from_its_ranks() -> None:
    world = World(checkpoint_directory="")
    world.place("nodes/a", "nodes/b")
    world.hello("nodes/a")
    world.hello("nodes/b")
    world.progress(38)
    world.happen(*(world.exit(rank, -9, by_us=rank > 0, step=38) for rank in range(4)))
    world.stopped("nodes/a", "nodes/b")
    assert world.state.attempt is not None
    assert world.state.attempt.resume_step is None
    assert "where the script resumes by itself" in world.last_incident().summary
    now = START_NS + int(world.seconds * 1e9)
    ranks = {
        node: tuple(m.RankStep(rank, 39, now, now, now, count=9) for rank in pair)
        for node, pair in (("nodes/a", (0, 1)), ("nodes/b", (2, 3)))
    }
    world.happen(*(m.Progress(node, 2, steps) for node, steps in ranks.items()))
    incident = world.last_incident()
    assert (incident.state, incident.resume_step, incident.steps_redone) == ("RESOLVED", 30, 8)


def test_a_job_whose_steps_cannot_be_known_is_judged_by_how_long_it_lasted() -> None:
    for lasted_s, phase in ((PROGRESS_UNKNOWN_S + 1, m.Phase.STARTING), (1.0, m.Phase.ENDED)):
        world = World(checkpoint_directory="")
        world.place("nodes/a", "nodes/b")
        world.hello("nodes/a")
        world.hello("nodes/b")
        for _ in range(4):
            if world.state.phase is m.Phase.ENDED:
                break
            world.seconds += lasted_s
            world.happen(*(world.exit(rank, -9) for rank in range(4)))
            world.stopped("nodes/a", "nodes/b")
        assert world.state.phase is phase


def unnumbered(world: World, lasted_s: float) -> None:
    """All ranks have made steps for so long, of which only the first attempt's have a number."""
    now_ns = START_NS + round(world.seconds * 1e9)
    world.seconds += lasted_s
    then_ns = START_NS + round(world.seconds * 1e9)
    for node, pair in (("nodes/a", (0, 1)), ("nodes/b", (2, 3))):
        for time_ns, count in ((now_ns, 1), (then_ns, 10)):
            steps = tuple(m.RankStep(rank, None, time_ns, now_ns, 0, count=count) for rank in pair)
            world.happen(m.Progress(node, world.state.generation, steps))


def test_an_incident_of_a_job_whose_steps_have_no_number_is_over_when_it_has_made_steps_for_a_while() -> None:
    world = World(checkpoint_directory="")
    world.run_to(38)
    world.happen(*(world.exit(rank, -9, by_us=rank > 0, step=38) for rank in range(4)))
    world.stopped("nodes/a", "nodes/b")
    unnumbered(world, PROGRESS_UNKNOWN_S - 1)
    assert world.state.incident is not None
    unnumbered(world, PROGRESS_UNKNOWN_S + 1)
    assert world.state.incident is None
    incident = world.last_incident()
    assert incident.state == "RESOLVED"
    assert "first_new_step" not in incident.timeline


def test_a_job_whose_steps_have_no_number_and_that_really_hangs_comes_to_an_end() -> None:
    """The time for which it hung is no progress."""
    world = World(checkpoint_directory="")
    world.place("nodes/a", "nodes/b")
    world.hello("nodes/a")
    world.hello("nodes/b")
    waited_s: list[float] = []
    while world.state.phase is not m.Phase.ENDED:
        unnumbered(world, 5.0)
        began_s = world.seconds
        while world.state.phase is m.Phase.RUNNING:
            world.seconds += 0.5
            idle_s = world.seconds - began_s
            for node, pair in (("nodes/a", (0, 1)), ("nodes/b", (2, 3))):
                told = tuple(m.RankWatch(n, idle_s, m.Activity.COLLECTIVE, count=10, step_s=0.5) for n in pair)
                world.happen(m.LauncherSeen(node, f"launcher-{node}"), m.Watched(node, world.state.generation, told))
        waited_s.append(world.seconds - began_s)
        world.happen(*(world.exit(rank, -9, by_us=True) for rank in range(4)))
        world.stopped("nodes/a", "nodes/b")
    assert waited_s == [3, 30, 300, 3000, 3600]
    assert (
        "3 attempts in a row made no step that is known to be new (they made 10, 10, 10)"
        in world.last_incident().summary
    )


def fails_after(world: World, count: int, *, saved: bool = False, code: int = 1, step: int | None = None) -> None:
    """One attempt: all ranks make so many steps, then rank 0 ends, and the others with it."""
    world.seconds += 2
    now_ns = START_NS + round(world.seconds * 1e9)
    for node, pair in (("nodes/a", (0, 1)), ("nodes/b", (2, 3))):
        steps = tuple(m.RankStep(n, step, now_ns, now_ns, 0, count, checkpoint_ns=saved * 10**6) for n in pair)
        world.happen(m.Progress(node, world.state.generation, steps))
    exception = "RuntimeError: lost" if code > 0 else ""
    world.happen(world.exit(0, code, exception=exception, step=step))
    world.happen(*(world.exit(rank, -9, by_us=True, step=step) for rank in range(1, 4)))
    world.stopped("nodes/a", "nodes/b")


def begun() -> World:
    world = World(checkpoint_directory="", max_restarts=10)
    world.place("nodes/a", "nodes/b")
    world.hello("nodes/a")
    world.hello("nodes/b")
    return world


def test_a_job_that_goes_on_from_its_own_checkpoints_is_not_stopped_though_its_steps_have_no_number() -> None:
    for code in (1, -9):
        world = begun()
        fails_after(world, 17, saved=True, code=code, step=17)
        for count in (22, 22, 11):
            fails_after(world, count, saved=True, code=code)
            assert world.state.phase is m.Phase.STARTING
        assert world.last_incident().cause.endswith(" after 11 steps of this attempt")


def test_a_script_that_raises_after_as_many_steps_each_time_is_stopped_after_the_second() -> None:
    for saved in (False, True):
        world = begun()
        fails_after(world, 4, saved=saved, step=4)
        fails_after(world, 4, saved=saved)
        assert world.state.phase is m.Phase.ENDED
        assert "the same error came twice after 4 steps of its attempt" in world.last_incident().summary
    world = begun()
    fails_after(world, 4)
    fails_after(world, 4)
    assert world.state.phase is m.Phase.ENDED


def test_a_script_that_resumes_and_meets_the_same_error_is_stopped_when_that_has_come_twice_from_there() -> None:
    world = begun()
    fails_after(world, 37, saved=True, step=37)
    fails_after(world, 2)
    assert world.state.phase is m.Phase.STARTING
    fails_after(world, 2)
    assert "the same error came twice after 2 steps of its attempt" in world.last_incident().summary


def test_attempts_that_make_ever_fewer_steps_and_write_nothing_end_the_job() -> None:
    world = begun()
    for count in (9, 8, 8):
        fails_after(world, count, code=-9)
        assert world.state.phase is m.Phase.STARTING
    fails_after(world, 7, code=-9)
    assert (
        "3 attempts in a row made no step that is known to be new (they made 8, 8, 7)" in world.last_incident().summary
    )


def test_a_node_that_fails_between_two_attempts_does_not_make_the_next_one_look_like_progress() -> None:
    world = begun()
    fails_after(world, 4, code=-9)
    world.state.failures.append(replace(world.state.failures[-1], count=0, made_steps=False, progressed=False))
    fails_after(world, 4, code=-9)
    assert not world.state.failures[-1].progressed


def test_a_launcher_whose_ranks_have_ended_but_not_their_children_has_not_stopped() -> None:
    world = World()
    world.run_to(10)
    exits = tuple(world.exit(rank, -9, by_us=rank == 1, step=10).exit for rank in (0, 1))
    world.hello("nodes/a", generation=1, exits=exits, all_gone=False)
    world.happen(world.exit(2, -9, by_us=True), world.exit(3, -9, by_us=True))
    world.stopped("nodes/b")
    assert world.state.phase is m.Phase.STOPPING
    assert "Check" in kinds(world.stopped("nodes/a"))
