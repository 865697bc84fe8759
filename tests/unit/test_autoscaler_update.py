"""A rolling update, replica by replica, on a cluster with few GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from switchgear.autoscaler.model import JobEnd, JobView, Load, ReplicaRecord, ReplicaState, ServiceRecord, ServiceSpec
from switchgear.autoscaler.model import World as Seen
from switchgear.autoscaler.replicas import effects, reconcile
from switchgear.autoscaler.update import SURGE_PATIENCE_S

CHAT = "inferenceServices/chat"
S = 1_000_000_000
READY = ReplicaState.READY


class Cluster:
    """Jobs of one service on `gpus` GPUs, a second a turn: a replica answers 5 s after it got its GPU, and drains for 3 s."""

    def __init__(self, gpus: int, desired: int, spec: ServiceSpec | None = None) -> None:
        spec = spec or ServiceSpec(("new.py",), "/w", max_replicas=9)
        self.gpus, self.now_s = gpus, 1000
        self.service = ServiceRecord(CHAT, spec, 0, desired)
        self.replicas: dict[str, ReplicaRecord] = {}
        self.jobs: dict[str, JobView] = {}
        #: Of other services; they get no GPU here.
        self.held: dict[str, JobView] = {}
        #: When the job of a replica got its GPU.
        self.placed_s: dict[str, int] = {}
        #: What jobs wait for.
        self.cause = "GPUS"
        #: Whether what the new specification says ever answers.
        self.works = True

    def turn(self) -> None:
        self.now_s += 1
        loads = {
            one.name: Load("i", "h:1", ready=True)
            for one in self.replicas.values()
            if not one.ended and self.answers(one)
        }
        seen = Seen(self.now_s * S, self.jobs | self.held, loads=loads)
        plan = reconcile(self.service, list(self.replicas.values()), seen)
        self.service = plan.service
        self.replicas |= {one.name: one for one in plan.replicas}
        for one in effects(self.service, self.replicas.values(), seen).create:
            self.jobs[one.job] = JobView(one.name, cause=self.cause, create_time_unix_ns=self.now_s * S)
        for one in self.replicas.values():
            drained = one.drain_time_unix_ns is not None and (
                one.ready_time_unix_ns is None or self.now_s * S - one.drain_time_unix_ns >= 3 * S
            )
            if drained and one.job in self.jobs:
                self.jobs[one.job] = replace(self.jobs[one.job], end=JobEnd.CANCELLED)
        for name, job in self.jobs.items():
            if job.end is None and not job.node and self.used < self.gpus:
                self.jobs[name] = replace(job, node="nodes/a")
                self.placed_s[job.replica] = self.now_s

    @property
    def used(self) -> int:
        return sum(bool(job.node) and job.end is None for job in self.jobs.values())

    def answers(self, one: ReplicaRecord) -> bool:
        started_s = self.placed_s.get(one.name)
        works = self.works or one.number <= self.service.outdated_number
        return started_s is not None and self.now_s - started_s >= 5 and works

    def ready(self) -> list[int]:
        return [one.number for one in self.replicas.values() if one.state is READY]

    def until_ready(self, numbers: list[int], within: int = 200) -> Iterator[int]:
        """How many answer, turn by turn, until those do and no other exists."""
        for _ in range(within):
            self.turn()
            yield len(self.ready())
            if self.ready() == numbers and self.used == len(numbers):
                return
        raise AssertionError(f"{self.ready()} answer, {self.used} GPUs are used: {self.service.hindrance}")

    def update(self) -> None:
        self.service = replace(self.service, outdated_number=self.service.last_number)


def running(gpus: int, desired: int, spec: ServiceSpec | None = None) -> Cluster:
    cluster = Cluster(gpus, desired, spec)
    list(cluster.until_ready(list(range(1, desired + 1))))
    return cluster


def test_with_a_gpu_to_spare_never_fewer_than_desired_answer() -> None:
    cluster = running(4, 3)
    cluster.update()
    assert min(cluster.until_ready([4, 5, 6])) == 3


def test_without_a_gpu_to_spare_the_extra_one_is_given_up_and_one_fewer_answers_meanwhile() -> None:
    cluster = running(3, 3)
    cluster.update()
    answer = list(cluster.until_ready([4, 5, 6]))
    assert min(answer) == 2
    assert answer.index(2) >= SURGE_PATIENCE_S - 1


@pytest.mark.parametrize("desired", [1, 3])
def test_a_budget_without_room_for_one_more_is_kept_from_the_start(desired: int) -> None:
    spec = ServiceSpec(("new.py",), "/w", max_replicas=9, gpus_per_replica=1, gpu_budget=desired)
    cluster = running(8, desired, spec)
    cluster.update()
    used = []
    for answer in cluster.until_ready([desired + number for number in range(1, desired + 1)]):
        used.append(cluster.used)
        assert answer >= desired - 1
    assert max(used) <= desired


def test_what_does_not_come_to_answer_leaves_the_old_ones_serving() -> None:
    cluster = running(3, 2)
    cluster.works = False
    cluster.update()
    for _ in range(120):
        cluster.turn()
    assert cluster.ready() == [1, 2]
    cluster.works = True
    cluster.update()  # the remedy: another update, to what works
    assert min(cluster.until_ready([4, 5])) == 2


@pytest.mark.parametrize("cause", ["IMPOSSIBLE", "NODES_CLOSED", "PREEMPTING", ""])
def test_no_old_one_makes_room_where_that_would_not_help(cause: str) -> None:
    cluster = running(1, 1)
    cluster.cause, cluster.gpus = cause, 1
    cluster.update()
    for _ in range(100):
        cluster.turn()
    assert cluster.ready() == [1]


@pytest.mark.parametrize(
    ("queue", "priority", "made_s", "goes_on"),
    [("", 0, 1, False), ("", 5, 9999, False), ("", 0, 9999, True), ("", -1, 1, True), ("queues/b", 9, 1, True)],
)
@pytest.mark.parametrize("budget", [None, 1])
def test_no_old_one_makes_room_for_another_service_that_waits_before_it(
    budget: int | None, queue: str, priority: int, made_s: int, goes_on: bool
) -> None:
    spec = ServiceSpec(("new.py",), "/w", max_replicas=9, gpus_per_replica=1, gpu_budget=budget)
    cluster = running(1, 1, spec)
    cluster.update()
    other = JobView(
        "inferenceServices/code/replicas/1",
        cause="GPUS",
        queue=queue,
        priority=priority,
        create_time_unix_ns=made_s * S,
    )
    cluster.held["jobs/code-r1"] = other
    for _ in range(100):
        cluster.turn()
    assert cluster.ready() == ([2] if goes_on else [1])
    cluster.held.clear()
    list(cluster.until_ready([2]))


def test_fewer_that_are_desired_meanwhile_take_old_ones_away_first() -> None:
    cluster = running(4, 3)
    cluster.update()
    for _ in range(3):
        cluster.turn()
    cluster.service = replace(cluster.service, desired=1)
    answers = list(cluster.until_ready([4]))
    assert min(answers) == 1
    assert cluster.service.last_number == 4


def test_none_desired_ends_them_all() -> None:
    cluster = running(4, 2)
    cluster.update()
    cluster.service = replace(cluster.service, desired=0)
    assert list(cluster.until_ready([]))[-1] == 0


def test_a_lowered_maximum_takes_back_replicas_that_wait_for_a_gpu() -> None:
    cluster = running(2, 2)
    cluster.service = replace(cluster.service, desired=4)
    for _ in range(40):
        cluster.turn()
    assert sum(one.state is ReplicaState.REQUESTED for one in cluster.replicas.values()) == 2
    cluster.service = replace(cluster.service, desired=2)
    list(cluster.until_ready([1, 2]))
    assert {job.end for job in cluster.jobs.values() if not job.node} == {JobEnd.CANCELLED}
