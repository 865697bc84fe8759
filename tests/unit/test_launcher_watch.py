"""When a rank is told of, and what a step takes; time is what the test says."""

from __future__ import annotations

from itertools import pairwise

import pytest

from switchgear.launcher.activity import Activity
from switchgear.launcher.watch import Look, RankWatch, StepTimes, Trouble, next_stack_s

S = 1_000_000_000


def learned(*seconds: float) -> StepTimes:
    times = StepTimes()
    for duration_s in seconds:
        times.add(round(duration_s * S))
    return times


def watched(
    *states: str, silent_s: float = 0, cpu_s: float = 0, held: dict[int, int] | None = None, every_s: float = 0.25
) -> RankWatch:
    """A rank that was seen in these states, one look after the other; silent_s: at the last of them."""
    watch = RankWatch()
    last_ns = round(1000 * S + (len(states) - 1) * every_s * S)
    for turn, state in enumerate(states):
        now_ns = round(1000 * S + turn * every_s * S)
        watch.take(Look(now_ns, last_ns - round(silent_s * S), state, round(turn * every_s * cpu_s * S), held or {}))
    return watch


def test_nothing_is_learned_from_two_steps() -> None:
    assert (learned(0.1, 0.1).learned_s(), learned(0.1, 0.1, 0.1).learned_s()) == (None, 0.1)


def test_one_slow_step_makes_us_wait_one_and_a_half_times_as_long_the_next_time() -> None:
    times = learned(*[0.1] * 50, 8, *[0.1] * 5)
    assert times.learned_s() == pytest.approx(4, rel=0.01)


def test_a_slow_step_is_forgotten_slowly() -> None:
    times = learned(0.1, 0.1, 100)
    seen = []
    for _ in range(10):
        for _ in range(1000):
            times.add(S // 10)
        seen.append(times.learned_s())
    assert seen[0] == pytest.approx(25, rel=0.01)
    assert seen[-1] == 0.1


def test_a_new_attempt_goes_by_the_one_before_until_it_has_made_enough_steps_of_its_own() -> None:
    times = learned(2, 2, 2)
    times.new_attempt()
    times.add(S // 2)
    times.add(S // 2)
    assert times.learned_s() == 2
    times.add(S // 2)
    assert times.learned_s() == pytest.approx(1, rel=0.01), "half of the slowest, which was of the attempt before"


@pytest.mark.parametrize(
    ("step_s", "started", "silent_s", "trouble"),
    [
        (0.1, True, 0.9, None),
        (0.1, True, 1.1, Trouble.SILENT),
        (10, True, 14, None),
        (10, True, 16, Trouble.SILENT),
        (None, True, 29, None),  # two steps made
        (None, True, 31, Trouble.SILENT),
        (0.1, False, 29, None),  # an attempt before has taught the step time, and this one still starts
        (0.1, False, 31, Trouble.SILENT),
    ],
)
def test_a_rank_is_silent_after_one_and_a_half_steps(
    step_s: float | None, started: bool, silent_s: float, trouble: Trouble | None
) -> None:
    assert watched("S", "S", silent_s=silent_s).trouble(step_s, started=started) is trouble


def test_a_rank_that_is_seen_stopped_twice_is_stopped() -> None:
    troubles = [watched(*states).trouble(0.1, started=True) for states in ("ST", "STT", "SSR", "Stt", "TTS")]
    assert troubles == [None, Trouble.STOPPED, None, Trouble.TRACED, None]


def test_the_time_in_a_state_counts_from_its_first_look() -> None:
    watch = watched(*"RSSTTT")
    assert (watch.state, watch.state_since_ns) == ("T", 1000 * S + round(0.75 * S))


def test_only_a_wait_that_goes_on_blocks_a_rank() -> None:
    """A rank that writes to a slow disk is in state D at every look, each time in another wait."""
    one_wait, many_waits = RankWatch(), RankWatch()
    for turn in range(4):
        now_ns = 1000 * S + turn * S // 4
        one_wait.take(Look(now_ns, now_ns, "D", 0, {7: 500}))
        many_waits.take(Look(now_ns, now_ns, "D", 0, {7: 500 + turn}))
    assert (one_wait.trouble(0.1, started=True), one_wait.state) == (Trouble.BLOCKED, "D")
    assert one_wait.state_since_ns == 1000 * S
    assert (many_waits.trouble(0.1, started=True), many_waits.state) == (None, "S")


def test_a_thread_that_waits_in_the_kernel_blocks_its_rank() -> None:
    watch = watched("S", "S", held={11: 5})
    assert (watch.state, watch.trouble(0.1, started=True)) == ("D", Trouble.BLOCKED)


def test_cpu_time_is_that_of_one_second() -> None:
    assert watched(*"RRRR", cpu_s=1).cpu_share() is None
    assert watched(*"RRRRRRRR", cpu_s=1.5).cpu_share() == 1.5


def test_a_rank_sleeps_when_no_look_of_a_second_saw_it_run() -> None:
    assert [watched(*states).sleeps() for states in ("SSSS", "SSSSS", "SSSSR", "RSSSSS")] == [False, True, False, True]


@pytest.mark.parametrize(
    "pause", [Activity.DATA, Activity.COMPILE, Activity.EVALUATION, Activity.CHECKPOINT, Activity.UNKNOWN]
)
def test_who_comes_back_from_what_may_take_long_has_got_on(pause: Activity) -> None:
    watch = RankWatch()
    for second, activity in enumerate([Activity.STEP, pause, pause], 1):
        watch.saw(activity, second)
    assert watch.pause_end_ns == 0
    watch.saw(Activity.STEP, 5)
    watch.saw(Activity.COLLECTIVE, 6)
    assert watch.pause_end_ns == 5
    teaches = pause in (Activity.DATA, Activity.UNKNOWN)
    assert watch.paused is not teaches, "waiting for data is a part of a step, which teaches its time"


def test_a_pause_that_was_over_before_does_not_end_again() -> None:
    watch = RankWatch()
    watch.saw(Activity.DATA, 1)
    watch.goes_on()
    watch.saw(Activity.STEP, 2)
    assert watch.pause_end_ns == 0


def test_stacks_are_taken_each_second_at_first_and_once_a_minute_at_last() -> None:
    waits = [next_stack_s(silent_s) for silent_s in (1, 3, 10, 60, 119, 600, 3600)]
    assert (waits[0], waits[1], waits[-1]) == (1, 1, 60)
    assert all(a <= b for a, b in pairwise(waits))
    assert next_stack_s(100) == 5
