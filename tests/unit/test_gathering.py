"""Which nodes make up a job without a scheduler."""

from __future__ import annotations

from dataclasses import replace

import pytest

from switchgear.cli.gathering import Gathering, Member
from switchgear.core.errors import FailedPrecondition

A, B, C = (Member(f"nodes/{name}", f"10.0.0.{i}") for i, name in enumerate("abc", 1))


def gathered(fewest: int, most: int, *members: Member, last_call_s: float = 30) -> Gathering:
    gathering = Gathering(fewest, most, last_call_s)
    for member in members:
        gathering.join(member, 0)
    return gathering


def test_a_job_is_placed_when_all_its_nodes_have_come_in_their_order() -> None:
    gathering = gathered(2, 2, A)
    assert (gathering.place(1000), gathering.joined) == (None, 1)
    gathering.join(B, 1000)
    assert gathering.place(1000) == [A, B]
    assert gathering.settled
    assert gathering.place(1001) is None


def test_enough_nodes_wait_for_more_until_the_last_call_is_over() -> None:
    gathering = gathered(2, 3, A)
    gathering.join(B, 10)
    assert gathering.place(39.9) is None
    assert gathering.place(40) == [A, B]


def test_a_job_shrinks_after_the_last_call_and_grows_when_recovery_asks_for_those_who_came() -> None:
    gathering = gathered(1, 2, A, B)
    gathering.place(0)
    gathering.give_up([A.node], 100)
    assert gathering.place(129) is None
    assert gathering.place(130) == [B]
    gathering.join(C, 140)
    assert gathering.place(1000) is None
    gathering.give_up([], 1000)
    assert gathering.place(1000) == [B, C]


def test_nobody_is_waited_for_when_recovery_only_asks_who_has_come() -> None:
    gathering = gathered(1, 3, A, last_call_s=5)
    assert gathering.place(5) == [A]
    gathering.give_up([], 6)
    assert gathering.place(6) == [A]


def test_a_node_that_leaves_during_the_last_call_stops_it() -> None:
    gathering = gathered(2, 3, A, B)
    gathering.leave(B.node)
    assert gathering.place(100) is None
    gathering.join(B, 100)
    assert gathering.place(129) is None
    assert gathering.place(130) == [A, B]


def test_nodes_have_the_ranks_that_they_must_have() -> None:
    first, second = Member("nodes/a", "10.0.0.1", 1), Member("nodes/b", "10.0.0.2", 0)
    assert gathered(2, 2, first, second).place(0) == [second, first]
    assert gathered(3, 3, A, Member("nodes/b", "10.0.0.2", 0), C).place(0) == [Member("nodes/b", "10.0.0.2", 0), A, C]


def test_a_spare_takes_the_place_that_was_given_up_and_its_rank() -> None:
    gathering = gathered(2, 2, A, B)
    gathering.place(0)
    gathering.join(C, 1)
    assert (gathering.has_spare(), gathering.place(1)) == (True, None)
    gathering.give_up([A.node], 2)
    assert gathering.place(2) == [C, B]
    assert not gathering.has_spare()


def test_a_place_that_was_given_up_stays_empty_until_somebody_comes() -> None:
    gathering = gathered(2, 2, A, B)
    gathering.place(0)
    gathering.give_up([B.node], 1)
    assert (gathering.settled, gathering.place(100)) == (False, None)
    gathering.join(B, 100)
    assert gathering.place(100) == [A, B]


def test_a_node_that_was_started_again_has_its_place_still() -> None:
    gathering = gathered(2, 2, A, B)
    gathering.place(0)
    gathering.leave(B.node)
    gathering.join(B, 5)
    assert gathering.has_place(B.node)
    assert gathering.place(5) is None


