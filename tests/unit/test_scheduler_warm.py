"""Which kinds of launchers a node should have ready."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from switchgear.scheduler.decide import Snapshot
from switchgear.scheduler.model import (
    ExcludedNode,
    GpuRecord,
    Inventory,
    JobRecord,
    JobSpec,
    JobState,
    NodeRecord,
    NodeState,
    Workload,
)
from switchgear.scheduler.nodes import NODES_MAX
from switchgear.scheduler.warm import KINDS_MAX, warm_kinds


def _node(name: str, gpus: int = 2, **fields: Any) -> NodeRecord:
    inventory = Inventory("127.0.0.1", tuple(GpuRecord(index) for index in range(gpus)), "1.0")
    return NodeRecord(f"nodes/{name}", inventory, 1, revision=1, healthy_revision=1, **fields)


def _job(order: int, folder: str, gpus: int = 1, **fields: Any) -> JobRecord:
    spec = JobSpec(("train.py",), folder, (), "", 1, gpus, 0, "", "/logs")
    spec = replace(spec, **{key: fields.pop(key) for key in list(fields) if hasattr(spec, key)})
    return JobRecord(f"jobs/{order}", spec, 1, create_revision=order, revision=order, **fields)


def _folders(snapshot: Snapshot) -> dict[str, list[str]]:
    kinds = warm_kinds(snapshot)
    return {name.removeprefix("nodes/"): [kind.working_directory for kind in found] for name, found in kinds.items()}


def test_the_newest_two_kinds_are_kept_on_every_node_that_could_run_them() -> None:
    nodes = (_node("big", 8), _node("small", 1), _node("none", 0))
    jobs = (_job(1, "/old"), _job(2, "/one"), _job(4, "/one"), _job(3, "/two"), _job(5, "/large", 8))
    assert _folders(Snapshot(nodes, jobs)) == {"big": ["/large", "/one"], "small": ["/one", "/two"]}


def test_a_kind_counts_once_however_many_jobs_share_it_and_whatever_they_run() -> None:
    jobs = (_job(1, "/w", argv=("a.py",)), _job(2, "/w", argv=("b.py",)), _job(3, "/w", 2), _job(4, "/v"))
    assert _folders(Snapshot((_node("a"),), jobs)) == {"a": ["/v", "/w"]}
    apart = (_job(1, "/w"), _job(2, "/w", preload=("heavy",)), _job(3, "/w", environment=(("A", "1"),)))
    assert len(warm_kinds(Snapshot((_node("a"),), apart))["nodes/a"]) == 2


def test_nothing_is_kept_for_what_has_ended_or_is_no_python() -> None:
    jobs = (_job(1, "/ended", state=JobState.SUCCEEDED), _job(2, "/sh", no_python=True))
    assert _folders(Snapshot((_node("a"),), jobs)) == {}


def test_replicas_of_a_service_are_of_one_kind_and_come_after_training() -> None:
    replicas = (
        _job(
            number,
            "/serves",
            workload=Workload.INFERENCE,
            environment=(("A", "1"), ("SWITCHGEAR_REPLICA", f"{number}")),
        )
        for number in (2, 3, 4)
    )
    found = warm_kinds(Snapshot((_node("a"),), (_job(1, "/w"), *replicas)))["nodes/a"]
    assert [(kind.working_directory, kind.environment) for kind in found] == [("/w", ()), ("/serves", (("A", "1"),))]


def test_a_node_that_gets_no_job_or_not_this_one_keeps_nothing_for_it() -> None:
    nodes = (_node("lost", reachable=False), _node("out", standing=NodeState.CORDONED), _node("shut"), _node("well"))
    job = _job(2, "/w", excluded=(ExcludedNode("nodes/shut", 1),))
    assert _folders(Snapshot(nodes, (job,))) == {"well": ["/w"]}


def test_a_full_fleet_with_a_full_queue_is_looked_at_in_a_moment() -> None:
    nodes = tuple(_node(f"n{number}", 8) for number in range(NODES_MAX))
    jobs = tuple(_job(number + 1, f"/{number}", 8) for number in range(10_000))
    start_s = time.process_time()
    found = warm_kinds(Snapshot(nodes, jobs))
    assert (len(found), time.process_time() - start_s < 1) == (NODES_MAX, True)
    assert KINDS_MAX < 100, "it is what makes this fast"
