"""From reports of routers and replicas to what happened in an interval: everything in exactly one."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from switchgear.autoscaler.meter import ARRIVALS_MAX, GONE_S, SILENT_S, Done, Meter
from switchgear.autoscaler.model import InFlight, Load, RouterReport, ServiceReport, Totals
from switchgear.autoscaler.observation import Work
from switchgear.serve import promise

CHAT = "inferenceServices/chat"
ONE = f"{CHAT}/replicas/1"


def report(meter: Meter, now_s: float, totals: Totals | None = None, router: str = "r", **now: object) -> None:
    service = ServiceReport(totals=totals or Totals(), **now)  # type: ignore[arg-type]
    meter.router(router, RouterReport(0, {CHAT: service}), now_s)


def load(tokens: int = 0, busy_s: float = 0.0, instance: str = "i", **more: int) -> Load:
    return Load(instance, "127.0.0.1:1", True, tokens_total=tokens, busy_s_total=busy_s, **more)


def test_what_a_router_counted_before_it_was_known_did_not_happen_now() -> None:
    meter = Meter()
    report(meter, 0.0, Totals(requests=1000, tokens=5000))
    assert meter.take(CHAT, 0.0).arrived == Work(0, 0, 0)
    meter.router("s", RouterReport(), 0.0)
    report(
        meter, 0.5, Totals(requests=2, tokens=100, input_tokens=40), router="s"
    )  # it has just begun to name the service
    assert meter.take(CHAT, 0.5).arrived == Work(2, 40, 60)
    assert meter.take(CHAT, 0.5).arrived == Work(0, 0, 0)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.booleans(), st.booleans()), max_size=40))
def test_each_request_is_in_exactly_one_interval_however_routers_report_go_and_come_back(
    steps: list[tuple[str, int, bool, bool]],
) -> None:
    meter, counted, taken = Meter(), dict.fromkeys("abc", 0), 0
    for router in counted:
        report(meter, 0.0, router=router)
    for at, (router, came, goes, takes) in enumerate(steps):
        counted[router] += came
        if goes:
            meter.router_gone(router, float(at))
        report(meter, float(at), Totals(requests=counted[router], kept=counted[router]), router=router)
        if takes:
            interval = meter.take(CHAT, float(at))
            assert interval.arrived is not None
            assert interval.kept == interval.arrived.requests == sum(count for _, count, _ in interval.arrivals)
            taken += interval.arrived.requests
    last = meter.take(CHAT, float(len(steps))).arrived
    assert last is not None
    assert taken + last.requests == sum(counted.values())


def test_a_router_that_forgot_the_service_and_counts_anew_is_believed() -> None:
    meter = Meter()
    report(meter, 0.0)
    report(meter, 1.0, Totals(requests=10, completed=10, e2e={3: 10}))
    report(meter, 2.0, Totals(requests=2, completed=1, e2e={3: 1}))
    interval = meter.take(CHAT, 2.0)
    assert (interval.arrived, interval.completed) == (Work(12, 0, 0), Work(11, 0, 0))
    assert interval.e2e_s == ((pytest.approx(1e-3 * 1.1**3), 11),)


def test_prompts_are_counted_as_answers_turned_out_to_have_them() -> None:
    """The router takes four characters for a token; this model has one each."""
    meter = Meter()
    report(meter, 0.0)
    done = Totals(
        requests=10, tokens=180, input_tokens=100, estimated_tokens=100, completed=10, completed_input_tokens=400
    )
    report(meter, 1.0, done)
    first = meter.take(CHAT, 1.0)
    assert (first.arrived, first.completed) == (Work(10, 400, 80), Work(10, 400, 0))
    report(
        meter,
        2.0,
        replace(done, requests=11, tokens=198, input_tokens=110),
        held_requests=1,
        held_tokens=18,
        held_input_tokens=10,
    )
    second = meter.take(CHAT, 2.0)
    assert (second.arrived, second.queue) == (Work(1, 40, 8), Work(1, 40, 8))
    assert second.arrivals == ((0.0, 1, 40),)


def test_arrivals_in_their_order_are_bounded_and_none_is_lost() -> None:
    meter = Meter()
    report(meter, 0.0)
    for at in range(1, 1001):
        report(meter, at / 100, Totals(requests=at))
    arrivals = meter.take(CHAT, 10.0).arrivals
    assert len(arrivals) <= ARRIVALS_MAX
    assert sum(count for _, count, _ in arrivals) == 1000
    assert [ago_s for ago_s, _, _ in arrivals] == sorted((ago_s for ago_s, _, _ in arrivals), reverse=True)


def test_what_a_replica_did_is_summed_up_over_a_lost_connection_and_begins_anew_with_another_process() -> None:
    meter = Meter()
    meter.replica(CHAT, ONE, load(tokens=1000, busy_s=10.0, prompt_tokens_total=5, steps_total=7))
    meter.replica(CHAT, ONE, load(tokens=1040, busy_s=11.0, prompt_tokens_total=8, steps_total=17))
    meter.replica_gone(ONE)
    assert meter.loads() == {}
    meter.replica(CHAT, ONE, load(tokens=1100, busy_s=12.0, prompt_tokens_total=9, steps_total=20))
    report(meter, 0.0)
    assert meter.take(CHAT, 0.0).done == {ONE: Done(100, 2.0, 4, 13)}
    meter.replica(CHAT, ONE, load(instance="another", tokens=3))
    meter.replica(CHAT, ONE, load(instance="another", tokens=5))
    assert meter.take(CHAT, 0.0).done == {ONE: Done(2, 0.0, None, None)}


def test_missing_reports_are_named_and_nothing_is_not_zero() -> None:
    meter = Meter()
    dark = meter.take(CHAT, 0.0)
    assert (dark.blind, dark.arrived, dark.queue, dark.kept) == ("no router reports", None, None, None)
    report(meter, 0.0, held_requests=1)
    assert meter.take(CHAT, 1.0).blind == ""
    assert (meter.take(CHAT, SILENT_S + 1).blind, meter.held(CHAT)) == ("a router has fallen silent", 1)
    report(meter, 10.0)
    report(meter, 10.0, router="s")
    meter.router_gone("s", 10.0)
    assert meter.router_missing()
    assert meter.take(CHAT, 10.0).blind == "a router has gone a moment ago"
    meter.forget([CHAT], [], 10.0 + GONE_S + 1)
    report(meter, 10.0 + GONE_S + 1)
    assert not meter.router_missing()
    assert meter.take(CHAT, 10.0 + GONE_S + 1).blind == ""
    report(meter, 80.0, in_flight={ONE: InFlight(1, 10)})
    assert meter.take(CHAT, 80.0).blind == f"{ONE} has requests and does not report"


def test_two_routers_are_one_queue() -> None:
    meter = Meter()
    report(meter, 0.0, held_requests=2, oldest_wait_s=1.0, in_flight={ONE: InFlight(1, 10)})
    report(meter, 0.0, router="s", held_requests=3, oldest_wait_s=4.0, in_flight={ONE: InFlight(2, 30)})
    interval = meter.take(CHAT, 0.0)
    assert interval.queue is not None
    assert (interval.queue.requests, interval.oldest_wait_s, interval.in_flight) == (5, 4.0, {ONE: InFlight(3, 40)})


def test_the_buckets_are_those_of_the_router() -> None:
    from switchgear.autoscaler import meter

    assert (meter.FIRST_BUCKET_S, meter.BUCKET_GROWTH, meter.BUCKET_MAX) == (
        promise.FIRST_BUCKET_S,
        promise.BUCKET_GROWTH,
        promise.BUCKET_MAX,
    )
    names = {field.name for field in fields(Totals)}
    assert names == {*meter._COUNTS, *meter._TIMES}
