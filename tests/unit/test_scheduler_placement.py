"""Gangs go to the tightest nodes, all at once or not at all."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from switchgear.scheduler.placement import NotPlaced, Offer, Request, Seat, could_ever_fit, place


def test_a_gang_gets_one_seat_on_each_of_different_nodes() -> None:
    offers = [Offer("nodes/a", (0, 1)), Offer("nodes/b", (0, 1)), Offer("nodes/c", (0,))]
    assert place(Request(2, 2), offers) == (Seat("nodes/a", (0, 1)), Seat("nodes/b", (0, 1)))


def test_the_fewest_gpus_are_left_over() -> None:
    offers = [Offer("nodes/a", (0, 1, 2, 3)), Offer("nodes/b", (5, 3)), Offer("nodes/c", (0, 1, 2))]
    assert place(Request(1, 2), offers) == (Seat("nodes/b", (3, 5)),)
    assert place(Request(1, 1), offers) == (Seat("nodes/b", (3,)),)


def test_kept_seats_keep_their_rank_and_the_new_node_takes_the_free_one() -> None:
    kept = ((0, Seat("nodes/c", (4, 5))), (2, Seat("nodes/a", (0, 1))))
    offers = [Offer("nodes/a", (2, 3)), Offer("nodes/b", (0, 1)), Offer("nodes/c", ())]
    assert place(Request(3, 2, kept), offers) == (
        Seat("nodes/c", (4, 5)),
        Seat("nodes/b", (0, 1)),
        Seat("nodes/a", (0, 1)),
    )


def test_a_gang_that_may_be_smaller_gets_what_is_free_and_grows_when_more_is() -> None:
    a, b, c = (Offer(f"nodes/{name}", (0, 1)) for name in "abc")
    request = Request(3, 2, nnodes_min=2)
    assert isinstance(place(request, [a]), NotPlaced)
    assert place(request, [a, b]) == (Seat("nodes/a", (0, 1)), Seat("nodes/b", (0, 1)))
    kept = ((1, Seat("nodes/b", (0, 1))), (2, Seat("nodes/c", (0, 1))))
    assert place(Request(3, 2, kept, nnodes_min=2), []) == (kept[0][1], kept[1][1])
    grown = place(Request(3, 2, ((0, kept[0][1]),), nnodes_min=1), [a, c])
    assert grown == (Seat("nodes/b", (0, 1)), Seat("nodes/a", (0, 1)), Seat("nodes/c", (0, 1)))
    assert could_ever_fit(request, [2, 2])
    assert not could_ever_fit(request, [2])


def test_a_gang_that_does_not_fit_is_told_what_it_waits_for() -> None:
    offers = [
        Offer("nodes/a", (0, 1)),
        Offer("nodes/b", (0,)),
        Offer("nodes/c", (0, 1), "cordoned"),
        Offer("nodes/d", (0, 1), "cordoned"),
    ]
    assert place(Request(2, 2), offers) == NotPlaced(
        "waits for 2 nodes with 2 free GPUs each; 1 has them now (others: 2 cordoned, 1 with too few free GPUs)"
    )


def test_a_gang_that_keeps_seats_waits_for_more_nodes_only() -> None:
    request = Request(2, 1, ((0, Seat("nodes/a", (0,))),))
    assert place(request, [Offer("nodes/a", (1,))]) == NotPlaced(
        "waits for 1 more node with 1 free GPU each; 0 have them now"
    )


def test_what_fits_an_empty_fleet_could_fit_some_day() -> None:
    assert could_ever_fit(Request(2, 4), [8, 4, 2])
    assert not could_ever_fit(Request(3, 4), [8, 4, 2])
    assert not could_ever_fit(Request(1, 1), [])


@given(
    st.lists(st.tuples(st.sets(st.integers(0, 7)), st.booleans()), max_size=8),
    st.integers(1, 4),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_a_placement_is_whole_honest_and_the_same_in_any_order(
    fleet: list[tuple[set[int], bool]], nnodes: int, per_node: int, order: random.Random
) -> None:
    offers = [
        Offer(f"nodes/n{i}", tuple(sorted(free)), "cordoned" if shut else "") for i, (free, shut) in enumerate(fleet)
    ]
    seats = place(Request(nnodes, per_node), offers)
    usable = {o.node: set(o.free_gpu_indices) for o in offers if not o.obstacle and len(o.free_gpu_indices) >= per_node}
    shuffled = list(offers)
    order.shuffle(shuffled)
    assert place(Request(nnodes, per_node), shuffled) == seats
    if isinstance(seats, NotPlaced):
        assert len(usable) < nnodes
    else:
        assert len({seat.node for seat in seats}) == nnodes
        assert all(len(seat.gpu_indices) == per_node for seat in seats)
        assert all(set(seat.gpu_indices) <= usable[seat.node] for seat in seats)
