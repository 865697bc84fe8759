"""A simulated service: nothing is lost, all is counted once, and the same seed gives the same run."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from switchgear.autoscaler.baselines.static import Static
from switchgear.autoscaler.observation import Decision, Observation, Phase, Slo
from switchgear.autoscaler.simulate.conditions import Blindness, Conditions, GivenUp, Throttle, keeps
from switchgear.autoscaler.simulate.replica import Request, ServiceModel
from switchgear.autoscaler.simulate.world import run


class Script:
    """Does what a function of time says, and keeps what it saw."""

    name = "script"

    def __init__(self, replicas: Callable[[float], int], interval_s: float = 10.0) -> None:
        self.interval_s = interval_s
        self._replicas = replicas
        self.seen: dict[float, Observation] = {}

    def decide(self, now_s: float, seen: Observation) -> Decision:
        self.seen[now_s] = seen
        return Decision(self._replicas(now_s), "script", "as written")


def requests(count: int = 300, span_s: float = 300.0, seed: int = 1) -> list[Request]:
    draw = random.Random(seed)
    arrivals = sorted(draw.uniform(0, span_s) for _ in range(count))
    return [Request(at, time_s, draw.randint(1, 3000), draw.randint(1, 300)) for at, time_s in enumerate(arrivals)]


def times(given: list[Request]) -> list[tuple[float, float]]:
    return [(one.first_s, one.end_s) for one in given]


def test_every_request_ends_and_every_token_is_counted_once() -> None:
    given, script = requests(), Script(lambda _: 3)
    outcome = run(given, script, Conditions(initial=3))
    assert all(one.arrival_s <= one.begun_s <= one.first_s <= one.end_s for one in given)
    last = max(one.end_s for one in given)
    seen = [*script.seen.values()]
    ended = [one for one in given if one.end_s <= max(script.seen)]
    assert sum(one.arrived.requests for one in seen if one.arrived) == len(given)
    assert sum(one.completed.requests for one in seen if one.completed) == len(ended)
    assert sum((one.kept or 0) + (one.broken or 0) for one in seen) == len(ended)
    rows = [row for one in seen for row in one.replicas]
    done = sum(row.prefill_tokens or 0 for row in rows)
    assert done == pytest.approx(sum(one.input_tokens for one in given if one.first_s <= max(script.seen)), abs=3000)
    assert last < 400
    assert outcome.replica_s == pytest.approx(3 * given[-1].arrival_s)
    assert (outcome.starts, outcome.failed_starts, outcome.ready_max) == (0, 0, 3)


def test_the_same_seed_gives_the_same_run_and_another_seed_other_starts() -> None:
    conditions = Conditions(initial=1, cold_jitter=0.5, cold_fail=0.3)
    runs = []
    for seed in (1, 1, 2):
        given = requests()
        script = Script(lambda now_s: 1 + int(now_s // 40) % 4)
        outcome = run(given, script, replace(conditions, seed=seed))
        runs.append((times(given), outcome.replica_s, outcome.failed_starts))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_a_start_takes_its_cold_start_and_is_told_when_it_is_over() -> None:
    script = Script(lambda _: 2)
    outcome = run(requests(), script, Conditions(initial=1, cold_start_s=25.0))
    starting = [row for row in script.seen[10.0].replicas if row.phase is Phase.STARTING]
    assert [(row.age_s, row.ready_in_s) for row in starting] == [(10.0, 15.0)]
    assert script.seen[20.0].cold_starts_s == ()
    assert script.seen[30.0].cold_starts_s == (25.0,)
    assert [row.phase for row in script.seen[30.0].replicas] == [Phase.READY, Phase.READY]
    assert outcome.starts == 1


def test_a_start_that_fails_is_told_and_tried_again() -> None:
    script = Script(lambda _: 4)
    outcome = run(requests(), script, Conditions(initial=1, cold_start_s=25.0, cold_fail=0.5, seed=3))
    assert outcome.failed_starts > 0
    assert outcome.starts == 3 + outcome.failed_starts
    assert sum(len(seen.failed_starts_s) for seen in script.seen.values()) == outcome.failed_starts
    assert outcome.ready_max == 4


def test_the_gateway_holds_requests_while_there_is_no_replica() -> None:
    given, script = requests(40, 20.0), Script(lambda _: 1)
    outcome = run(given, script, Conditions(initial=0, cold_start_s=30.0))
    assert outcome.held_max == 40
    held = script.seen[20.0].queue
    assert held is not None
    assert held.requests == sum(one.arrival_s <= 20 for one in given)
    assert min(one.begun_s for one in given) == pytest.approx(30.0)
    assert [one.begun_s for one in given] == sorted(one.begun_s for one in given)


def test_a_replica_that_drains_finishes_what_it_has() -> None:
    given, script = requests(), Script(lambda now_s: 4 if now_s < 100 else 1, interval_s=1.0)
    outcome = run(given, script, Conditions(initial=4))
    assert all(one.end_s > 0 for one in given)
    assert any(row.phase is Phase.DRAINING for seen in script.seen.values() for row in seen.replicas)
    assert outcome.replica_s < 4 * given[-1].arrival_s


def test_throttled_replicas_slow_down_and_health_tells_of_it_when_it_may() -> None:
    plain, slow = requests(), requests()
    run(plain, Static(2), Conditions(initial=2))
    script = Script(lambda _: 2)
    run(slow, script, Conditions(initial=2, throttle=Throttle(100.0, told=True)))
    before = [one.number for one in plain if one.end_s < 100]
    assert [slow[at].end_s for at in before] == pytest.approx([plain[at].end_s for at in before])
    assert sum(one.end_s - one.arrival_s for one in slow) > 1.1 * sum(one.end_s - one.arrival_s for one in plain)
    assert sorted(row.speed or 0 for row in script.seen[110.0].replicas) == [0.5, 1.0]


def test_metrics_that_vanish_are_unknown_when_told_and_zero_when_not() -> None:
    script = Script(lambda _: 2)
    run(requests(), script, Conditions(initial=2, blindness=Blindness(100.0, 200.0)))
    dark = script.seen[100.0]
    assert dark.blind
    assert (dark.queue, dark.arrived, dark.completed, dark.kept) == (None, None, None, None)
    assert all(row.running is None for row in dark.replicas)
    assert not script.seen[200.0].blind
    silent = Script(lambda _: 2)
    run(requests(), silent, Conditions(initial=2, blindness=Blindness(100.0, 200.0, told=False)))
    nothing = silent.seen[150.0]
    assert not nothing.blind
    assert nothing.arrived is not None
    assert (nothing.arrived.requests, nothing.kept) == (0, 0)


def test_what_has_no_tokens_tells_of_seconds() -> None:
    script = Script(lambda _: 1)
    run([Request(0, 1.0, 1, 4000), Request(1, 60.0, 1, 4000)], script, Conditions(ServiceModel.of_slots(2), initial=1))
    completed = next(seen for seen in script.seen.values() if seen.completed and seen.completed.requests)
    assert completed.completed is not None
    assert completed.completed.input_tokens is None
    assert completed.completed.service_s == pytest.approx(4.0, abs=0.01)
    assert completed.wait_s == ((0.0, 1),)
    assert all(row.decode_tokens is None for row in completed.replicas)


def test_a_run_ends_early_when_it_has_broken_or_spent_too_much() -> None:
    outcome = run(requests(3000, 300.0), Static(1), Conditions(initial=1), broken_max=10)
    assert outcome.given_up is GivenUp.BROKEN
    assert run(requests(), Static(3), Conditions(initial=3), replica_s_max=200.0).given_up is GivenUp.COST
    assert run(requests(), Static(3), Conditions(initial=3), replica_s_max=2000.0).given_up is None


def test_a_request_keeps_the_promise_when_it_is_within_every_limit() -> None:
    model = ServiceModel()
    request = Request(0, 10.0, 512, 100, begun_s=11.5, first_s=12.4, end_s=22.4)
    # Its prompt takes 0.148 s alone, so the first token has 2.444 s; a hundred tokens have 10 s more.
    assert keeps(request, Slo(), model)
    assert not keeps(replace(request, first_s=12.5), Slo(), model)
    assert keeps(replace(request, first_s=12.5), Slo(ttft_prefill_factor=4.0), model)
    assert not keeps(replace(request, end_s=22.5), Slo(), model)
    assert keeps(replace(request, end_s=22.5), Slo(tpot_s=0.11), model)
    assert not keeps(request, Slo(e2e_s=12.0), model)
    assert not keeps(request, Slo(wait_s=1.0), model)
    assert keeps(request, Slo(wait_s=2.0), model)
    assert not keeps(Request(1, 0.0, 1, 1), Slo(), model)
