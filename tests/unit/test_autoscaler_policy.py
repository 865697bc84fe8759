"""How many replicas a service should have."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from switchgear.autoscaler.demand import Demand
from switchgear.autoscaler.model import ServiceSpec
from switchgear.autoscaler.policy import Cause, Decision, Less, Observation, decide

SPEC = ServiceSpec(("serve.py",), "/w", min_replicas=0, max_replicas=10, tokens_per_s=40.0, scale_down_delay_s=60.0)


def seen(replicas: int, **fields: object) -> Observation:
    demand = {name: fields.pop(name) for name in list(fields) if name in Demand.__dataclass_fields__}
    return Observation(SPEC, Demand(**demand), replicas, **fields)  # type: ignore[arg-type]


def test_a_held_request_is_reason_enough_for_the_first_replica() -> None:
    decision = decide(0.0, seen(0, held_requests=1, waiting_tokens=30.0))
    assert (decision.replicas, decision.cause) == (1, Cause.HELD)
    assert decision.text == "goes from 0 to 1: 1 request is held"


def test_what_arrives_and_what_waits_both_ask_for_replicas() -> None:
    decision = decide(0.0, seen(1, arriving_tokens_per_s=60.0, waiting_tokens=60.0))
    assert (decision.replicas, decision.cause) == (3, Cause.LOAD)  # (60 + 60 / 2) / 40 = 2.25
    assert decision.text == (
        "goes from 1 to 3: 60 tokens/s arrive and 60 tokens wait, a replica does 40 tokens/s (as specified)"
    )


def test_the_measured_capacity_beats_the_specified_one() -> None:
    decision = decide(0.0, seen(1, arriving_tokens_per_s=60.0, capacity_tokens_per_s=20.0))
    assert decision.replicas == 3
    assert "a replica does 20 tokens/s (measured)" in decision.text


def test_what_waits_is_no_reason_for_more_while_replicas_are_coming() -> None:
    backlog = {"arriving_tokens_per_s": 60.0, "waiting_tokens": 2000.0}
    assert decide(0.0, seen(2, coming=1, **backlog)).replicas == 2
    assert decide(0.0, seen(2, coming=1, arriving_tokens_per_s=130.0)).replicas == 4
    # Nor is it one for fewer: those that are coming are for it.
    assert decide(0.0, seen(5, coming=4, **backlog)).cause is Cause.FITS


def test_what_will_be_done_before_a_replica_could_start_is_no_reason_for_it() -> None:
    backlog = {"arriving_tokens_per_s": 30.0, "waiting_tokens": 400.0}
    assert decide(0.0, seen(2, **backlog)).replicas == 6
    assert decide(0.0, seen(2, start_s=38.0, **backlog)).replicas == 2


def test_less_must_suffice_for_the_whole_delay_and_the_most_that_was_needed_counts() -> None:
    first = decide(100.0, seen(4, arriving_tokens_per_s=30.0))
    assert (first.replicas, first.cause, first.less) == (4, Cause.LESS, Less(100.0, 1))
    second = decide(130.0, seen(4, arriving_tokens_per_s=70.0, less=first.less))
    assert second.less == Less(100.0, 2)
    third = decide(160.0, seen(4, arriving_tokens_per_s=30.0, less=second.less))
    assert (third.replicas, third.cause, third.less) == (2, Cause.DOWN, None)
    assert third.text.startswith("goes from 4 to 2: 2 sufficed for 60 s; 30 tokens/s arrive")


def test_a_moment_in_which_all_are_needed_begins_the_delay_anew() -> None:
    less = decide(0.0, seen(2, arriving_tokens_per_s=30.0)).less
    assert decide(59.0, seen(2, arriving_tokens_per_s=50.0, less=less)).less is None


def test_a_request_in_flight_keeps_the_last_replica() -> None:
    assert decide(100.0, seen(1, in_flight_requests=1, less=Less(0.0, 0))).replicas == 1
    idle = decide(100.0, seen(1, less=Less(0.0, 0)))
    assert (idle.replicas, idle.text) == (0, "goes from 1 to 0: no request for 60 s")


def test_what_is_not_known_is_not_zero() -> None:
    decision = decide(100.0, seen(3, blind="no router reports", less=Less(0.0, 0)))
    assert (decision.replicas, decision.cause, decision.less) == (3, Cause.BLIND, None)
    assert decision.text == "stays at 3: no router reports, and what is not known is not zero"
    # What is known may be reason enough.
    assert decide(0.0, seen(1, arriving_tokens_per_s=70.0, blind="a router has fallen silent")).replicas == 2


def test_bounds_are_named_where_they_bite() -> None:
    assert "; that needs 25, max_replicas is 10" in decide(0.0, seen(1, arriving_tokens_per_s=1000.0)).text
    spec = replace(SPEC, min_replicas=2)
    assert "; min_replicas is 2" in decide(0.0, replace(seen(2), spec=spec)).text
    moved = decide(0.0, replace(seen(1), spec=spec))
    assert (moved.replicas, moved.text) == (2, "goes from 1 to 2: 2 to 10 replicas are allowed")


rates = st.floats(0, 1e6)


@given(
    low=st.integers(0, 5), extra=st.integers(0, 1000), replicas=st.integers(0, 1000), coming=st.integers(0, 10),
    arriving=rates, waiting=rates, capacity=st.one_of(st.none(), st.floats(0, 1e6)), held=st.integers(0, 10),
    blind=st.sampled_from(["", "no router reports"]), since=st.one_of(st.none(), st.floats(0, 200)),
)  # fmt: skip
def test_bounds_hold_and_nothing_goes_down_in_the_dark(
    low: int, extra: int, replicas: int, coming: int, arriving: float, waiting: float, capacity: float | None,
    held: int, blind: str, since: float | None,
) -> None:  # fmt: skip
    spec = replace(SPEC, min_replicas=low, max_replicas=max(1, low + extra))
    demand = Demand(arriving, waiting, held, 0, capacity, blind)
    less = None if since is None else Less(since, min(low, replicas))
    decision = decide(200.0, Observation(spec, demand, replicas, coming, None, less))
    assert spec.min_replicas <= decision.replicas <= spec.max_replicas
    current = spec.bounded(replicas)
    if blind or less is None:
        assert decision.replicas >= current
    if current < decision.replicas:
        assert decision.less is None
    if decision.cause is not Cause.BOUNDS:  # a change of the bounds comes before any look at the demand
        again = decide(200.0, Observation(spec, demand, decision.replicas, coming, None, decision.less))
        assert again.replicas == decision.replicas


@settings(max_examples=25)
@given(arriving=st.floats(0.5, 390), start_s=st.floats(1, 30), delay=st.floats(5, 60))
def test_constant_load_settles_and_stays(arriving: float, start_s: float, delay: float) -> None:
    """A fluid of tokens into replicas that start late and do 40 tokens a second each."""
    spec = replace(SPEC, scale_down_delay_s=delay)
    waiting, number, less = 0.0, 0, None
    starts: list[float] = []
    changes: list[tuple[float, Decision]] = []
    for tick in range(1200):
        now_s = tick * 0.5
        ready = sum(start <= now_s for start in starts)
        waiting = max(0.0, waiting + (arriving - 40.0 * ready) * 0.5)
        demand = Demand(arriving, waiting, held_requests=int(ready == 0), in_flight_requests=1)
        decision = decide(now_s, Observation(spec, demand, number, number - ready, start_s, less))
        if decision.replicas != number:
            changes.append((now_s, decision))
        number, less = decision.replicas, decision.less
        while len(starts) < number:
            starts.append(now_s + start_s)
        while len(starts) > number:
            starts.pop()  # the youngest, which may not serve yet
    assert [change for change in changes if change[0] > 450] == []
    assert number >= arriving / 40 - 1e-6
    directions = ["up" if b[1].replicas > a[1].replicas else "down" for a, b in pairwise(changes)]
    assert "down up" not in " ".join(directions)


@pytest.mark.parametrize("arriving", [80.0, 80.0 + 1e-12])
def test_a_demand_of_exactly_two_replicas_is_not_three(arriving: float) -> None:
    assert decide(0.0, seen(2, arriving_tokens_per_s=arriving)).replicas == 2
