"""Reservations, maintenance windows and spares: which nodes a job may use."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np

from switchgear.planner.fleet import Fleet
from switchgear.planner.model import Job, Near, Node, Policy, Queue, Reservation, Running, Seat, Snapshot, Task
from switchgear.planner.reservations import open_to, spared

NODES = tuple(Node(f"n{at}", 8, "H100" if at < 4 else "A100", topology=(f"l{at // 3}",)) for at in range(6))
FLEET = Fleet(NODES, ("leaf",))
QUEUES = (Queue("research"), Queue("vision", parent="research"), Queue("loop", parent="loop"))


def job(name: str = "jobs/a", queue: str = "") -> Job:
    return Job(name, Task(gpus=8), 0.0, queue=queue)


def names(reservation: Reservation, one: Job, seconds: float, now_s: float = 0.0) -> str:
    mask = open_to(FLEET, Snapshot(NODES, queues=QUEUES, reservations=(reservation,)), one, now_s, seconds)
    return " ".join(node.name for node, usable in zip(NODES, mask, strict=True) if usable)


def test_a_job_that_ends_before_a_reservation_begins_may_use_its_nodes() -> None:
    window = Reservation("reservations/upgrade", frozenset({"n0", "n1", "gone"}), 1000.0, 2000.0)
    assert names(window, job(), 1000.0) == "n0 n1 n2 n3 n4 n5"
    assert names(window, job(), 1000.1) == "n2 n3 n4 n5"
    assert names(window, job(), inf) == "n2 n3 n4 n5"
    assert names(window, job(), 1.0, now_s=1500.0) == "n2 n3 n4 n5"
    assert names(window, job(), inf, now_s=2000.0) == "n0 n1 n2 n3 n4 n5"


def test_a_reservation_is_open_to_the_jobs_and_queues_that_it_names_and_to_queues_below_them() -> None:
    kept = Reservation("reservations/r", frozenset({"n0"}), 0.0, inf, frozenset({"research"}), frozenset({"jobs/b"}))
    everywhere, outside = "n0 n1 n2 n3 n4 n5", "n1 n2 n3 n4 n5"
    assert names(kept, job(queue="vision"), 60.0) == everywhere
    assert names(kept, job(queue="research"), 60.0) == everywhere
    assert names(kept, job("jobs/b"), 60.0) == everywhere
    assert names(kept, job(), 60.0) == outside
    assert names(kept, job(queue="loop"), 60.0) == outside


def test_without_reservations_all_nodes_are_open() -> None:
    assert open_to(FLEET, Snapshot(NODES), job(), 0.0, inf).all()


def spares(count: int, fleet: Fleet = FLEET, *reservations: Reservation) -> str:
    snapshot = Snapshot(fleet.nodes, reservations=reservations, policy=Policy(spares=count))
    mask = spared(fleet, snapshot, 0.0)
    return " ".join(node.name for node, kept in zip(fleet.nodes, mask, strict=True) if kept)


def test_spares_are_of_each_model_by_its_share_of_the_nodes() -> None:
    assert spares(0) == ""
    assert spares(1) == "n3"
    assert spares(3) == "n0 n1 n4"
    assert spares(100) == "n0 n1 n2 n3 n4 n5"


def test_spares_are_first_in_the_domains_that_gangs_must_not_leave() -> None:
    nodes = tuple(Node(f"n{at}", 8, topology=(f"l{at // 4}", f"v{at // 2}")) for at in range(16))
    node = Task(gpus=8)

    def gang(name: str, *at: int, near: tuple[Near, ...]) -> Running:
        seats = tuple(Seat(f"n{one}", tuple(range(8))) for one in at)
        return Running(Job(name, node, 0.0, tasks=len(at), near=near), seats, 0.0)

    running = (
        gang("jobs/a", 4, 5, near=(Near("leaf"),)),
        gang("jobs/b", 8, 9, 10, near=(Near("leaf"),)),
        gang("jobs/c", 0, 1, 2, near=(Near("leaf", required=False),)),
        gang("jobs/d", 11, near=(Near("leaf"),)),
    )
    snapshot = Snapshot(nodes, running=running, levels=("leaf", "nvlink"), policy=Policy(spares=2))
    fleet = Fleet(nodes, snapshot.levels, running)
    # The leaf of jobs/b is full. What no gang is bound to comes from where least is left.
    assert np.flatnonzero(spared(fleet, snapshot, 0.0)).tolist() == [6, 7]
    fleet.give(Seat("n11", tuple(range(8))), node)
    assert np.flatnonzero(spared(fleet, snapshot, 0.0)).tolist() == [6, 11]
    loose = replace(snapshot, running=running[2:])
    assert np.flatnonzero(spared(Fleet(nodes, snapshot.levels, running), loose, 0.0)).tolist() == [6, 7]


def test_spares_are_empty_open_trusted_and_not_reserved() -> None:
    nodes = (
        Node("a", 8),
        Node("b", 8, closed="cordoned"),
        Node("c", 8, health=0.5),
        Node("d", 8, incident=True),
        Node("e", 8),
        Node("f", 0),
        Node("g", 8, health=0.99),
    )
    fleet = Fleet(nodes)
    fleet.take(Seat("a", (0,)), Task(gpus=1))
    assert spares(3, fleet, Reservation("r", frozenset({"e"}), 0.0, 10.0)) == "g"
    assert spares(3, fleet) == "e g"
