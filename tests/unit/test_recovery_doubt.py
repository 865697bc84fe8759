"""Which hang makes which other one doubtful, and that doubt ends with the job or a new step, whatever comes in between."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from recovery_world import START_NS, World

from switchgear.recovery import model as m
from switchgear.recovery.doubt import OTHERS_MAX, hung_before
from switchgear.recovery.machine import resume
from switchgear.recovery.table import NO_PROGRESS_MAX

HERE = m.Hang(38, 38, made_steps=True, ranks=(2,), waits_in=("train (train.py:12)",))
NODES = ("nodes/a", "nodes/b")


def hung(hang: m.Hang | None, **fields: Any) -> m.Failure:
    return m.Failure(m.Fault.RANK_HUNG, "hung", hang.step if hang else None, progressed=False, hang=hang, **fields)


@pytest.mark.parametrize(
    "other",
    [
        replace(HERE, step=37),
        replace(HERE, ranks=(3,)),
        replace(HERE, waits_in=("train (train.py:40)",)),
        replace(HERE, step=30, made_steps=False),
        replace(HERE, step=38, made_steps=False, ranks=(3,)),
    ],
    ids=[
        "another step",
        "other ranks",
        "another collective",
        "a start from elsewhere",
        "a start from there, other ranks",
    ],
)
def test_a_hang_that_is_known_to_be_another_one_casts_no_doubt(other: m.Hang) -> None:
    assert hung_before([hung(other)], HERE) == hung_before([hung(HERE)], other) == 0


@pytest.mark.parametrize(
    "other",
    [
        HERE,
        None,
        replace(HERE, ranks=(0, 2)),
        replace(HERE, ranks=()),
        replace(HERE, waits_in=()),
        replace(HERE, waits_in=(*HERE.waits_in, "train (train.py:40)")),
        replace(HERE, step=None, count=5),
        replace(HERE, made_steps=False, count=0),
    ],
    ids=["the same", "of an older version", "more ranks", "nobody", "no places", "more places", "no number", "a start"],
)
def test_a_hang_that_may_have_been_the_same_casts_doubt(other: m.Hang | None) -> None:
    assert hung_before([hung(other)], HERE) == 1
    if other:
        assert hung_before([hung(HERE)], other) == 1


def test_all_starts_are_one_place_wherever_they_start_from() -> None:
    start = m.Hang(38, ranks=(0,))
    assert hung_before([hung(start)], m.Hang(30, ranks=(1,))) == 1


def test_steps_without_a_number_are_compared_by_their_count_as_long_as_nobody_wrote_a_checkpoint() -> None:
    some, fewer = replace(HERE, step=None), replace(HERE, step=None, count=8)
    assert hung_before([hung(some)], fewer) == 0
    assert hung_before([hung(some)], some) == 1
    assert hung_before([hung(some, saved=True)], fewer) == 1
    killed = m.Failure(m.Fault.RANK_KILLED, "SIGKILL", None, progressed=False, saved=True)
    assert hung_before([hung(some), killed], fewer) == 1
    assert hung_before([killed, hung(some)], fewer) == 0


def test_only_hangs_since_the_newest_step_that_was_new_count() -> None:
    new = replace(hung(HERE), progressed=True)
    assert hung_before([hung(HERE), hung(HERE), new, hung(HERE)], HERE) == 2
    assert hung_before([], HERE) == 0


def test_of_hangs_at_ever_other_places_the_third_and_later_ones_count_as_well() -> None:
    others = [hung(replace(HERE, step=step)) for step in range(OTHERS_MAX + 2)]
    assert [hung_before(others[:count], HERE) for count in range(len(others) + 1)] == [0, 0, 0, 1, 2]


# In the machine.


def begin(world: World, *, epoch: int = 1) -> None:
    world.place(*NODES, epoch=epoch)
    for node in NODES:
        world.hello(node, generation=world.state.generation, epoch=epoch)


def steps(world: World, to: int | None, count: int, **fields: int) -> None:
    """All ranks have made so many, none of them new."""
    now_ns = START_NS + round(world.seconds * 1e9)
    for node, pair in zip(NODES, ((0, 1), (2, 3)), strict=True):
        told = tuple(m.RankStep(rank, to, now_ns, now_ns, 0, count, **fields) for rank in pair)
        world.happen(m.Progress(node, world.state.generation, told))


def watch(
    world: World, idle_s: float, ranks: Iterable[int] = (2,), line: int = 12, count: int = 0, **at_fault: Any
) -> None:
    """These ranks do nothing in a step; the others wait for them in this line."""
    where = f"train (train.py:{line})"
    waits = m.RankWatch(0, idle_s, m.Activity.COLLECTIVE, count=count, step_s=0.1, cpu_share=0.0, where=where)
    stands = replace(waits, activity=m.Activity.STEP, where="f (a.py:1)")
    said = [replace(replace(stands, **at_fault) if n in ranks else waits, rank=n) for n in range(4)]
    for node, told in zip(NODES, (said[:2], said[2:]), strict=True):
        world.happen(m.Watched(node, world.state.generation, tuple(told)))


def stop(world: World, step: int | None, *checkpoints: int) -> None:
    """The ranks are killed, and the next attempt begins where there is to be one; checkpoints: steps of the good ones, newest first."""
    world.happen(*(world.exit(rank, -9, by_us=True, step=step) for rank in range(4)))
    world.stopped(*NODES)
    if world.state.phase is m.Phase.REPLACING:
        begin(world, epoch=world.state.epoch + 1)
    if world.state.phase is m.Phase.CHECKING:
        good = [
            m.Checkpoint(f"/c/{n}.pt", m.CheckpointState.VERIFIED, n, digest=f"of {n}") for n in checkpoints or (30,)
        ]
        world.happen(m.Checked(NODES[0], world.state.generation, tuple(good), ()))


def waited_s(world: World, **watched: Any) -> float:
    """The least after which it is judged."""
    for idle_s in (3, 30, 60, 300, 600, 1800, 3000, 3600):
        watch(world, idle_s - 0.1, **watched)
        assert world.state.phase in (m.Phase.STARTING, m.Phase.RUNNING), idle_s
        watch(world, idle_s, **watched)
        if world.state.phase is m.Phase.STOPPING:
            return idle_s
    raise AssertionError


def at_step_38(**spec: Any) -> World:
    world = World()
    world.state.spec = replace(world.state.spec, **spec)
    world.run_to(38)
    return world


def test_hangs_at_other_steps_of_other_ranks_or_in_other_collectives_are_seen_as_soon_as_the_first() -> None:
    world = at_step_38()
    places: list[tuple[int, dict[str, Any]]] = [
        (38, {}),
        (35, {}),
        (38, {"ranks": (3,), "line": 40}),
    ]
    for step, watched in places:
        if step != 38:
            steps(world, step, step - 30)
        elif world.state.generation > 1:
            steps(world, 38, 8)
        assert waited_s(world, **watched) == 3
        stop(world, step)
    assert world.state.phase is m.Phase.STARTING


def test_the_same_hang_again_is_waited_for_longer_until_the_job_is_given_up() -> None:
    world = at_step_38(replaceable=False)
    limits_s = []
    while world.state.phase is not m.Phase.ENDED:
        limits_s.append(waited_s(world))
        stop(world, 38)
        steps(world, 38, 8)
    assert limits_s == [3, 30, 300, 3000, 3600]


def test_hangs_at_ever_other_places_are_waited_for_longer_from_the_fourth_on_and_end_the_job() -> None:
    world = at_step_38(replaceable=False)
    limits_s = []
    for step in range(38, 30, -1):
        if world.state.phase is m.Phase.ENDED:
            break
        limits_s.append(waited_s(world))
        stop(world, step)
        steps(world, step - 1, step - 31)
    assert limits_s == [3, 3, 3, 30, 300, 3000, 3600]
    assert world.state.phase is m.Phase.ENDED
    assert f"{NO_PROGRESS_MAX} attempts in a row made no new step" in world.last_incident().summary


@pytest.mark.parametrize(("checkpoint", "limit_s"), [(38, 600), (30, 60)])
def test_a_start_is_waited_for_longer_where_it_leads_to_the_step_that_hung(checkpoint: int, limit_s: float) -> None:
    """Where the newest checkpoint is of the step before, a slow step is the first one of the next attempt."""
    world = at_step_38()
    world.state.first_step_s = 6.0
    assert waited_s(world) == 3
    stop(world, 38, checkpoint)
    assert waited_s(world, ranks=range(4), activity=m.Activity.STARTUP, step_s=None) == limit_s


def test_a_pause_between_epochs_and_the_first_start_keep_their_patience_wherever_it_hung_before() -> None:
    world = at_step_38()
    assert waited_s(world) == 3
    stop(world, 38)
    steps(world, 35, 5)
    assert waited_s(world, activity=m.Activity.UNKNOWN) == 600
    stop(world, 35)
    assert waited_s(world, ranks=range(4), activity=m.Activity.STARTUP) == 1800


def test_a_job_that_hangs_before_its_step_time_is_learned_comes_to_an_end_too() -> None:
    world = at_step_38(replaceable=False)
    world.state.first_step_s = 6.0
    limits_s = []
    while world.state.phase is not m.Phase.ENDED:
        steps(world, 38, 8)
        for idle_s in (60, 600, 1800):
            generation = world.state.generation
            said = tuple(m.RankWatch(n, idle_s, m.Activity.COLLECTIVE) for n in range(4))
            world.happen(m.Watched(NODES[0], generation, said[:2]), m.Watched(NODES[1], generation, said[2:]))
            if world.state.phase is m.Phase.STOPPING:
                break
        limits_s.append(idle_s)
        stop(world, 38)
    assert limits_s == [60, 600, 1800, 1800]


# Whatever comes in between.

_HANGS = st.fixed_dictionaries(
    {
        "ranks": st.sets(st.integers(0, 3), max_size=4),
        "line": st.integers(12, 15),
        "step_s": st.sampled_from([None, 0.1, 2.0, 500.0]),
        "cpu_share": st.sampled_from([0.0, 1.0, None]),
        "activity": st.sampled_from([m.Activity.STEP, m.Activity.STARTUP, m.Activity.DATA]),
    }
)
#: The step that it comes to (none: it does not get there), and how it hangs (not at all: a rank is killed).
_ATTEMPTS = st.tuples(st.none() | st.integers(31, 38), _HANGS | st.none())
_STATE = TypeAdapter(m.JobState)
#: As many hangs as a limit takes to grow to its end, beside those at other places that do not count, and a roll back.
ATTEMPTS_MAX = 5 + OTHERS_MAX + 1


def restart(world: World, stored: m.JobState) -> None:
    """Recovery ends and reads this state back. Launchers say what runs there, and nothing of steps that they have told of before."""
    state = _STATE.validate_json(_STATE.dump_json(stored, exclude={"watches"}))
    world.state = resume(state, m.Now(world.seconds, START_NS + round(world.seconds * 1e9)))
    for node, pair in zip(NODES, ((0, 1), (2, 3)), strict=True):
        alive = tuple((rank, 100 + rank, START_NS) for rank in pair)
        world.hello(node, generation=world.state.generation, epoch=world.state.epoch, ranks_alive=alive)


def goes_through(world: World, step: int | None, hang: dict[str, Any] | None, *, restarted: bool) -> None:
    assert world.state.attempt
    resumed = world.state.attempt.resume_step or 0
    if step:
        steps(world, 31, 31 - resumed)
        stored = world.state  # it runs: what comes of progress after that is not stored
        steps(world, step, step - resumed)
    else:
        stored = world.state
    if restarted:
        restart(world, stored)
    if hang is None:
        world.happen(world.exit(1, -9, step=step))
    else:
        watch(world, 1e6, count=step - resumed if step else 0, **hang)
        assert world.state.phase is m.Phase.STOPPING
    if restarted:
        restart(world, world.state)
    stop(world, step, 30, 20, 10)


@settings(max_examples=25, deadline=None)
@given(
    attempts=st.lists(_ATTEMPTS, min_size=ATTEMPTS_MAX, max_size=ATTEMPTS_MAX),
    hangs=st.booleans(),
    replaceable=st.booleans(),
    hang_seconds=st.sampled_from([None, 30.0]),
)
def test_a_job_that_makes_no_new_step_ends_after_so_many_attempts_and_a_restart_of_recovery_changes_no_verdict(
    attempts: list[tuple[int | None, dict[str, Any] | None]], hangs: bool, replaceable: bool, hang_seconds: float | None
) -> None:
    """hangs: nothing but hangs, which alone are doubted."""
    calm, restarted = (at_step_38(replaceable=replaceable, hang_seconds=hang_seconds) for _ in range(2))
    for world in (calm, restarted):
        world.state.first_step_s = 6.0
        world.happen(world.exit(1, -9, step=38))
        stop(world, 38, 30, 20, 10)
    for step, drawn in attempts:
        hang = drawn or ({"ranks": {2}} if hangs else None)
        for world in (calm, restarted):
            if world.state.phase is not m.Phase.ENDED:
                goes_through(world, step, hang, restarted=world is restarted)
        assert _judged(calm) == _judged(restarted)
    assert calm.state.phase is m.Phase.ENDED


def _judged(world: World) -> tuple[m.Phase, list[tuple[m.Hang | None, float | None]]]:
    return world.state.phase, [(failure.hang, failure.doubted_s) for failure in world.state.failures]
