"""What hindsight chooses on a small trace, and how a run is judged."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from switchgear.autoscaler.baselines.hpa import Hpa
from switchgear.autoscaler.baselines.static import Static
from switchgear.autoscaler.observation import Decision, Slo
from switchgear.autoscaler.simulate.conditions import Conditions, Taken
from switchgear.autoscaler.simulate.foresight import oracle
from switchgear.autoscaler.simulate.score import Score, flaps
from switchgear.autoscaler.simulate.search import best_target, static_peak, tried_out
from switchgear.autoscaler.simulate.trace import Trace, trace_of
from switchgear.autoscaler.simulate.world import run


@pytest.fixture(scope="module")
def trace() -> Trace:
    """Ten minutes: two requests a second, in the middle five."""
    draw = random.Random(1)
    at_s = [draw.uniform(0, 600) for _ in range(1200)] + [draw.uniform(240, 420) for _ in range(540)]
    sizes = [(draw.randint(50, 2000), draw.randint(20, 300)) for _ in at_s]
    inputs, outputs = (np.array(column) for column in zip(*sizes, strict=True))
    return trace_of("small", np.array(at_s), inputs, outputs)


def taken(*steps: tuple[float, int, int]) -> list[Taken]:
    return [Taken(at_s, Decision(after, "", ""), before, after, 0, 0) for at_s, before, after in steps]


def test_static_peak_is_the_smallest_fleet_that_keeps_the_promise(trace: Trace) -> None:
    conditions = Conditions()
    peak = static_peak(trace, conditions)
    assert peak is not None
    assert peak > 1
    scores = {}
    for replicas in (peak - 1, peak):
        given = replace(conditions, initial=replicas)
        scores[replicas] = Score.of(run(trace.requests(), Static(replicas), given), given).attainment
    assert scores[peak - 1] < 0.99 <= scores[peak]


def test_no_fleet_is_told_when_none_is_large_enough(trace: Trace) -> None:
    assert static_peak(trace, Conditions(max_replicas=1)) is None


def test_a_fleet_that_must_be_larger_is_not_made_smaller(trace: Trace) -> None:
    assert static_peak(trace, Conditions(min_replicas=20)) == 20


def test_the_best_target_reaches_the_objective_for_less_than_lower_ones(trace: Trace) -> None:
    conditions = Conditions(initial=4, cold_start_s=10.0)
    best = best_target(trace, Hpa, conditions)
    assert best is not None
    cost_s, dearer_s = (tried_out(trace, Hpa(target), conditions).replica_s for target in (best, best / 2))
    assert cost_s < dearer_s < float("inf")
    assert not tried_out(trace, Hpa(best / 2), conditions, cost_s).reaches
    assert not tried_out(trace, Hpa(best * 2), conditions).reaches


class Recorded(Static):
    """A fleet of the static peak at `good`, none above it but at `dear`, where it is as large as may be."""

    good, dear, asked = 0.0, 0.0, [0.0]

    def __init__(self, target: float) -> None:
        self.asked.append(target)
        super().__init__(200 if target == self.dear else 4 if target <= self.good else 0)


def test_a_target_that_is_too_dear_does_not_end_the_search(trace: Trace) -> None:
    class Dear(Recorded):
        good, dear, asked = 16.0, 32.0, []

    assert best_target(trace, Dear, Conditions(initial=4, cold_start_s=0.0)) == 16.0


def test_whole_targets_of_the_grid_are_exact(trace: Trace) -> None:
    class Fitting(Recorded):
        good, asked = 1.0, []

    assert best_target(trace, Fitting, Conditions(initial=4)) == 1.0
    assert {2.0**power for power in range(9)} <= set(Fitting.asked)


def test_a_target_of_the_grid_that_fails_hides_none_above_it(trace: Trace) -> None:
    def hidden(target: float) -> Static:
        return Static(3 if 16 < target < 20 else 4 if target < 16 else 0)

    best = best_target(trace, hidden, Conditions(initial=4, slo=Slo(objective=0.9)))
    assert best is not None
    assert 16 < best < 20


def test_no_target_is_told_when_none_reaches_the_objective(trace: Trace) -> None:
    assert best_target(trace, Hpa, Conditions(initial=1, max_replicas=1)) is None


def test_an_oracle_reaches_the_objective_for_less_than_the_best_fixed_fleet(trace: Trace) -> None:
    peak = static_peak(trace, Conditions())
    assert peak is not None
    conditions = Conditions(initial=peak, cold_start_s=30.0)
    plan = oracle(trace, conditions)
    assert plan is not None
    score = Score.of(run(trace.requests(), plan, conditions), conditions)
    assert score.attainment >= 0.99
    assert score.gpu_hours < peak * score.hours


def test_flaps_are_scale_ups_soon_after_a_scale_down() -> None:
    assert flaps(taken((0, 3, 2), (300, 2, 3))) == 1
    assert flaps(taken((0, 3, 2), (301, 2, 3))) == 0
    assert flaps(taken((0, 2, 3), (10, 3, 5), (20, 5, 4), (30, 4, 5), (40, 5, 6))) == 2


def test_a_score_counts_gpus_and_knows_requests_that_never_ended(trace: Trace) -> None:
    conditions = Conditions(initial=4, gpus_per_replica=8)
    score = Score.of(run(trace.requests(), Static(4), conditions), conditions)
    assert score.gpu_hours == pytest.approx(4 * 8 * score.hours)
    assert score.causes == {"static": sum(score.causes.values())}
    nobody = replace(conditions, initial=0)
    never = Score.of(run(trace.requests(), Static(0), nobody), nobody)
    assert (never.attainment, never.gpu_hours, never.held_max) == (0.0, 0.0, len(trace))
    assert never.ttft_s == (float("inf"), float("inf"))
