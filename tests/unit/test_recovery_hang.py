"""Who hangs and how we know, from what launchers say of ranks that make no step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from recovery_world import START_NS, World

from switchgear.core.modes import Mode
from switchgear.recovery import model as m
from switchgear.recovery.faults import BLOCKED_STOP_S
from switchgear.recovery.hang import (
    BLOCKED_S,
    BUSY_S_MIN,
    ENDING_S,
    HANG_S_MIN,
    PATIENCE,
    STARTUP_S_MAX,
    stall,
    startup_limit_s,
)

WAITS = m.RankWatch(0, 10.0, m.Activity.COLLECTIVE, m.ProcessState.SLEEPING, count=38, step_s=0.1, cpu_share=0.0)
ALL_WAIT = dict.fromkeys(range(4), WAITS)
STEPS = replace(WAITS, activity=m.Activity.STEP, where="train_step (train.py:33)", stack="main\ntrain_step")
NOW = m.Now(100.0, START_NS)
HUNG = m.Failure(m.Fault.RANK_HUNG, "hung: 3", 38, progressed=False, hang=m.Hang(38, 38, made_steps=True, ranks=(3,)))


def ranks(count: int = 4) -> dict[int, m.Rank]:
    return {number: m.Rank(f"nodes/{'ab'[number * 2 // count]}", 100 + number, 1, 38, 1, 38) for number in range(count)}


def judged(
    watches: dict[int, m.RankWatch], found: dict[int, m.Rank] | None = None, **options: Any
) -> m.Fault | tuple[m.Fault, int | None, str] | None:
    """heard now; the fault with the rank and its node, or None."""
    heard = {number: replace(watch, rank=number, heard_s=NOW.monotonic_s) for number, watch in watches.items()}
    verdict = stall(found or ranks(), heard, NOW, **options)
    return verdict and (verdict.cause.fault, verdict.cause.rank, verdict.cause.node)


def test_the_rank_that_does_not_wait_in_a_collective_is_at_fault() -> None:
    watches = {0: WAITS, 1: WAITS, 2: STEPS, 3: WAITS}
    assert judged(watches) == (m.Fault.RANK_HUNG, 2, "nodes/b")
    verdict = stall(ranks(), {n: replace(w, rank=n, heard_s=99.5) for n, w in watches.items()}, NOW)
    assert verdict is not None
    assert verdict.cause.clause == "rank 2 on nodes/b hung after step 38 in train_step (train.py:33)"
    assert verdict.cause.known_by == (
        "no rank completed a step for 10.5 s where one takes 0.1 s; the others wait for it in a collective operation"
    )
    assert verdict.cause.time_ns == START_NS - 10_500_000_000
    assert verdict.stack == "main\ntrain_step"
    assert verdict.evidence[0] == (
        "launcher on nodes/b: rank 2 (pid 102) is in a step, process SLEEPING, CPU 0%, no progress for 10.5 s after 38 steps of this "
        "attempt, at train_step (train.py:33)"
    )
    assert len(verdict.evidence) == 4


def test_where_all_wait_the_one_behind_is_at_fault_and_else_nobody() -> None:
    behind = replace(WAITS, count=37)
    assert judged({0: WAITS, 1: WAITS, 2: WAITS, 3: behind}) == (m.Fault.RANK_HUNG, 3, "nodes/b")
    assert judged(dict.fromkeys(range(4), WAITS)) == (m.Fault.RANK_HUNG, None, "")
    stand = replace(STEPS, idle_s=BUSY_S_MIN)
    assert judged(dict.fromkeys(range(4), stand)) == (m.Fault.RANK_HUNG, None, "")


def test_where_all_stand_at_the_same_place_it_is_named_and_else_none_is() -> None:
    def clause(*places: str) -> str:
        stand = replace(STEPS, idle_s=BUSY_S_MIN, heard_s=100.0)
        verdict = stall(ranks(2), {n: replace(stand, rank=n, where=where) for n, where in enumerate(places)}, NOW)
        assert verdict is not None
        return verdict.cause.clause

    assert clause("f (a.py:1)", "f (a.py:1)") == "all ranks hung after step 38 in f (a.py:1)"
    assert clause("f (a.py:1)", "g (a.py:9)") == "all ranks hung after step 38"
    assert clause("", "") == "all ranks hung after step 38"


def test_of_several_at_fault_all_are_named_and_the_first_is_the_rank() -> None:
    heard = {n: replace(w, rank=n, heard_s=100.0) for n, w in {0: WAITS, 1: STEPS, 2: WAITS, 3: STEPS}.items()}
    verdict = stall(ranks(), heard, NOW)
    assert verdict is not None
    assert verdict.cause.rank == 1
    assert verdict.cause.clause.startswith("ranks 1, 3 on nodes/a, nodes/b hung after step 38")


def test_the_only_rank_of_a_job_is_at_fault_itself() -> None:
    stands = replace(STEPS, idle_s=BUSY_S_MIN)
    assert judged({0: stands}, ranks(1)) == (m.Fault.RANK_HUNG, 0, "nodes/a")
    assert judged({0: replace(stands, activity=m.Activity.COLLECTIVE)}, ranks(1)) is not None


def test_a_rank_that_computes_while_the_others_wait_hangs_all_the_same_and_is_said_to_compute() -> None:
    computes = replace(STEPS, rank=1, cpu_share=1.0, heard_s=100.0, idle_s=BUSY_S_MIN)
    verdict = stall(ranks(2), {0: replace(WAITS, heard_s=100.0, idle_s=BUSY_S_MIN), 1: computes}, NOW)
    assert verdict is not None
    assert verdict.cause.known_by.endswith("the others wait for it in a collective operation, it is computing")
    assert "CPU 100%" in verdict.evidence[0]


@pytest.mark.parametrize(("step_s", "limit_s"), [(0.1, HANG_S_MIN), (2.0, 6.0)])
def test_a_hang_lasts_three_learned_steps_and_three_seconds(step_s: float, limit_s: float) -> None:
    almost = {n: replace(watch, idle_s=limit_s - 0.1, step_s=step_s) for n, watch in {**ALL_WAIT, 3: STEPS}.items()}
    assert judged(almost) is None
    assert judged({n: replace(watch, idle_s=limit_s) for n, watch in almost.items()}) is not None


@pytest.mark.parametrize(("step_s", "limit_s"), [(0.1, BUSY_S_MIN), (20.0, 200.0)])
@pytest.mark.parametrize(
    "watches",
    [
        dict.fromkeys(range(4), STEPS),
        {**ALL_WAIT, 3: replace(STEPS, cpu_share=0.9)},
        {**ALL_WAIT, 3: replace(STEPS, cpu_share=None)},
    ],
    ids=["nobody waits", "it computes", "it may compute"],
)
def test_where_nobody_idle_keeps_others_waiting_it_lasts_ten_learned_steps_and_a_minute(
    watches: dict[int, m.RankWatch], step_s: float, limit_s: float
) -> None:
    almost = {n: replace(watch, idle_s=limit_s - 0.1, step_s=step_s) for n, watch in watches.items()}
    assert judged(almost) is None
    assert judged({n: replace(watch, idle_s=limit_s) for n, watch in almost.items()}) is not None


def test_each_verdict_that_no_new_step_has_followed_makes_the_next_one_ten_times_as_late() -> None:
    def limit_s(watch: m.RankWatch, **options: Any) -> tuple[float, float | None]:
        """The least that is judged, and whether that is doubted."""
        for idle_s in (2.9, 3, 29.9, 30, 59.9, 60, 299.9, 300, 599.9, 600, 2999.9, 3000, 3599.9, 3600, 4999.9, 5000):
            heard = {n: replace(w, rank=n, idle_s=idle_s, heard_s=100.0) for n, w in {**ALL_WAIT, 3: watch}.items()}
            if verdict := stall(ranks(), heard, NOW, **options):
                return idle_s, verdict.doubted_s
        raise AssertionError

    assert [limit_s(STEPS, failures=[HUNG] * n) for n in range(5)] == [
        (3, 3),
        (30, 30),
        (300, 300),
        (3000, 3000),
        (3600, None),
    ]
    computes = replace(STEPS, cpu_share=1.0)
    assert [limit_s(computes, failures=[HUNG] * n) for n in range(3)] == [(60, 60), (600, 600), (3600, None)]
    assert limit_s(replace(computes, step_s=500.0), failures=[HUNG] * 3) == (5000, None)
    assert limit_s(computes, failures=[HUNG] * 3, hang_seconds=30) == (30, None)
    assert limit_s(replace(STEPS, activity=m.Activity.DATA)) == (600, None)


def test_as_long_as_one_rank_makes_steps_nobody_hangs() -> None:
    assert judged({0: WAITS, 1: WAITS, 2: STEPS, 3: replace(WAITS, idle_s=1.0)}) is None
    assert judged({0: WAITS, 1: WAITS, 2: STEPS}) is None  # of rank 3 nothing is said: it goes on


def test_what_was_said_too_long_ago_counts_for_nothing() -> None:
    old = {number: replace(STEPS, rank=number, heard_s=90.0) for number in range(4)}
    assert stall(ranks(), old, NOW) is None


@pytest.mark.parametrize("patience", PATIENCE, ids=lambda patience: patience.activity.value)
def test_phases_that_take_long_are_waited_for_with_a_limit_of_their_own(patience: Any) -> None:
    busy = {n: replace(WAITS, idle_s=patience.seconds - 1) for n in range(3)}
    busy[3] = replace(busy[0], activity=patience.activity)
    assert judged(busy) is None
    assert judged(busy, hang_seconds=1.0) is None
    late = {n: replace(watch, idle_s=patience.seconds) for n, watch in busy.items()}
    assert judged(late) == (m.Fault.RANK_HUNG, 3, "nodes/b")


def test_a_user_sets_another_limit_or_none() -> None:
    slow = {n: replace(STEPS, idle_s=30.0) for n in range(4)}
    assert judged(slow, hang_seconds=60.0) is None
    assert judged(slow, hang_seconds=30.0) is not None
    assert judged({n: replace(STEPS, idle_s=1e6) for n in range(4)}, hang_seconds=0) is None


def test_steps_that_are_not_learned_yet_have_the_time_of_the_start() -> None:
    first = {n: replace(STEPS, step_s=None, idle_s=600.0) for n in range(4)}
    assert judged(first) is None
    assert judged({n: replace(watch, idle_s=1800.0) for n, watch in first.items()}) is not None


def test_a_restarted_attempt_has_ten_times_as_long_for_its_first_step_as_one_before_it_took() -> None:
    assert startup_limit_s(None, 0) == startup_limit_s(None, 3) == STARTUP_S_MAX
    assert [startup_limit_s(1.0, hung) for hung in range(4)] == [60, 600, 1800, 1800]
    assert [startup_limit_s(took_s, 0) for took_s in (6.0, 7.0, 1e4)] == [60, 70, 1800]


def test_a_hang_before_the_first_step_of_a_restarted_attempt_is_doubted_while_it_may_take_longer() -> None:
    def doubted_s(first_step_s: float | None, idle_s: float) -> float | None:
        begins = replace(STEPS, activity=m.Activity.STARTUP, idle_s=idle_s, heard_s=100.0)
        verdict = stall(ranks(), {n: replace(begins, rank=n) for n in range(4)}, NOW, first_step_s=first_step_s)
        assert verdict is not None
        return verdict.doubted_s

    assert doubted_s(6.0, 60) == 60
    assert doubted_s(None, STARTUP_S_MAX) is None
    with pytest.raises(AssertionError):
        doubted_s(6.0, 59)


def test_a_program_whose_steps_nobody_sees_never_hangs() -> None:
    for activity in (m.Activity.STARTUP, m.Activity.UNKNOWN):
        endless = {n: replace(STEPS, activity=activity, step_s=None, idle_s=1e6) for n in range(4)}
        assert judged(endless, makes_steps=False) is None


def test_while_others_have_ended_well_the_last_rank_may_take_its_time() -> None:
    found = ranks()
    for number in range(3):
        found[number].exit = m.Exit(number, found[number].node, 1, 1, 0, by_us=False)
    assert judged({3: STEPS}, found) is None
    assert judged({3: replace(STEPS, idle_s=ENDING_S)}, found) is not None


def test_a_stopped_rank_is_seen_after_a_second_whatever_the_others_do() -> None:
    stopped = replace(STEPS, process=m.ProcessState.STOPPED, process_age_s=0.9, idle_s=0.9)
    assert judged({1: stopped}) is None
    seen = replace(stopped, process_age_s=1.0)
    assert judged({1: seen}) == (m.Fault.RANK_STOPPED, 1, "nodes/a")
    assert judged({1: seen}, hang_seconds=0) == (m.Fault.RANK_STOPPED, 1, "nodes/a")


def test_a_rank_that_a_debugger_holds_raises_no_alarm() -> None:
    assert judged({0: WAITS, 1: WAITS, 2: WAITS, 3: replace(STEPS, process=m.ProcessState.TRACED)}) is None


def test_a_rank_in_the_kernel_is_given_time_and_then_its_node_is_at_fault() -> None:
    blocked = replace(STEPS, activity=m.Activity.UNKNOWN, process=m.ProcessState.DISK, process_age_s=BLOCKED_S - 1)
    assert judged({0: WAITS, 1: WAITS, 2: WAITS, 3: blocked}) is None
    long = replace(blocked, process_age_s=BLOCKED_S)
    assert judged({0: WAITS, 1: WAITS, 2: WAITS, 3: long}) == (m.Fault.RANK_BLOCKED, 3, "nodes/b")
    assert judged({0: long, 1: WAITS, 2: WAITS, 3: long}) is None  # the storage that they share
    hours = replace(long, process_age_s=1800.0)
    assert judged({0: hours, 1: WAITS, 2: WAITS, 3: hours}) == (m.Fault.RANK_HUNG, 0, "nodes/a")


def test_ranks_in_the_kernel_accuse_their_node_only_where_ranks_elsewhere_are_not() -> None:
    blocked = replace(STEPS, process=m.ProcessState.DISK, process_age_s=BLOCKED_S, idle_s=BUSY_S_MIN)
    assert judged(dict.fromkeys(range(2), blocked), ranks(1) | {1: ranks(1)[0]}) is None
    assert judged({0: blocked, 1: WAITS}, {0: ranks()[0], 1: ranks()[1]}) is None
    assert judged({0: blocked, 1: blocked, 2: WAITS, 3: WAITS}) == (m.Fault.RANK_BLOCKED, 0, "nodes/a")


# In the machine.


def watch_all(world: World, idle_s: float, **of_rank_2: Any) -> list[m.Effect]:
    """Both launchers say that nobody makes a step, and what rank 2 is at."""
    assert world.state.attempt
    count = world.state.attempt.ranks[2].count
    at_fault = replace(replace(STEPS, count=count, **of_rank_2), rank=2, idle_s=idle_s)
    waits = [replace(WAITS, rank=number, idle_s=idle_s, count=count) for number in range(4)]
    return world.happen(
        m.Watched("nodes/a", world.state.generation, (waits[0], waits[1])),
        m.Watched("nodes/b", world.state.generation, (at_fault, waits[3])),
    )


def stop_all(world: World, step: int) -> None:
    world.happen(*(world.exit(rank, -9, by_us=True, step=step) for rank in range(4)))
    world.stopped("nodes/a", "nodes/b")


def test_a_hang_is_restarted_in_place_free_of_charge_with_its_stack_in_the_incident() -> None:
    world = World()
    world.run_to(38)
    watch_all(world, 2.0)
    assert world.state.incident is None
    effects = watch_all(world, 3.1)
    assert [e.node for e in effects if isinstance(e, m.Stop)] == ["nodes/a", "nodes/b"]
    stop_all(world, 38)
    world.checked(step=30)
    incident = world.last_incident()
    assert (incident.fault, incident.rank, incident.node) == ("RANK_HUNG", 2, "nodes/b")
    assert incident.decision is m.Decision.RESTART_IN_PLACE
    assert incident.stack == "main\ntrain_step"
    assert world.state.restarts_used == 0
    assert world.state.watches == {}


def test_a_rank_that_goes_on_is_no_longer_held_against_its_peers() -> None:
    """Its launcher's word that it is over may come after the next tick."""
    world = World()
    world.run_to(38)
    watch_all(world, 2.9)
    world.happen(m.Progress("nodes/b", 1, (m.RankStep(2, 39, START_NS, START_NS, START_NS, 39),)))
    world.seconds += 1
    world.happen(m.Tick())
    assert world.state.incident is None
    world.happen(m.Watched("nodes/a", 1, ()), m.Watched("nodes/b", 1, ()))
    assert world.state.watches == {}