@pytest.mark.parametrize(
    ("member", "remedy"),
    [
        (Member("nodes/a", "10.0.0.9"), "give each node its --node-rank"),
        (Member("nodes/z", "10.0.0.9", 1), "is the place of nodes/r"),
        (Member("nodes/z", "10.0.0.9", 2), "count from 0"),
    ],
)
def test_a_node_that_cannot_have_its_name_or_rank_is_told_why(member: Member, remedy: str) -> None:
    gathering = gathered(2, 2, A, Member("nodes/r", "10.0.0.8", 1))
    with pytest.raises(FailedPrecondition, match=remedy):
        gathering.join(member, 0)


def again(*members: Member, fewest: int = 2, generation: int = 0) -> Gathering:
    """The run that keeps a job together was started again, at 0 s; leases are over at 35 s."""
    gathering = Gathering(fewest, 2, 1.0, generation=generation, quiet_s=35.0)
    for member in members:
        gathering.join(member, 0)
    return gathering


def test_a_spare_does_not_take_the_place_of_a_node_whose_ranks_may_still_run() -> None:
    gathering = again(replace(A, generation=3), C)
    assert (gathering.place(34.9), gathering.holds_back(34.9), gathering.newest) == (None, True, 3)
    gathering.join(replace(B, generation=3), 34.9)
    assert [member.node for member in gathering.place(34.9) or ()] == [A.node, B.node]


def test_when_leases_are_over_anybody_is_placed_but_nodes_of_the_newest_generation_first() -> None:
    assert again(replace(A, generation=3), C).place(35) == [replace(A, generation=3), C]
    assert again(C, replace(B, generation=2), replace(A, generation=3)).place(35) == [
        replace(A, generation=3),
        replace(B, generation=2),
    ]


def test_a_job_does_not_shrink_while_ranks_of_it_may_run_on_the_node_that_is_missing() -> None:
    gathering = again(replace(A, generation=3), fewest=1)
    assert (gathering.place(34.9), gathering.place(35)) == (None, [replace(A, generation=3)])


def test_the_generation_of_the_machine_that_keeps_the_job_together_counts_before_its_node_has_come() -> None:
    gathering = again(B, C, generation=3)
    assert (gathering.place(34.9), gathering.place(35)) == (None, [B, C])


def test_a_member_that_has_left_again_may_run_the_newest_generation() -> None:
    gathering = again(replace(A, generation=2), replace(B, generation=2), replace(C, generation=3))
    gathering.leave(C.node)
    assert (gathering.place(1), gathering.newest) == (None, 3)


def test_a_job_that_never_ran_waits_for_no_lease() -> None:
    gathering = again(A, B)
    assert (gathering.holds_back(0), gathering.place(0)) == (False, [A, B])


def test_nodes_without_a_rank_leave_the_places_for_a_while_to_those_that_have_one() -> None:
    first, second = replace(A, node_rank=0), replace(B, node_rank=1)
    gathering = Gathering(1, 2, 30, order_s=10)
    for member in (C, first):
        gathering.join(member, 100)
    assert gathering.place(109) is None
    gathering.join(second, 109)
    assert gathering.place(109) == [first, second]
    without_the_second = Gathering(1, 2, 30, order_s=10)
    for member in (C, first):
        without_the_second.join(member, 100)
    assert without_the_second.place(110) == [first, C]


def test_when_no_other_node_can_come_the_job_shrinks_at_once() -> None:
    gathering = gathered(1, 2, A, B)
    gathering.place(0)
    gathering.give_up([B.node], 50, waits=False)
    assert gathering.place(50) == [A]


def test_once_it_is_known_that_nothing_runs_elsewhere_no_lease_is_waited_for() -> None:
    gathering = again(replace(A, generation=3), C)
    assert gathering.place(1) is None
    gathering.nothing_else_runs()
    assert gathering.place(1) == [replace(A, generation=3), C]


def test_spares_are_bounded() -> None:
    gathering = gathered(1, 1, *(Member(f"nodes/n{i}", f"10.0.1.{i}") for i in range(65)))
    with pytest.raises(FailedPrecondition, match="are here already"):
        gathering.join(A, 0)
