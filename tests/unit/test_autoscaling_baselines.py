"""The published autoscalers, each against cases computed by hand from its formulas."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from switchgear.autoscaler.baselines.apa import Apa
from switchgear.autoscaler.baselines.hpa import Hpa
from switchgear.autoscaler.baselines.keda import Keda
from switchgear.autoscaler.baselines.kpa import Kpa
from switchgear.autoscaler.baselines.oracle import Oracle
from switchgear.autoscaler.baselines.ray_serve import RayServe
from switchgear.autoscaler.baselines.registry import REACTIVE, scaler
from switchgear.autoscaler.baselines.wva import Wva
from switchgear.autoscaler.observation import Observation, Phase, ReplicaRow, Scaler, Work
from switchgear.core.errors import Invalid


def seen(
    each: Sequence[int | None], *, starting: int = 0, held: int = 0, desired: int | None = None, kv: float = 0.0
) -> Observation:
    """each: running requests of each READY replica; None: its metrics are missing."""
    rows = [
        ReplicaRow(f"r{at}", Phase.READY, running=running, waiting=None if running is None else 0, kv_use=kv)
        for at, running in enumerate(each)
    ]
    rows += [ReplicaRow(f"s{at}", Phase.STARTING) for at in range(starting)]
    return Observation(10.0, len(rows) if desired is None else desired, tuple(rows), queue=Work(held))


def decided(policy: Scaler, *steps: tuple[float, Observation]) -> list[int]:
    return [policy.decide(now_s, at).replicas for now_s, at in steps]


def fleet(replicas: int, requests: int) -> Observation:
    """So many READY replicas with so many requests in all."""
    return seen([requests // replicas + (at < requests % replicas) for at in range(replicas)])


def test_hpa_keeps_within_its_tolerance_and_rounds_up_beyond() -> None:
    assert decided(Hpa(10.0), (0, fleet(4, 43))) == [4]
    assert decided(Hpa(10.0), (0, fleet(4, 45))) == [5]
    assert decided(Hpa(10.0), (0, seen([10, 10], held=5))) == [3]


def test_hpa_counts_loading_replicas_as_idle_on_the_way_up() -> None:
    # 2 x 30 requests: 3 times the target; over 2 + 2 replicas 1.5 times: ceil(1.5 x 4).
    assert decided(Hpa(10.0), (0, seen([30, 30], starting=2))) == [6]
    # Over 2 + 4 it is at the target: keep.
    assert decided(Hpa(10.0), (0, seen([30, 30], starting=4))) == [6]


def test_hpa_counts_loading_replicas_as_full_on_the_way_down() -> None:
    # 4 x 2 requests and one taken for 10: 0.36 of the target, ceil(0.36 x 5) = 2, after the window.
    policy, loading = Hpa(10.0), seen([2, 2, 2, 2], starting=1)
    assert decided(policy, (0, loading), (299, loading), (300, loading)) == [5, 5, 2]


def test_hpa_grows_by_the_fleet_or_by_four_in_a_step() -> None:
    assert decided(Hpa(1.0), (0, fleet(2, 100))) == [6]
    assert decided(Hpa(1.0), (0, fleet(10, 100))) == [20]


def test_hpa_takes_the_highest_recommendation_of_five_minutes_on_the_way_down() -> None:
    policy = Hpa(10.0)
    steps = ((0, fleet(4, 40)), (15, fleet(4, 30)), (30, fleet(4, 10)), (300, fleet(4, 10)), (315, fleet(3, 10)))
    assert decided(policy, *steps) == [4, 4, 4, 3, 1]


def test_hpa_keeps_when_metrics_are_missing_and_does_nothing_from_zero() -> None:
    assert decided(Hpa(10.0), (0, seen([None, 5]))) == [2]
    assert decided(Hpa(10.0), (0, seen([], starting=3))) == [3]
    assert decided(Hpa(10.0), (0, seen([], held=50))) == [0]


def test_kpa_divides_the_average_of_a_minute_by_its_target() -> None:
    policy = Kpa(10.0)
    steps = [(2.0 * at, fleet(3, 20 if at < 15 else 24)) for at in range(30)]
    # It begins in panic, which only goes up, until a stable window has passed.
    assert set(decided(policy, *steps)) == {3}
    assert decided(policy, (60.0, fleet(3, 24)), (62.0, fleet(3, 25))) == [3, 3]
    assert policy.decide(64.0, fleet(3, 26)).cause == "stable"


def test_kpa_panics_at_twice_what_is_ready_and_never_goes_down_in_panic() -> None:
    policy = Kpa(10.0)
    quiet = [(2.0 * at, fleet(1, 8)) for at in range(30)]
    assert set(decided(policy, *quiet)) == {1}
    # Six seconds at 8, 8, 50 are 22 on average: three replicas, at least twice the one that is READY.
    assert decided(policy, (60.0, fleet(1, 50))) == [3]
    assert decided(policy, (62.0, fleet(1, 50))) == [4]
    assert decided(policy, (64.0, fleet(1, 1)), (66.0, fleet(1, 1)), (120.0, fleet(4, 1))) == [4, 4, 4]
    # Over the threshold last at 66 s (50, 1 and 1 make 2 replicas); after a stable window it goes down, by half at most.
    assert decided(policy, (126.0, fleet(4, 1)), (128.0, fleet(4, 1))) == [4, 2]


def test_kpa_halves_at_most_and_ends_after_a_minute_of_nothing_and_the_grace() -> None:
    policy = Kpa(10.0)
    for at in range(60):
        policy.decide(2.0 * at, fleet(1, 0))
    assert policy.decide(120.0, fleet(1, 0)).replicas == 0
    fresh = Kpa(10.0)
    fresh.decide(0.0, fleet(1, 0))
    assert decided(fresh, (2.0, seen([0] * 8)), (28.0, fleet(1, 0)), (30.0, fleet(1, 0))) == [4, 1, 1]


def test_keda_divides_the_sum_by_its_target_within_the_tolerance_of_the_whole() -> None:
    assert decided(Keda(10.0), (0, fleet(4, 43))) == [4]
    assert decided(Keda(10.0), (0, fleet(4, 45))) == [5]
    # What loads does not damp it.
    assert decided(Keda(10.0), (0, seen([30, 30], starting=2))) == [6]


def test_keda_comes_from_zero_at_a_poll_and_goes_to_zero_after_the_cooldown() -> None:
    policy = Keda(10.0)
    assert decided(policy, (0, seen([])), (15, seen([], held=3)), (30, seen([], held=3))) == [0, 0, 1]
    idle = Keda(10.0)
    idle.decide(0, fleet(1, 5))
    quiet = [(15.0 * at, fleet(1, 0)) for at in range(1, 22)]
    assert decided(idle, *quiet).index(0) == 19


def test_keda_reads_a_missing_series_as_zero() -> None:
    policy = Keda(10.0)
    missing = [(15.0 * at, seen([None, None, None])) for at in range(22)]
    assert decided(policy, *missing)[-2:] == [0, 1]


def test_ray_serve_waits_for_half_a_minute_up_and_ten_minutes_down() -> None:
    policy = RayServe(2.0)
    busy = [(10.0 * at, fleet(2, 12)) for at in range(4)]
    assert decided(policy, *busy) == [2, 2, 2, 6]
    idle = [(40.0 + 10 * at, fleet(6, 2)) for at in range(65)]
    # The average of 30 seconds falls to 1 replica at the third; ten minutes after the first lower wish it acts.
    answers = decided(policy, *idle)
    assert answers[:60] == [6] * 60
    assert 1 in answers[60:64]


def test_ray_serve_begins_anew_when_the_direction_changes() -> None:
    policy = RayServe(2.0)
    steps = ((0, fleet(2, 12)), (10, fleet(2, 12)), (20, fleet(2, 0)), (30, fleet(2, 0)), (40, fleet(2, 12)))
    assert decided(policy, *steps) == [2] * 5


def test_ray_serve_goes_to_zero_from_one_alone() -> None:
    policy = RayServe(2.0)
    answers = decided(policy, *((10.0 * at, fleet(3, 0)) for at in range(61)))
    assert answers[-1] == 1
    assert decided(policy, *((610.0 + 10 * at, fleet(1, 0)) for at in range(61)))[-1] == 0


def test_ray_serve_starts_one_replica_from_zero_at_once() -> None:
    assert decided(RayServe(2.0), (0, seen([], held=9)), (10, seen([], starting=1, held=9))) == [1, 1]


def test_apa_multiplies_what_loads_again_and_again() -> None:
    policy = Apa(10.0)
    assert decided(policy, (0, seen([30, 30]))) == [4]
    assert decided(policy, (10, seen([30, 30], starting=2)), (20, seen([30, 30], starting=6))) == [8, 16]


def test_apa_keeps_within_its_tolerance_and_holds_five_minutes_on_the_way_down() -> None:
    assert decided(Apa(10.0), (0, fleet(4, 43))) == [4]
    policy = Apa(10.0)
    assert decided(policy, (0, fleet(8, 8)), (290, fleet(8, 8)), (300, fleet(8, 8))) == [8, 8, 4]


def test_wva_steps_up_when_saturated_or_short_of_spare_and_never_while_replicas_are_pending() -> None:
    assert decided(Wva(5.0), (0, seen([1, 1], kv=0.9))) == [3]
    assert decided(Wva(5.0), (0, seen([1, 1], kv=0.75))) == [3]
    # Five held for two replicas: 2.5 each leave 2.5 of 5, less than 3.
    assert decided(Wva(5.0), (0, seen([1, 1], held=5))) == [3]
    assert decided(Wva(5.0), (0, seen([1, 1], held=4))) == [2]
    assert decided(Wva(5.0), (0, seen([1, 1], starting=1, held=99))) == [3]


def test_wva_steps_down_when_one_fewer_would_still_have_spare_once_a_minute() -> None:
    policy = Wva(5.0)
    calm = seen([1, 1, 1], kv=0.4)
    assert decided(policy, (0, calm), (10, calm), (60, calm)) == [2, 3, 2]
    # 0.5 x 3 / 2 leaves less than 0.1 of 0.8.
    assert decided(Wva(5.0), (0, seen([1, 1, 1], kv=0.5))) == [3]
    assert decided(Wva(5.0), (0, seen([1], kv=0.0))) == [1]


def test_wva_remembers_the_worst_of_a_minute() -> None:
    policy = Wva(5.0)
    policy.decide(0, seen([1], kv=0.1))
    policy.decide(10, seen([1], kv=0.9))
    assert decided(policy, *((10.0 * at, seen([1], kv=0.1)) for at in range(2, 7)))[-1] == 2


def test_an_oracle_asks_a_cold_start_ahead() -> None:
    policy = Oracle([1, 1, 5, 2], ahead_s=30.0)
    assert decided(policy, *((at, fleet(1, 1)) for at in (0.0, 70.0, 80.0, 120.0, 180.0, 250.0))) == [1, 1, 5, 5, 2, 0]


@pytest.mark.parametrize("text", ["static:4", "hpa:8", *REACTIVE])
def test_every_policy_is_made_by_its_name(text: str) -> None:
    assert scaler(text).name == text.partition(":")[0]


@pytest.mark.parametrize("text", ["", "hpa:0", "hpa:x", "hpa:inf", "static", "static:-1", "static:1.5", "best"])
def test_a_name_that_is_none_is_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(Invalid):
        scaler(text)
