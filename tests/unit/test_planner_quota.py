"""Queues as a tree, and what they may have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from switchgear.core.errors import Invalid
from switchgear.planner.model import Cause, Job, Node, Preempt, Queue, Running, Seat, Snapshot, Task
from switchgear.planner.quota import Ledger, Tree

GPU = Task(gpus=1)


def job(name: str, queue: str = "", gpus: int = 1, **fields: object) -> Job:
    return Job(name, Task(gpus=gpus), 0.0, queue=queue, **fields)  # type: ignore[arg-type]


def running(name: str, queue: str = "", gpus: int = 1, **fields: object) -> Running:
    return Running(job(name, queue, gpus, **fields), (Seat("n0", tuple(range(gpus))),), 0.0)


def snapshot_of(*queues: Queue, running: tuple[Running, ...] = (), gpus: int = 16) -> Snapshot:
    return Snapshot(tuple(Node(f"n{at}", 8) for at in range(gpus // 8)), (), running, queues)


def test_a_parent_is_guaranteed_at_least_what_its_children_are() -> None:
    tree = Tree((Queue("a", guaranteed=4), Queue("b", "a", guaranteed=6), Queue("c", "a", guaranteed=3)))
    assert tree.guaranteed.tolist() == [0, 9, 6, 3]


def test_children_may_be_listed_before_their_parents() -> None:
    tree = Tree((Queue("b", "a", guaranteed=6), Queue("a", limit=9)))
    assert tree.path(1).tolist() == [0, 2, 1]
    assert tree.guaranteed.tolist() == [0, 6, 6]


def test_the_parting_of_two_queues_is_the_last_that_they_share() -> None:
    tree = Tree((Queue("a"), Queue("b", "a"), Queue("c", "a"), Queue("d")))
    assert tree.parting(2).tolist() == [0, 1, 2, 1, 0]


@pytest.mark.parametrize(
    ("queues", "remedy"),
    [
        ((Queue("a", "b"),), "create it"),
        ((Queue("a", "b"), Queue("b", "a")), "name another parent"),
        ((Queue("a", "a"),), "name another parent"),
        ((Queue("a"), Queue("a")), "give it another"),
        ((Queue(""),), "give it one"),
        ((Queue("a", guaranteed=-1),), "0 <= guaranteed"),
        ((Queue("a", guaranteed=9, limit=8),), "guaranteed <= limit"),
        ((Queue("a", weight=0),), "more than 0"),
    ],
)
def test_queues_that_make_no_sense_are_refused_with_what_to_mend(queues: tuple[Queue, ...], remedy: str) -> None:
    with pytest.raises(Invalid, match=remedy):
        Tree(queues)


def test_no_queue_on_the_way_up_goes_above_its_limit() -> None:
    ledger = Ledger(snapshot_of(Queue("a", limit=4), Queue("b", "a"), running=(running("x", "a", 3),)))
    assert ledger.admits(job("y", "b"), 1) is None
    refused = ledger.admits(job("y", "b", 2), 2)
    assert refused is not None
    assert refused.cause is Cause.QUOTA
    assert refused.text == "queue a has 3 of the 4 GPUs that it may have; this job asks for 2, 1 too many"


def test_a_job_that_is_larger_than_the_limit_is_told_so() -> None:
    refused = Ledger(snapshot_of(Queue("a", limit=4))).admits(job("y", "a", 8), 8)
    assert refused is not None
    assert refused.text == "queue a may have 4 GPUs at most; this job asks for 8"


def test_a_queue_that_is_not_listed_is_the_root_and_has_no_limit() -> None:
    ledger = Ledger(snapshot_of(Queue("a", limit=1)))
    ledger.charge(job("x", "unknown"), 9)
    assert ledger.admits(job("y", "other"), 100) is None
    assert ledger.used.tolist() == [9, 0]


def test_what_a_queue_does_not_lend_is_for_nobody_else() -> None:
    ledger = Ledger(snapshot_of(Queue("a", guaranteed=10, lends=False), running=(running("x", "", 2),)))
    assert ledger.admits(job("y", "b"), 4) is None
    refused = ledger.admits(job("y", "b"), 5)
    assert refused is not None
    assert refused.text == "14 GPUs are free, of which 10 are kept by queues that do not lend; this job asks for 5"
    assert ledger.admits(job("h", "b", harvest=True), 5) is not None
    assert ledger.admits(job("z", "a"), 14) is None
    ledger.charge(job("z", "a"), 8)
    assert ledger.admits(job("y", "b"), 4) is None
    assert ledger.admits(job("y", "b"), 5) is not None


def test_what_a_parent_does_not_lend_is_for_all_its_children() -> None:
    queues = Queue("org", guaranteed=12, lends=False), Queue("a", "org", guaranteed=2), Queue("b", "org")
    ledger = Ledger(snapshot_of(*queues))
    assert ledger.admits(job("x", "b"), 12) is None
    assert ledger.admits(job("x", "c"), 5) is not None
    ledger.charge(job("x", "b"), 12)
    assert ledger.admits(job("y", "c"), 4) is None


def test_when_nodes_are_lost_a_queue_still_takes_what_was_kept_for_it() -> None:
    snapshot = snapshot_of(Queue("a", guaranteed=12, lends=False), running=(running("x", "b", 4),))
    lost = replace(snapshot, nodes=(snapshot.nodes[0], replace(snapshot.nodes[1], closed="gone")))
    ledger = Ledger(lost)
    assert ledger.capacity == 8
    assert ledger.admits(job("y", "a"), 4) is None
    assert ledger.admits(job("y", "b"), 1) is not None


def test_a_harvesting_job_counts_in_no_quota() -> None:
    ledger = Ledger(snapshot_of(Queue("a", limit=4), running=(running("h", "a", 8, harvest=True),)))
    assert ledger.used.tolist() == [0, 0]
    assert ledger.admits(job("x", "a", 4), 4) is None


def test_a_charge_says_what_a_job_has_and_a_release_what_it_has_no_more() -> None:
    ledger = Ledger(snapshot_of(Queue("a", guaranteed=2, limit=8)))
    x = job("x", "a")
    ledger.charge(x, 3)
    ledger.charge(x, 5)
    assert (ledger.charged(x), ledger.borrowed("a")) == (5, 3)
    assert ledger.admits(x, 8) is None, "of the 8 it has 5"
    ledger.release(x, 2)
    assert (ledger.charged(x), ledger.borrowed("a")) == (3, 1)
    ledger.release(x, 3)
    assert (ledger.charged(x), ledger.borrowed("a"), len(ledger.charges)) == (0, 0, 0)


def test_a_copy_is_tried_on_without_a_change_to_the_ledger() -> None:
    ledger = Ledger(snapshot_of(Queue("a")))
    copy = ledger.copy()
    copy.charge(job("x", "a"), 3)
    copy.promise(job("y", "a"), 1, [Preempt("x", "y", 0.0, 0.0)])
    assert (ledger.used.tolist(), ledger.leaving, dict(ledger.charges)) == ([0, 0], {}, {})
    assert copy.used.tolist() == [1, 1]


def test_one_that_leaves_has_nothing_any_more_and_the_job_for_which_it_does_has() -> None:
    snapshot = snapshot_of(Queue("a", limit=8), Queue("b"), running=(running("x", "b", 8),))
    x = replace(snapshot.running[0], leaving=True, leaving_for="y")
    ledger = Ledger(replace(snapshot, running=(x,), pending=(job("y", "a", 8), job("z", "a"))))
    assert ledger.used.tolist() == [8, 8, 0]
    assert ledger.admits(job("y", "a"), 8) is None, "it has them already"
    assert ledger.admits(job("z", "a"), 1) is not None


def test_seats_that_a_waiting_job_keeps_are_charged() -> None:
    kept = replace(job("y", "a", 2), tasks=3, kept=((0, Seat("n0", (0, 1))), (1, Seat("n1", (0, 1)))))
    ledger = Ledger(replace(snapshot_of(Queue("a", limit=6)), pending=(kept,)))
    assert ledger.charged(kept) == 4
    assert ledger.admits(kept, 6) is None


def test_sums_of_shares_are_not_refused_for_their_rounding() -> None:
    ledger = Ledger(snapshot_of(Queue("a", limit=1)))
    for at in range(9):
        ledger.charge(Job(f"j{at}", Task(gpu_milli=100), 0.0, queue="a"), 0.1)
    assert ledger.admits(Job("last", Task(gpu_milli=100), 0.0, queue="a"), 0.1) is None