def test_what_a_launcher_says_of_older_generations_or_of_ranks_of_others_is_not_heard() -> None:
    world = World()
    world.run_to(38)
    foreign = tuple(replace(STEPS, rank=number) for number in range(4))
    world.happen(m.Watched("nodes/a", 0, foreign), m.Watched("nodes/a", 1, foreign))
    assert set(world.state.watches) == {0, 1}


def test_a_replica_that_waits_for_requests_does_not_hang_but_may_be_stopped() -> None:
    world = World()
    world.state.spec = m.Spec(1, 1, 3, "", inference=True)
    world.place("nodes/a")
    world.hello("nodes/a")
    world.happen(m.RankStarted("nodes/a", 1, 0, 100, START_NS))
    world.happen(m.Watched("nodes/a", 1, (replace(STEPS, activity=m.Activity.STARTUP, idle_s=1e6),)))
    assert world.state.incident is None
    stopped = replace(STEPS, process=m.ProcessState.STOPPED, process_age_s=2.0)
    world.happen(m.Watched("nodes/a", 1, (stopped,)))
    assert world.last_incident().fault is m.Fault.RANK_STOPPED


def test_the_same_rank_that_hangs_again_at_the_same_step_leaves_its_node() -> None:
    world = World()
    world.run_to(38)
    for idle_s in (4.0, 40.0):
        watch_all(world, idle_s)
        stop_all(world, 38)
        if idle_s == 4.0:
            world.checked(step=30)
            world.progress(38, new=False)
            watch_all(world, 29.0)
            assert world.state.phase is m.Phase.RUNNING
    incident = world.last_incident()
    assert incident.decision is m.Decision.REPLACE_NODE
    assert incident.decision_reason == "rank 2 hung there twice after step 38"
    assert world.state.outbox[-1].node == "nodes/b"


