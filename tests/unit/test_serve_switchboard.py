from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from switchgear.core.errors import NotFound, Unavailable
from switchgear.serve.switchboard import Limits, Route, ServiceRoutes, Switchboard, Ticket

CHAT = "inferenceServices/chat"


def table(*replicas: str, draining: str = "") -> dict[str, ServiceRoutes]:
    routes = [Route(name, f"127.0.0.1:{ord(name)}", name == draining) for name in replicas]
    return {CHAT: ServiceRoutes(5.0, routes)}


def arrive(board: Switchboard, tokens: int = 10, size_bytes: int = 100, now_s: float = 0.0) -> Ticket:
    return board.arrive(CHAT, input_tokens=0, tokens=tokens, size_bytes=size_bytes, now_s=now_s)


def where(ticket: Ticket) -> str | None:
    return ticket.replica.name if ticket.replica else None


def board(*replicas: str, limits: Limits | None = None) -> Switchboard:
    made = Switchboard(limits or Limits())
    made.apply(table(*replicas))
    return made


def test_a_request_is_held_without_a_replica_and_goes_to_the_first_that_comes() -> None:
    routes = board()
    tickets = [arrive(routes) for _ in range(3)]
    assert routes.dispatch(CHAT, 0.0) == []
    routes.apply(table("a"))
    assert routes.dispatch(CHAT, 1.0) == tickets
    assert [where(ticket) for ticket in tickets] == ["a", "a", "a"]


def test_before_the_first_table_a_request_to_anything_is_held_and_then_refused_when_there_is_no_such_service() -> None:
    routes = Switchboard(Limits())
    chat, other = (
        arrive(routes),
        routes.arrive("inferenceServices/other", input_tokens=0, tokens=1, size_bytes=1, now_s=0.0),
    )
    routes.apply(table("a"))
    assert routes.strangers() == [other]
    routes.close(other)
    assert (routes.dispatch(CHAT, 0.0), list(routes.services)) == ([chat], [CHAT])
    with pytest.raises(NotFound, match="no inference service 'other'"):
        routes.arrive("inferenceServices/other", input_tokens=0, tokens=1, size_bytes=1, now_s=0.0)


def test_a_request_goes_where_the_fewest_tokens_are_in_flight() -> None:
    routes = board("a", "b")
    tickets = [arrive(routes, tokens) for tokens in (100, 10, 10, 200, 10)]
    routes.dispatch(CHAT, 0.0)
    assert [where(ticket) for ticket in tickets] == ["a", "b", "b", "b", "a"]


def test_a_draining_replica_keeps_what_it_has_and_gets_nothing_new() -> None:
    routes = board("a", "b")
    first = arrive(routes, tokens=1)
    routes.dispatch(CHAT, 0.0)
    routes.apply(table("a", "b", draining="a"))
    second = arrive(routes)
    routes.dispatch(CHAT, 0.0)
    assert (where(first), where(second)) == ("a", "b")
    assert routes.services[CHAT].replicas["a"].in_flight == 1


def test_a_replica_that_left_the_table_is_known_until_its_last_request_is_closed() -> None:
    routes = board("a")
    ticket = arrive(routes)
    routes.dispatch(CHAT, 0.0)
    routes.apply({})
    assert routes.services[CHAT].replicas["a"].in_flight == 1
    routes.close(ticket)
    assert dict(routes.services) == {}


def test_a_request_that_broke_off_stands_in_front_of_younger_ones_and_its_replica_rests() -> None:
    limits = Limits(in_flight_per_replica=1, aside_s=0.5)
    routes = board("a", limits=limits)
    old, young = arrive(routes), arrive(routes)
    assert routes.dispatch(CHAT, 0.0) == [old]
    routes.send_back(old, 1.0)
    assert (routes.dispatch(CHAT, 1.0), routes.wake_s(CHAT, 1.0)) == ([], 1.5)
    assert routes.dispatch(CHAT, 1.5) == [old]
    assert where(young) is None


