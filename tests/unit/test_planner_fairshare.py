"""Who has had how much of what they deserve."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest

from switchgear.planner.fairshare import shares
from switchgear.planner.model import Job, Node, Policy, Queue, Running, Seat, Snapshot, Task

GPU = Task(gpus=1)
HALF_LIFE_S = 3600.0
#: GPU-seconds on the books of who has always used one GPU.
STEADY_GPU_S = HALF_LIFE_S / log(2)
POLICY = Policy(half_life_s=HALF_LIFE_S)


def pending(user: str, queue: str = "") -> Job:
    return Job(f"wait-{queue}-{user}", GPU, 0.0, queue=queue, user=user)


def running(user: str, gpus: int, queue: str = "", **fields: object) -> Running:
    job = Job(f"run-{queue}-{user}", GPU, 0.0, tasks=gpus, queue=queue, user=user, **fields)  # type: ignore[arg-type]
    return Running(job, tuple(Seat("n0", (at,)) for at in range(gpus)), 0.0)


def snapshot_of(*queues: Queue) -> Snapshot:
    return Snapshot((Node("n0", 8), Node("n1", 8)), queues=queues, policy=POLICY)


def test_who_has_used_nothing_has_no_share_and_who_has_always_used_what_he_deserves_has_one() -> None:
    used = {("", "ada"): 8 * STEADY_GPU_S}
    world = replace(snapshot_of(), pending=(pending("bob"),), running=(running("ada", 8),), used_gpu_s=used)
    found = shares(world)
    assert found["", "bob"] == 0.0
    assert found["", "ada"] == pytest.approx(1.0, abs=1e-5)


def test_past_use_counts_as_it_is_on_the_books() -> None:
    def share_of(used_gpu_s: float) -> float:
        world = replace(snapshot_of(), pending=(pending("ada"),), used_gpu_s={("", "ada"): used_gpu_s})
        return shares(world)["", "ada"]

    assert share_of(1000.0) == pytest.approx(2 * share_of(500.0))


def test_what_runs_now_counts_at_once() -> None:
    world = replace(snapshot_of(), pending=(pending("ada"), pending("bob")), running=(running("ada", 1),))
    assert shares(world)["", "ada"] > shares(world)["", "bob"]


def test_a_queue_deserves_its_guarantee_and_by_weight_a_part_of_the_rest() -> None:
    world = snapshot_of(Queue("a", guaranteed=4), Queue("b", weight=2), Queue("idle", weight=50))
    world = replace(world, running=(running("ada", 8, "a"), running("bob", 8, "b")))
    found = shares(world)
    # Of the 12 that nobody is guaranteed a third goes to a, so each deserves 8; what runs now is half of what they have had.
    assert found["a", "ada"] == pytest.approx(0.5, abs=1e-5)
    assert found["b", "bob"] == pytest.approx(0.5, abs=1e-5)


def test_no_queue_deserves_more_than_its_limit() -> None:
    world = replace(snapshot_of(Queue("a", limit=2)), running=(running("ada", 2, "a"),))
    assert shares(world)["a", "ada"] == pytest.approx(0.5, abs=1e-5)


def test_a_new_user_of_a_queue_that_has_had_too_much_comes_after_others_and_before_its_old_ones() -> None:
    world = replace(
        snapshot_of(Queue("a"), Queue("b")),
        pending=(pending("new", "a"), pending("bob", "b")),
        running=(running("ada", 12, "a"), running("bob", 4, "b")),
    )
    found = shares(world)
    assert found["b", "bob"] < found["a", "new"] < found["a", "ada"]


def test_children_share_what_their_parent_deserves() -> None:
    world = snapshot_of(Queue("org"), Queue("a", "org"), Queue("b", "org"), Queue("c"))
    world = replace(world, running=(running("ada", 4, "a"), running("bob", 4, "b"), running("cyd", 8, "c")))
    assert list(shares(world).values()) == pytest.approx([0.5, 0.5, 0.5], abs=1e-5)


def test_jobs_beside_the_queues_deserve_as_much_as_a_queue_of_weight_one() -> None:
    world = replace(snapshot_of(Queue("a")), running=(running("ada", 8, "a"), running("bob", 8, "unlisted")))
    assert list(shares(world).values()) == pytest.approx([0.5, 0.5], abs=1e-5)


def test_harvesting_jobs_count_for_nobody() -> None:
    world = replace(snapshot_of(), pending=(pending("ada"),), running=(running("ada", 8, harvest=True),))
    assert shares(world) == {("", "ada"): 0.0}


def test_an_empty_cluster_has_no_shares_and_one_without_gpus_divides_nothing_by_zero() -> None:
    assert shares(Snapshot(())) == {}
    assert shares(Snapshot((), pending=(pending("ada"),))) == {("", "ada"): 0.0}