def test_a_hang_before_the_first_step_is_seen_sooner_once_an_attempt_has_made_one() -> None:
    world = World()
    world.state.spec = replace(world.state.spec, replaceable=False)
    world.place("nodes/a", "nodes/b")
    world.hello("nodes/a")
    world.hello("nodes/b")
    world.checked()
    started(world)
    world.seconds += 8
    world.progress(1)
    assert world.state.first_step_s == 8.0
    world.progress(38)
    world.happen(world.exit(0, -9, step=38))
    stop_all(world, 38)
    for waited_s in (80, 800, 1800):
        world.checked(step=30)
        started(world)
        begins: dict[str, Any] = {"activity": m.Activity.STARTUP}
        watch_all(world, waited_s - 1, **begins)
        assert world.state.phase is m.Phase.STARTING
        watch_all(world, waited_s, **begins)
        assert world.state.phase is m.Phase.STOPPING
        stop_all(world, 30)
    assert world.state.phase is m.Phase.ENDED
    assert world.state.first_step_s == 8.0


def started(world: World) -> None:
    now_ns = START_NS + round(world.seconds * 1e9)
    for number in range(4):
        world.happen(m.RankStarted(f"nodes/{'ab'[number // 2]}", world.state.generation, number, 100 + number, now_ns))


