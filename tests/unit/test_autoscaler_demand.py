"""From reports of routers and replicas to the demand of a service."""

from __future__ import annotations

import pytest

from switchgear.autoscaler.demand import GONE_S, SILENT_S, WINDOW_S, Meter
from switchgear.autoscaler.model import InFlight, Load, RouterReport, ServiceReport

CHAT = "inferenceServices/chat"
ONE = f"{CHAT}/replicas/1"


def report(meter: Meter, now_s: float, total: int = 0, router: str = "r", **fields: object) -> None:
    meter.router(router, RouterReport(0, {CHAT: ServiceReport(tokens_total=total, **fields)}), now_s)  # type: ignore[arg-type]


def load(running: int = 0, waiting: int = 0, tokens: int = 0, busy_s: float = 0.0, instance: str = "i") -> Load:
    return Load(instance, "127.0.0.1:1", True, running, waiting, tokens, busy_s)


def test_arrivals_are_a_mean_over_the_window_and_fade_out_of_it() -> None:
    meter = Meter()
    for tick in range(41):
        report(meter, tick * 0.5, total=tick * 20)
    assert meter.demand(CHAT, 20.0).arriving_tokens_per_s == pytest.approx(40.0)
    for tick in range(41, 45 + int(WINDOW_S * 2)):
        report(meter, tick * 0.5, total=800)
    assert meter.demand(CHAT, 32.0).arriving_tokens_per_s == 0.0


def test_what_a_router_counted_before_it_was_known_is_no_arrival() -> None:
    meter = Meter()
    report(meter, 0.0, total=1_000_000)
    assert meter.demand(CHAT, 0.0).arriving_tokens_per_s == 0.0
    meter.router("s", RouterReport(), 0.0)
    report(meter, 0.5, total=100, router="s")  # a service that this router has just begun to name
    assert meter.demand(CHAT, 0.5).arriving_tokens_per_s == pytest.approx(10.0)


def test_only_the_part_of_the_work_in_replicas_that_waits_there_waits() -> None:
    meter = Meter()
    meter.replica(CHAT, ONE, load(running=3, waiting=1))
    report(meter, 0.0, held_requests=2, held_tokens=50, in_flight={ONE: InFlight(4, 200)})
    demand = meter.demand(CHAT, 0.0)
    assert (demand.waiting_tokens, demand.held_requests, demand.in_flight_requests) == (100.0, 2, 4)
    assert demand.blind == ""


def test_capacity_is_measured_while_a_replica_has_more_than_it_can_take() -> None:
    meter = Meter()
    for second in range(10):  # a half-empty batch says nothing
        meter.replica(CHAT, ONE, load(running=1, tokens=5 * second, busy_s=second))
    assert meter.demand(CHAT, 0.0).capacity_tokens_per_s is None
    for second in range(5):
        meter.replica(CHAT, ONE, load(running=4, waiting=2, tokens=50 + 40 * second, busy_s=10.0 + second))
    assert meter.demand(CHAT, 0.0).capacity_tokens_per_s == pytest.approx(40.0)
    meter.replica(CHAT, ONE, load(waiting=1, tokens=0, busy_s=0.0, instance="another process"))
    assert meter.demand(CHAT, 0.0).capacity_tokens_per_s == pytest.approx(40.0)


def test_a_routers_token_is_worth_what_replicas_generate_for_it() -> None:
    """Requests of 100 tokens (prompt, and the most that may come) for which 25 are generated."""
    meter = Meter()
    for tick in range(60):
        meter.replica(CHAT, ONE, load(running=1, tokens=25 * tick, busy_s=0.5 * tick))
        report(meter, 0.5 * tick, total=100 * (tick + 1), in_flight={ONE: InFlight(1, 100)})
    assert meter.demand(CHAT, 29.5).arriving_tokens_per_s == pytest.approx(200 * 0.25, rel=0.05)


def test_requests_that_failed_do_not_make_tokens_look_worthless() -> None:
    meter = Meter()
    for tick in range(60):
        report(meter, 0.5 * tick, total=100 * tick, unanswered_tokens_total=100 * tick)
    assert meter.demand(CHAT, 29.5).arriving_tokens_per_s == pytest.approx(200.0)


def test_clients_that_give_up_do_not_hide_an_overload_and_what_was_generated_for_them_is_outweighed_later() -> None:
    """400 tokens/s arrive, 100 are generated; three of four clients leave, most of them unserved. Then all are served again."""
    meter = Meter()
    for tick in range(2000):
        meter.replica(CHAT, ONE, load(running=4, waiting=4, tokens=50 * tick, busy_s=0.5 * tick))
        report(meter, 0.5 * tick, 200 * tick, unanswered_tokens_total=150 * tick, in_flight={ONE: InFlight(8, 400)})
    assert meter.demand(CHAT, 999.5).arriving_tokens_per_s == pytest.approx(400.0, rel=0.05)
    for tick in range(2000, 4000):  # a quarter of what may be generated is
        meter.replica(CHAT, ONE, load(running=4, tokens=50 * tick, busy_s=0.5 * tick))
        report(meter, 0.5 * tick, 200 * tick, unanswered_tokens_total=300_000, in_flight={ONE: InFlight(8, 400)})
    assert meter.demand(CHAT, 1999.5).arriving_tokens_per_s == pytest.approx(100.0, rel=0.2)


def test_missing_reports_are_named() -> None:
    meter = Meter()
    assert meter.demand(CHAT, 0.0).blind == "no router reports"
    report(meter, 0.0)
    assert meter.demand(CHAT, 1.0).blind == ""
    assert meter.demand(CHAT, SILENT_S + 1).blind == "a router has fallen silent"
    report(meter, 10.0)
    report(meter, 10.0, router="s")
    meter.router_gone("s", 10.0)
    assert meter.demand(CHAT, 10.0).blind == "a router has gone a moment ago"
    meter.forget([CHAT], 10.0 + GONE_S + 1)
    report(meter, 10.0 + GONE_S + 1)
    assert meter.demand(CHAT, 10.0 + GONE_S + 1).blind == ""
    meter.router_gone("r", 80.0)
    assert meter.demand(CHAT, 80.0).blind == "no router reports"


def test_a_router_that_went_a_moment_ago_is_missing_until_it_is_back_or_given_up() -> None:
    meter = Meter()
    report(meter, 0.0)
    assert not meter.router_missing()
    meter.router_gone("r", 1.0)
    assert meter.router_missing()
    report(meter, 2.0)
    assert not meter.router_missing()
    meter.router_gone("r", 3.0)
    meter.forget([CHAT], 3.0 + GONE_S)
    assert meter.router_missing()
    meter.forget([CHAT], 3.0 + GONE_S + 1)
    assert not meter.router_missing()


def test_a_replica_that_has_requests_and_does_not_report_is_missed() -> None:
    meter = Meter()
    report(meter, 0.0, in_flight={ONE: InFlight(1, 10)})
    assert meter.demand(CHAT, 0.0).blind == f"{ONE} has requests and does not report"
