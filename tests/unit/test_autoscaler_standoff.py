"""Who waits for whom, and what would end it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from switchgear.autoscaler.model import JobView, ReplicaRecord, ReplicaState, ServiceRecord, ServiceSpec, World
from switchgear.autoscaler.standoff import Kind, Standoff, standoffs

S = 1_000_000_000
NOW = 1000 * S
WAITS, READY, DRAINS = ReplicaState.REQUESTED, ReplicaState.READY, ReplicaState.DRAINING
QUOTA = "queue research has 4 of the 4 GPUs that it may have; this job asks for 1, 1 too many"


class Cluster:
    def __init__(self) -> None:
        self.services: list[ServiceRecord] = []
        self.replicas: dict[str, list[ReplicaRecord]] = {}
        self.jobs: dict[str, JobView] = {}

    def service(self, name: str, *, outdated: int = 0, **spec: object) -> None:
        given = ServiceSpec(("serve.py",), "/w", **{"max_replicas": 9, "queue": "queues/research", **spec})  # type: ignore[arg-type]
        self.services.append(ServiceRecord(f"inferenceServices/{name}", given, 0, 2, outdated_number=outdated))
        self.replicas[f"inferenceServices/{name}"] = []

    def has(
        self, name: str, number: int, state: ReplicaState, *, cause: str = "", text: str = "", age_s: int = 60
    ) -> None:
        service, job = f"inferenceServices/{name}", f"jobs/{name}-r{number}"
        one = ReplicaRecord(service, number, f"{service}/replicas/{number}", job, NOW - age_s * S, state)
        self.replicas[service].append(one)
        placed = state is not WAITS
        self.jobs[job] = JobView(one.name, None, text or cause, "nodes/a" * placed, cause, int(placed))

    def found(self, name: str = "chat") -> list[Standoff]:
        seen = standoffs(self.services, self.replicas, World(NOW, self.jobs))
        later = standoffs(self.services, self.replicas, World(NOW + 500 * S, self.jobs))
        for service, those in seen.items():
            assert later[service] == those  # nothing of it is written anew as time passes
        return list(seen.get(f"inferenceServices/{name}", ()))

    def kinds(self, name: str = "chat") -> list[Kind]:
        return [one.kind for one in self.found(name)]


def test_what_waits_for_a_moment_or_for_a_gpu_of_the_cluster_is_no_standoff() -> None:
    cluster = Cluster()
    cluster.service("chat")
    cluster.has("chat", 1, READY)
    cluster.has("chat", 2, WAITS, cause="GPUS")
    cluster.service("code")
    cluster.has("code", 1, WAITS, cause="PREEMPTING")
    assert cluster.found() == cluster.found("code") == []
    young = Cluster()
    young.service("chat")
    young.has("chat", 1, WAITS, cause="QUOTA", age_s=14)
    assert standoffs(young.services, young.replicas, World(NOW, young.jobs)) == {}


def test_an_update_that_wants_one_gpu_more_than_its_queue_may_have_is_named_and_will_be_broken() -> None:
    cluster = Cluster()
    cluster.service("chat", outdated=2)
    cluster.has("chat", 1, READY)
    cluster.has("chat", 2, READY)
    cluster.has("chat", 3, WAITS, cause="QUOTA", text=QUOTA)
    (one,) = cluster.found()
    assert one.kind is Kind.SURGE
    assert one.text == (
        f"replica 3 of the update waits for a GPU, and what is to be replaced (2 left) waits until it answers: {QUOTA}"
    )
    assert one.remedy == "make room for 1 GPU more while the update lasts"
    assert one.action.startswith("gives up the extra replica after 30 s")


def test_an_update_whose_gpu_would_go_to_another_service_says_that_it_keeps_what_it_has() -> None:
    cluster = Cluster()
    cluster.service("chat", outdated=1)
    cluster.has("chat", 1, READY)
    cluster.has("chat", 2, WAITS, cause="GPUS")
    cluster.service("code")
    cluster.has("code", 7, WAITS, cause="GPUS")
    cluster.jobs["jobs/chat-r2"] = replace(cluster.jobs["jobs/chat-r2"], queue="queues/research", create_time_unix_ns=2)
    cluster.jobs["jobs/code-r7"] = replace(cluster.jobs["jobs/code-r7"], queue="queues/research", create_time_unix_ns=1)
    (one,) = cluster.found()
    assert one.action.startswith("keeps the old ones while inferenceServices/code/replicas/7 waits before it")


@pytest.mark.parametrize(("cause", "queue", "waits"), [("QUOTA", "queues/research", True), ("QUOTA", "queues/b", False), ("GPUS", "queues/b", True)])  # fmt: skip
def test_updates_that_wait_for_each_others_gpus_are_one_standoff_of_both(cause: str, queue: str, waits: bool) -> None:
    cluster = Cluster()
    for name, of in (("chat", "queues/research"), ("code", queue)):
        cluster.service(name, outdated=1, queue=of)
        cluster.has(name, 1, READY)
        cluster.has(name, 2, WAITS, cause=cause)
    assert cluster.kinds() == cluster.kinds("code") == [Kind.SURGES if waits else Kind.SURGE]
    if waits:
        assert "the updates of chat and code wait for GPUs that their old replicas have" in cluster.found()[0].text
        assert "the updates of code and chat" in cluster.found("code")[0].text


def test_a_replica_that_waits_for_a_gpu_that_only_a_drain_of_its_service_frees_is_told_so() -> None:
    cluster = Cluster()
    cluster.service("chat", drain_timeout_s=90.0)
    cluster.has("chat", 1, DRAINS)
    cluster.has("chat", 2, WAITS, cause="GPUS", text="no node has a free GPU")
    (one,) = cluster.found()
    assert (one.kind, one.action) == (Kind.OWN_DRAIN, "")
    assert one.text.endswith("requests are finished in replica 1: no node has a free GPU")
    assert one.remedy == "it ends by itself within the drain timeout of 90 s"


def test_of_a_used_up_quota_the_services_that_have_it_are_named() -> None:
    cluster = Cluster()
    cluster.service("chat")
    cluster.has("chat", 1, WAITS, cause="QUOTA", text=QUOTA)
    cluster.service("code")
    for number in (1, 2, 3):
        cluster.has("code", number, READY)
    cluster.service("other", queue="queues/other")
    cluster.has("other", 1, READY)
    (one,) = cluster.found()
    assert (one.kind, one.text) == (Kind.QUOTA, f"replica 1 waits for quota: {QUOTA} (of its services code has 3)")
    assert "switchgear queues set research --limit N" in one.remedy


def test_a_budget_below_the_minimum_is_named_before_anything_waits() -> None:
    cluster = Cluster()
    cluster.service("chat", min_replicas=3, gpus_per_replica=2, gpu_budget=5)
    (one,) = cluster.found()
    assert (one.kind, one.text) == (Kind.BUDGET, "at least 3 replicas need 6 GPUs, and its budget is 5 GPUs")
    assert one.action == "keeps 2 replicas, as many as the budget holds"


@pytest.mark.parametrize(
    ("cause", "kind", "remedy"),
    [
        ("IMPOSSIBLE", Kind.IMPOSSIBLE, "switchgear explain jobs/chat-r1"),
        ("NODES_CLOSED", Kind.NODES_CLOSED, "switchgear nodes uncordon"),
        ("FRAGMENTED", Kind.ROOM, "switchgear explain jobs/chat-r1"),
        ("GPU_MODEL", Kind.ROOM, "switchgear explain jobs/chat-r1"),
        ("HELD", Kind.ROOM, "switchgear explain jobs/chat-r1"),
        ("", Kind.UNSEEN, "switchgear doctor"),
    ],
)
def test_a_replica_that_is_stuck_although_gpus_are_free_says_what_to_do(cause: str, kind: Kind, remedy: str) -> None:
    cluster = Cluster()
    cluster.service("chat")
    cluster.has("chat", 1, WAITS, cause=cause, text="why")
    (one,) = cluster.found()
    assert one.kind is kind
    assert remedy in one.remedy


def test_nothing_is_said_while_the_scheduler_is_away_or_the_service_is_being_deleted() -> None:
    cluster = Cluster()
    cluster.service("chat")
    cluster.has("chat", 1, WAITS, cause="QUOTA")
    assert standoffs(cluster.services, cluster.replicas, World(NOW, None)) == {}
    gone = [replace(one, deleting=True) for one in cluster.services]
    assert standoffs(gone, cluster.replicas, World(NOW, cluster.jobs)) == {}