def test_the_summary_of_a_hang_says_once_what_to_do_if_it_was_none() -> None:
    world = World()
    world.state.spec = replace(world.state.spec, max_restarts=0)
    world.run_to(38)
    watch_all(world, 4.0)
    stop_all(world, 38)
    for text in (world.last_incident().summary, world.state.outbox[-1].reason):
        assert text.count("--hang-timeout") == text.count("switchgear.train.progress.phase") == 1


def test_a_node_with_a_blocked_rank_is_cordoned_and_replaced_although_its_kill_waits() -> None:
    world = World()
    world.run_to(38)
    watch_all(world, 40.0, process=m.ProcessState.DISK, process_age_s=31.0)
    assert [call.kind for call in world.state.outbox if call.node == "nodes/b"] == ["cordon"]
    world.happen(*(world.exit(rank, -9, by_us=True, step=38) for rank in (0, 1, 3)))
    world.stopped("nodes/a")
    world.seconds += BLOCKED_STOP_S - 1
    world.happen(m.Tick())
    assert world.state.phase is m.Phase.STOPPING
    world.seconds += 2
    world.happen(m.Tick())
    assert world.state.phase is m.Phase.REPLACING
    assert world.last_incident().decision_reason.startswith("fatal evidence against nodes/b")
    assert world.calls().count("cordon") == 1


def test_a_blocked_node_that_may_not_be_cordoned_is_avoided_by_the_job() -> None:
    world = World()
    world.run_to(38)
    world.happen(m.Tick(m.Modes(cordon=Mode.ADVISE)))
    watch_all(world, 40.0, process=m.ProcessState.DISK, process_age_s=31.0)
    stop_all(world, 38)
    assert "cordon" not in world.calls()
    assert world.state.outbox[-1].avoid == ("nodes/b",)


def test_where_there_is_no_other_node_a_blocked_rank_ends_the_job_with_the_reason() -> None:
    world = World()
    world.state.spec = replace(world.state.spec, replaceable=False)
    world.run_to(38)
    watch_all(world, 40.0, process=m.ProcessState.DISK, process_age_s=31.0)
    stop_all(world, 38)
    assert world.state.outcome is m.JobOutcome.FAILED
    assert world.last_incident().decision_reason == "nodes/b cannot be used, and there is no other"
