"""The sizing policy in virtual time: what it learns, what it does on requests, and what it never does."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import pytest

from switchgear.autoscaler.baselines.static import Static
from switchgear.autoscaler.observation import Decision, Engine, Observation, Phase, ReplicaRow, Slo, Work
from switchgear.autoscaler.simulate.conditions import Blindness, Conditions, Outcome, Throttle, keeps
from switchgear.autoscaler.simulate.replica import Request, ServiceModel
from switchgear.autoscaler.simulate.world import run
from switchgear.autoscaler.sizing.load import Jumps, Load, Peaks
from switchgear.autoscaler.sizing.policy import PART, PART_S, Policy
from switchgear.autoscaler.sizing.rules import RULES, Ahead, Evidence, Levels, Rule, Shadow, choose, wanted
from switchgear.autoscaler.sizing.starts import Starts
from switchgear.autoscaler.sizing.steps import Learned, Steps
from switchgear.autoscaler.sizing.twin import Arrival, Twin

T = TypeVar("T")

MODEL = ServiceModel()
STEPS = Steps(MODEL.step_s, MODEL.step_s_per_sequence, MODEL.prefill_s_per_token, MODEL.sequences_max)


def poisson(
    rate: Callable[[float], float], span_s: float, seed: int = 1, tokens: tuple[int, int] = (1000, 200)
) -> list[Request]:
    """Requests of equal size, at most 40 a second."""
    draw, at_s, requests = random.Random(seed), 0.0, list[Request]()
    while (at_s := at_s + draw.expovariate(40)) < span_s:
        if draw.random() < rate(at_s) / 40:
            requests.append(Request(len(requests), at_s, *tokens))
    return requests


def kept(outcome: Outcome, conditions: Conditions) -> float:
    return sum(keeps(one, conditions.slo, conditions.model) for one in outcome.requests) / len(outcome.requests)


def busy(name: str, *, speed: float = 1.0, running: int = 10, waiting: int = 0) -> ReplicaRow:
    """Five seconds of work of a replica with these costs."""
    steps = 100
    busy_s = (steps * MODEL.step_s + 1000 * MODEL.step_s_per_sequence + 2000 * MODEL.prefill_s_per_token) / speed
    return ReplicaRow(name, Phase.READY, 900.0, waiting=waiting, running=running, prefill_tokens=2000, decode_tokens=1000, busy_s=busy_s, steps=steps)  # fmt: skip


def quiet(desired: int, scale_down_delay_s: float | None = None) -> Observation:
    """Nothing comes, and all replicas say so."""
    rows = tuple(ReplicaRow(f"r{at}", Phase.READY, 900.0, waiting=0, running=0, busy_s=0.0) for at in range(desired))
    none = Work(0, 0, 0)
    return Observation(
        5.0, desired, rows, queue=none, arrived=none, completed=none, scale_down_delay_s=scale_down_delay_s
    )


# What it learns


def test_costs_of_iterations_sequences_and_prompts_are_found_by_what_replicas_did() -> None:
    policy, conditions = Policy(), Conditions(initial=3)
    run(poisson(lambda _: 4, 300), policy, conditions)
    step_s, sequence_s, token_s = policy.memory()["learned"]["coefficients"]  # type: ignore[index]
    assert step_s == pytest.approx(MODEL.step_s, rel=0.05)
    assert sequence_s == pytest.approx(MODEL.step_s_per_sequence, rel=0.1)
    assert token_s == pytest.approx(MODEL.prefill_s_per_token, rel=0.05)


def test_a_replica_that_takes_twice_the_time_for_its_work_counts_for_a_half() -> None:
    learned = Learned()
    for _ in range(20):
        learned.take([busy("a"), busy("b"), busy("c", speed=0.5), busy("d")], Engine(), 5.0)
    assert learned.lacking([busy("a"), busy("b"), busy("c"), busy("d")]) == pytest.approx(0.5, abs=0.1)
    assert learned.speed(replace(busy("a"), sick=True)) == 0.0
    assert learned.speed(replace(busy("a"), speed=0.25)) == 0.25


def test_when_all_replicas_became_slower_none_is_called_slow() -> None:
    learned = Learned()
    for speed in (1.0,) * 10 + (0.7,) * 30:
        learned.take([busy(name, speed=speed) for name in "abcd"], Engine(), 5.0)
    assert learned.lacking([busy(name) for name in "abcd"]) == 0


def test_a_full_batch_is_known_by_requests_that_wait_in_the_engine() -> None:
    learned = Learned()
    assert learned.slots(Engine()) == 64
    for _ in range(10):
        learned.take([busy("a", running=16, waiting=30)], Engine(), 5.0)
    assert learned.slots(Engine()) == 16
    assert learned.slots(Engine(sequences_max=8)) == 8
    assert learned.full_work(STEPS) == pytest.approx(STEPS.work_s(2000, 1000) / 5.0)


def test_starts_are_nominal_until_they_are_measured_and_failures_make_them_longer() -> None:
    starts = Starts()
    starts.take((), (), 30.0)
    assert starts.quantile_s(0.9) == 30.0
    starts.take((40.0, 50.0, 60.0, 70.0), (), 30.0)
    assert (starts.quantile_s(0.0), starts.quantile_s(0.9)) == (40.0, 70.0)
    assert 0 < starts.failure_odds < 0.1
    starts.take((), (60.0,) * 4, 30.0)
    assert starts.failure_odds > 0.3
    draws = [starts.draw_s() for _ in range(50)]
    assert {40.0, 70.0, 140.0} <= set(draws) <= {40.0, 50.0, 60.0, 70.0, 80.0, 100.0, 120.0, 140.0}
    again = Starts.restored(json.loads(json.dumps(starts.memory())))
    assert [again.draw_s() for _ in range(5)] == [starts.draw_s() for _ in range(5)]


def test_a_trend_is_told_from_noise_and_yesterday_from_today() -> None:
    noise, ramp, draw = Load(), Load(), random.Random(3)
    for at in range(400):
        noise.add(5.0 * at, 5.0, 5 * draw.uniform(1, 3), 5.0 * at)
        ramp.add(5.0 * at, 5.0, 5 * (2 + at / 100 + draw.uniform(-0.3, 0.3)), 5.0 * at)
    assert noise.trend(120.0) == 0.0
    assert ramp.trend(120.0) == pytest.approx(0.01 / 5 * 120, rel=0.5)
    days = Load()
    for at in range(int(1.5 * 86400 / 60)):
        days.add(60.0 * at, 60.0, 60 * (9.0 if 8 <= at / 60 % 24 < 10 else 1.0), 60.0 * at)
    assert days.pattern(86400 + 7.95 * 3600, 300.0) == pytest.approx(9.0)
    assert days.pattern(86400 + 12 * 3600, 300.0) == pytest.approx(1.0)


# Twins and rules


def test_a_jump_is_what_comes_faster_than_ever_and_not_what_bursts_always_did() -> None:
    steady, bursts = Jumps(), Jumps()
    for at in range(1, 400):
        assert steady.add(5.0 * at, 5.0, 5 + at % 2) == 0
        assert bursts.add(5.0 * at, 5.0, 30 if at % 60 == 0 else 5) == 0
    assert steady.add(2000.0, 5.0, 20) == pytest.approx(2.6)
    assert steady.add(2005.0, 5.0, 20) == pytest.approx(4.0)
    assert bursts.add(2000.0, 5.0, 20) == bursts.add(2005.0, 5.0, 20) == 0
    early = Jumps()
    assert [early.add(5.0 * at, 5.0, at) for at in range(1, 60)] == [0.0] * 59


@pytest.mark.parametrize("size", [5, 6])
def test_a_twin_keeps_about_what_the_simulated_fleet_keeps(size: int) -> None:
    requests, conditions = poisson(lambda _: 6, 1200), Conditions(initial=size)
    outcome = run(requests, Static(size), conditions)
    twin = Twin(size, 0.0)
    offered = [Arrival(one.arrival_s, one.input_tokens, one.output_tokens) for one in requests]
    assert kept(outcome, conditions) > 0.9
    assert twin.offer(offered, STEPS, Slo()) / len(requests) == pytest.approx(kept(outcome, conditions), abs=0.01)


def test_a_twin_of_merged_servers_keeps_what_single_ones_keep() -> None:
    requests = poisson(lambda _: 38, 300)
    offered = [Arrival(one.arrival_s, one.input_tokens, one.output_tokens) for one in requests]
    for size in (20, 24):
        whole, merged = Twin(size, 0.0), Twin(size, 0.0, servers_max=8)
        shares = [twin.offer(offered, STEPS, Slo()) / len(offered) for twin in (whole, merged)]
        assert shares[0] == pytest.approx(shares[1], abs=0.03)


def test_a_twin_serves_with_a_new_replica_only_when_its_start_is_over() -> None:
    twin = Twin(0, 0.0)
    assert twin.offer([Arrival(1.0, 100, 10)], STEPS, Slo()) == 0
    twin.resize(1, 10.0, lambda: 30.0)
    assert twin.offer([Arrival(20.0, 100, 10)], STEPS, Slo()) == 0
    assert twin.offer([Arrival(41.0, 100, 10)], STEPS, Slo()) == 1
    twin.resize(0, 60.0, lambda: 30.0)
    assert twin.offer([Arrival(61.0, 100, 10)], STEPS, Slo()) == 0


def test_a_twin_of_no_replica_serves_nobody_whatever_it_had_before() -> None:
    steps, draw = Steps(0.02, 1e-3, 2e-4, 64), random.Random(3)
    for _ in range(200):
        twin, now_s = Twin(2, 0.0), 0.0
        for size in (*(draw.randrange(9) for _ in range(20)), 0):
            now_s += draw.choice((5.0, 60.0, 400.0))
            twin.offer([Arrival(now_s - ago_s, 4000.0, 300.0) for ago_s in (5.0, 4.0, 3.0, 2.0, 1.0)], steps, Slo())
            twin.resize(size, now_s, lambda: draw.lognormvariate(6.0, 1.0))
        assert twin.offer([Arrival(now_s, 100.0, 10.0)], steps, Slo()) == 0.0


def test_what_came_long_before_a_twin_began_is_offered_all_the_same() -> None:
    assert Twin(1, 9000.0).offer([Arrival(0.0, 100.0, 10.0)], Steps(0.02, 1e-3, 2e-4, 64), Slo()) in (0.0, 1.0)


def test_the_cheapest_rule_that_would_have_kept_the_promise_is_followed() -> None:
    shadows = [
        Shadow(Rule(margin, 300.0, Ahead.NOW), Twin(1, 0.0), kept=kept_, replica_s=cost)
        for margin, kept_, cost in ((1.0, 90_000, 10.0), (1.2, 99_500, 12.0), (1.5, 99_900, 15.0))
    ]
    seen = Evidence(100_000, 1e7, 0.99, 1.0, 0.0, 0.0)
    assert choose(shadows, seen).up.margin == 1.2
    assert choose(shadows, replace(seen, unforeseen=0.007, broken=0.007)).up.margin == 1.5
    assert choose(shadows, replace(seen, broken=0.02)).up.margin == 1.5
    assert choose(shadows[:1], seen).up.margin == 1.0


def test_what_a_day_did_not_break_may_be_spent() -> None:
    shadows = [
        Shadow(Rule(margin, 300.0, Ahead.TREND), Twin(1, 0.0), kept=100_000 * (1 - broken), replica_s=margin)
        for margin, broken in ((2.1, 0.012), (2.6, 0.0095), (3.3, 0.001))
    ]
    day = Evidence(100_000, 86_400.0, 0.99, 1.0, 0.0, 0.0)
    assert choose(shadows, day).up.margin == 2.6
    assert choose(shadows, replace(day, broken=0.008)).up.margin == 3.3


def test_of_rare_requests_a_few_late_ones_may_be_chance_for_who_goes_up_and_of_many_they_are_a_rate() -> None:
    for offered, up in ((300.0, 1.0), (100_000.0, 2.1)):
        shadows = [
            Shadow(Rule(margin, 300.0, Ahead.TREND), Twin(1, 0.0), kept=offered * (1 - broken), replica_s=margin)
            for margin, broken in ((1.0, 0.013), (2.1, 0.0))
        ]
        seen = Evidence(offered, 1e7, 0.99, 0.1, 0.0, 0.008)
        assert choose(shadows, seen).up.margin == up
        assert choose(shadows, seen).hold.margin == 2.1


def test_a_rule_is_as_dear_as_it_is_now() -> None:
    night = Shadow(Rule(5.5, 300.0, Ahead.TREND), Twin(55, 0.0), kept=100_000, replica_s=1e5)
    more = Shadow(Rule(1.0, 1800.0, Ahead.TREND, extra=12), Twin(22, 0.0), kept=100_000, replica_s=1.2e5)
    assert choose([night, more], Evidence(100_000, 86_400.0, 0.99, 10.0, 0.0, 0.0)).up == more.rule


def test_replicas_on_top_are_the_same_however_much_comes() -> None:
    rule = next(one for one in RULES if one.extra == 5)
    for level in (0.5, 40.0):
        now = Levels(
            level,
            dict.fromkeys(Ahead, level),
            {(rule.ahead, rule.window_s): level},
            level,
            per_replica=0.8,
            start_s=30.0,
        )
        assert wanted(rule, now, 0.0) == (math.ceil(level + 5), math.ceil(1.05 * level + 5))


def test_rules_that_go_to_zero_have_to_prove_themselves_first() -> None:
    shadows = [Shadow(rule, Twin(1, 0.0), kept=100.0, replica_s=float(rule.least)) for rule in RULES]
    assert choose(shadows, Evidence(100.0, 600.0, 0.99, 1.0, 0.0, 0.0)).hold.least == 1
    assert choose(shadows, Evidence(100.0, 3e6, 0.99, 1.0, 0.0, 0.0)).hold.least == 0


# What it does


@pytest.mark.parametrize("cold_start_s", [30.0, 120.0])
def test_a_steady_stream_keeps_the_promise_for_less_than_the_fleet_that_was_there(cold_start_s: float) -> None:
    conditions = Conditions(initial=8, cold_start_s=cold_start_s, cold_jitter=0.5, cold_fail=0.1)
    outcome = run(poisson(lambda _: 5, 3600), Policy(), conditions)
    assert kept(outcome, conditions) >= 0.99
    assert outcome.replica_s < 0.8 * 8 * outcome.span_s


def test_a_ramp_is_followed_before_it_hurts() -> None:
    conditions = Conditions(initial=3, cold_start_s=60.0)
    outcome = run(poisson(lambda at_s: 2 + at_s / 300, 3600), Policy(), conditions)
    assert kept(outcome, conditions) >= 0.99


def test_after_a_jump_enough_is_asked_for_within_two_looks_and_not_much_more_later() -> None:
    conditions = Conditions(initial=4, cold_start_s=30.0)
    outcome = run(poisson(lambda at_s: 3 if at_s < 1800 else 18, 2400), Policy(), conditions)
    assert max(one.replicas for one in outcome.changes if one.at_s <= 1800 + 10) >= 15
    assert outcome.ready_max <= 40


def test_half_of_the_replicas_throttled_to_half_is_made_up_within_a_minute() -> None:
    conditions = Conditions(initial=6, cold_start_s=30.0, throttle=Throttle(900.0))
    outcome = run(poisson(lambda _: 7, 1500), Policy(), conditions)
    found = [one for one in outcome.changes if 900 < one.at_s <= 960]
    assert found
    assert found[-1].decision.evidence["lacking"] == pytest.approx(1.5, abs=0.5)


@pytest.mark.parametrize("told", [True, False])
def test_while_metrics_are_gone_and_when_they_are_back_nothing_falls(told: bool) -> None:
    conditions = Conditions(initial=6, cold_start_s=30.0, blindness=Blindness(600.0, 1200.0, told=told))
    outcome = run(poisson(lambda _: 7, 1800), Policy(), conditions)
    assert outcome.causes["BLIND"] >= 120
    assert all(one.replicas >= one.before for one in outcome.changes if 600 <= one.at_s < 1700)


def test_a_model_without_tokens_is_sized_by_the_seconds_of_its_requests() -> None:
    model, slo = ServiceModel.of_slots(2), Slo(ttft_s=None, tpot_s=None, wait_s=5.0)
    requests = poisson(lambda _: 1, 3600, tokens=(0, 4000))
    conditions = Conditions(model=model, slo=slo, initial=5, cold_start_s=30.0)
    outcome = run(requests, Policy(), conditions)
    assert kept(outcome, conditions) >= 0.99
    assert 2.0 <= outcome.replica_s / outcome.span_s <= 5.0


@pytest.mark.parametrize(
    ("start_s", "delay_s", "parts", "apart_s"),
    [(120.0, None, {1, 2, 3}, PART_S), (30.0, None, {1, 2, 3, 4, 6}, PART_S / 2), (30.0, 20.0, {20}, 0.0)],
)
def test_a_fleet_goes_down_part_by_part_and_so_does_not_one_whose_user_said_how_fast(
    start_s: float, delay_s: float | None, parts: set[int], apart_s: float
) -> None:
    policy, desired, changes = Policy(), 20, list[tuple[float, int]]()
    for at in range(1, 800):
        found = policy.decide(5.0 * at, replace(quiet(desired, delay_s), cold_start_s=start_s)).replicas
        if found != desired:
            changes.append((5.0 * at, desired - found))
            desired = found
    assert {gone for _, gone in changes} == parts
    assert all(later - before >= apart_s for (before, _), (later, _) in pairwise(changes))


@pytest.mark.parametrize(("policy", "first_s"), [(Policy(), 125.0), (Policy.restored(Policy().memory()), 305.0)])
def test_a_policy_that_was_restored_keeps_what_may_have_been_asked_for_just_now(policy: Policy, first_s: float) -> None:
    seen = replace(quiet(20), cold_start_s=15.0)
    assert next(5.0 * at for at in range(1, 99) if policy.decide(5.0 * at, seen).replicas < 20) == first_s


def test_what_is_too_much_at_first_goes_when_the_level_has_been_seen_and_comes_back_as_it_went() -> None:
    conditions = Conditions(initial=20, cold_start_s=30.0)
    outcome = run(poisson(lambda at_s: 10 if at_s < 320 else 36, 600), Policy(), conditions)
    moves = [(one.at_s, one.replicas - one.before) for one in outcome.changes]
    assert 120 <= moves[0][0] <= 130
    assert moves[0][1] < 0
    back = next(at for at, (_, by) in enumerate(moves) if by > 0)
    assert moves[back][1] >= math.ceil(PART * outcome.changes[back].before)


def test_the_first_request_to_nobody_asks_for_a_replica_at_once() -> None:
    seen = replace(quiet(0), queue=Work(1, 100), arrived=Work(1, 100))
    decision = Policy().decide(5.0, seen)
    assert (decision.replicas, decision.cause) == (1, "HELD")


def test_with_the_users_delay_it_goes_to_zero_after_that_and_not_while_a_request_runs() -> None:
    policy = Policy()
    served = replace(quiet(1, 20.0), replicas=(replace(quiet(1).replicas[0], running=1),))
    assert all(policy.decide(5.0 * at, served).replicas == 1 for at in range(1, 20))
    found = [policy.decide(100.0 + 5.0 * at, quiet(1, 20.0)).replicas for at in range(8)]
    assert found == [1, 1, 1, 0, 0, 0, 0, 0]


def test_late_requests_ask_for_more_when_all_figures_say_there_is_enough() -> None:
    policy, desired = Policy(), 4
    late = tuple((12.0, 1) for _ in range(20))
    for at in range(1, 30):
        rows = tuple(replace(row, running=5) for row in quiet(desired).replicas)
        seen = replace(
            quiet(desired), replicas=rows, arrived=Work(20, 2000), completed=Work(20, 2000, 200), ttft_s=late
        )
        desired = max(desired, policy.decide(5.0 * at, seen).replicas)
    assert desired >= 5


def test_budget_and_bounds_hold_and_are_named() -> None:
    seen = replace(
        quiet(2),
        max_replicas=9,
        gpus_per_replica=4,
        gpu_budget=12,
        queue=Work(5000, 5_000_000),
        arrived=Work(5000, 5_000_000),
    )
    decision = Policy().decide(5.0, seen)
    assert (decision.replicas, decision.cause) == (3, "BOUNDS")
    assert "budget of 12 GPUs" in decision.text


def anything(draw: random.Random, at: int, desired: int) -> Observation:
    """An observation of which any part may be missing."""

    def some(value: T) -> T | None:
        return value if draw.random() < 0.7 else None

    def row(number: int) -> ReplicaRow:
        return ReplicaRow(
            f"r{number}",
            draw.choice(list(Phase)),
            draw.random() * 900,
            some(9.0),
            speed=some(draw.random()),
            waiting=some(draw.randrange(40)),
            running=some(draw.randrange(70)),
            prefill_tokens=some(draw.randrange(9000)),
            decode_tokens=some(draw.randrange(9000)),
            busy_s=some(draw.random() * 5),
            steps=some(draw.randrange(200)),
        )

    came = draw.randrange(300)
    return Observation(
        5.0,
        desired,
        tuple(row(number) for number in range(draw.randrange(6))),
        min_replicas=1,
        max_replicas=7,
        queue=some(Work(draw.randrange(9), some(900))),
        arrived=some(Work(came, some(came * 900))),
        completed=some(Work(came, some(came * 900), some(came * 90))),
        kept=some(came),
        broken=some(draw.randrange(9)),
        ttft_s=((draw.random() * 4, 3),),
        cold_starts_s=(40.0,) if at % 9 == 0 else (),
        failed_starts_s=(9.0,) if at % 17 == 0 else (),
        cold_start_s=some(30.0),
    )


@pytest.mark.parametrize("seed", [5, 6])
def test_whatever_is_missing_it_decides_within_bounds_and_the_same_again(seed: int) -> None:
    decisions = []
    for policy in (Policy(), Policy()):
        draw, desired, found = random.Random(seed), 3, list[Decision]()
        for at in range(150):
            found.append(policy.decide(5.0 * at, anything(draw, at, desired)))
            desired = found[-1].replicas
            assert 1 <= desired <= 7
        decisions.append(found)
    assert decisions[0] == decisions[1]


def test_it_goes_on_from_its_memory() -> None:
    policy, conditions = Policy(), Conditions(initial=6)
    run(poisson(lambda _: 6, 1200), policy, conditions)
    memory = json.loads(json.dumps(policy.memory()))
    one, two = Policy.restored(memory), Policy.restored(memory)
    assert json.loads(json.dumps(one.memory())) == memory
    seen = replace(quiet(5), arrived=Work(30, 30_000), completed=Work(30, 30_000, 6000), kept=30, broken=0)
    assert [one.decide(5.0 * at, seen) for at in range(1, 9)] == [two.decide(5.0 * at, seen) for at in range(1, 9)]
    assert Policy.restored({"version": 0}).memory() == Policy().memory()


def test_the_highest_level_of_hours_outlives_a_restart() -> None:
    before, after = Peaks(28_800.0), Peaks(28_800.0)
    for at in range(2000):
        before.add(5.0 * at, 9.0 - at / 400)
    memory = before.memory()
    assert len(memory) <= 2 * 24
    after.remember(77.0, memory)
    for at in range(2000, 8000):
        expected, found = before.add(5.0 * at, 1.0), after.add(77.0 + 5.0 * (at - 1999), 1.0)
        assert expected <= found <= expected + 0.25