def test_the_time_that_a_request_was_at_work_is_not_taken_from_its_time_to_wait() -> None:
    routes = board(limits=Limits(hold_s=10))
    ticket = arrive(routes, now_s=0.0)
    routes.apply(table("a"))
    routes.dispatch(CHAT, 4.0)
    routes.send_back(ticket, 100.0)
    assert ticket.deadline_s == 106.0
    routes.dispatch(CHAT, 101.0)
    routes.send_back(ticket, 111.0)
    assert ticket.deadline_s == 116.0


def test_a_request_of_a_service_that_was_deleted_can_be_sent_back_and_closed() -> None:
    routes = board("a")
    ticket = arrive(routes)
    routes.dispatch(CHAT, 0.0)
    routes.apply({})
    routes.send_back(ticket, 0.0)
    assert routes.strangers() == [ticket]
    routes.close(ticket)
    assert dict(routes.services) == {}


def test_too_many_or_too_large_requests_are_refused() -> None:
    routes = board(limits=Limits(held_requests=2))
    for _ in range(2):
        arrive(routes)
    with pytest.raises(Unavailable, match="2 requests wait"):
        arrive(routes)
    routes = board(limits=Limits(held_bytes=150))
    arrive(routes, size_bytes=100)
    with pytest.raises(Unavailable):
        arrive(routes, size_bytes=51)


def test_requests_that_nobody_answers_are_counted_with_their_tokens() -> None:
    routes = board(limits=Limits(held_requests=2))
    answered, given_up = arrive(routes, tokens=1), arrive(routes, tokens=2)
    with pytest.raises(Unavailable):
        arrive(routes, tokens=4)
    routes.close(answered)
    routes.close(given_up, answered=False)
    chat = routes.services[CHAT]
    assert (chat.requests_total, chat.tokens_total) == (3, 7)
    assert (chat.failed_total, chat.unanswered_tokens_total) == (1, 2 + 4)


def test_names_of_which_no_table_speaks_yet_are_not_collected_by_refusing_them() -> None:
    routes = Switchboard(Limits(held_requests=0))
    with pytest.raises(Unavailable):
        arrive(routes)
    assert dict(routes.services) == {}


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("arrive"), st.integers(1, 50)),
            st.tuples(st.just("close"), st.integers(0, 9)),
            st.tuples(st.just("back"), st.integers(0, 9)),
            st.tuples(st.just("table"), st.integers(0, 7)),
            st.tuples(st.just("gone"), st.just(0)),
        ),
        max_size=60,
    )
)
def test_the_counts_of_every_replica_equal_what_is_there_whatever_happens(steps: list[tuple[str, int]]) -> None:
    limits = Limits(in_flight_per_replica=2, held_requests=5, aside_s=1.0)
    routes = board("a", limits=limits)
    open_tickets = list[Ticket]()
    for now_s, (what, number) in enumerate(steps):
        picked = open_tickets[number % len(open_tickets)] if open_tickets else None
        match what:
            case "arrive":
                try:
                    open_tickets.append(arrive(routes, tokens=number, now_s=now_s))
                except (NotFound, Unavailable):
                    pass
            case "close" if picked:
                open_tickets.remove(picked)
                routes.close(picked)
            case "back" if picked and picked.replica:
                routes.send_back(picked, now_s)
            case "table":
                routes.apply(table(*(name for bit, name in enumerate("abc") if number >> bit & 1)))
            case "gone":
                routes.apply({})
        routes.dispatch(CHAT, now_s)
        known = routes.services[CHAT].replicas.values() if CHAT in routes.services else ()
        for replica in known:
            mine = [ticket for ticket in open_tickets if ticket.replica is replica]
            assert (replica.in_flight, replica.in_flight_tokens) == (len(mine), sum(ticket.tokens for ticket in mine))
            assert replica.in_flight <= limits.in_flight_per_replica
        held = [ticket for ticket in open_tickets if ticket.replica is None]
        assert held == (routes.services[CHAT].held if CHAT in routes.services else [])
    for ticket in open_tickets:
        routes.close(ticket)
    routes.apply({})
    assert dict(routes.services) == {}
