"""What time and the ends of others change for jobs, and what a job asks of the planner, as pure values."""

from __future__ import annotations

import argparse
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from switchgear.cli.planner_flags import policy_from
from switchgear.cli.queue_flags import add_queue_flags, apply, asked_for, moment, seconds
from switchgear.core.errors import Invalid, Reason
from switchgear.planner import model as planner
from switchgear.scheduler import jobs as job_life
from switchgear.scheduler.explaining import explained
from switchgear.scheduler.model import (
    Dependency,
    GpuRecord,
    Inventory,
    JobRecord,
    JobSpec,
    JobState,
    Leaving,
    NodeRecord,
    PlacedNode,
    PlacementRecord,
    ReservationRecord,
    Rules,
    Turn,
    Usage,
    Workload,
)
from switchgear.scheduler.planning import View, is_preemptible, key_of
from switchgear.scheduler.spec import spec_from_proto
from switchgear.scheduler.translate import spec_to_proto
from switchgear.scheduler.turns import due_unix_ns, turned
from switchgear.v1 import job_service_pb2 as job_pb

SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND
SPEC = JobSpec(("train.py",), "/w", (), "", 1, 2, 0, "", "/logs")


def job(name: str = "x", state: JobState = JobState.RUNNING, **turn: Any) -> JobRecord:
    placed = () if state is JobState.PENDING else (PlacedNode("nodes/a", (4, 6), "127.0.0.1", 1),)
    return JobRecord(
        f"jobs/{name}",
        SPEC,
        NOW,
        state=state,
        placement=PlacementRecord(1, placed),
        create_revision=1,
        turn=Turn(**turn),
    )


def changed(*jobs: JobRecord, rules: Rules | None = None, now_unix_ns: int = NOW) -> dict[str, JobRecord]:
    return {one.name: one for one in turned(jobs, rules or Rules(), now_unix_ns)}


def test_the_time_limit_counts_all_placements_together() -> None:
    limited = replace(job(placed_unix_ns=NOW, ran_ns=40 * SECOND), spec=replace(SPEC, time_limit_seconds=60))
    assert changed(limited, now_unix_ns=NOW + 19 * SECOND) == {}
    assert due_unix_ns([limited], Rules(), NOW) == NOW + 20 * SECOND
    over = changed(limited, now_unix_ns=NOW + 20 * SECOND)["jobs/x"]
    assert (over.state, over.message) == (JobState.FAILED, "its time limit of 60 s is over")


def test_a_victim_leaves_at_its_next_checkpoint_or_when_time_is_over() -> None:
    leaving = Leaving("jobs/y", NOW, NOW + 100 * SECOND)
    taker = job("y", JobState.PENDING)
    victim = job(leaving=leaving, checkpoint_unix_ns=NOW - 1)
    assert changed(victim, taker) == {}
    assert due_unix_ns([victim, taker], Rules(), NOW) == leaving.by_unix_ns
    assert changed(job_life.saved(victim, NOW + 1), taker)["jobs/x"].state is JobState.PREEMPTED
    assert changed(victim, taker, now_unix_ns=leaving.by_unix_ns)["jobs/x"].state is JobState.PREEMPTED
    held = replace(taker, turn=Turn(held="no"))
    for nobody in ((), (held,), (replace(taker, state=JobState.STARTING),)):
        stays = changed(victim, *nobody)["jobs/x"]
        assert (stays.state, stays.turn.leaving) == (JobState.RUNNING, None)


def test_a_script_that_saves_when_it_is_stopped_is_known_to_until_it_does_not() -> None:
    leaving = Leaving("jobs/y", NOW, NOW)
    taker = job("y", JobState.PENDING)
    old = {"checkpoint_unix_ns": NOW - 50 * SECOND, "checkpoint_interval_s": 60.0}
    stopped = changed(job(leaving=leaving, placed_unix_ns=NOW - 90 * SECOND, **old), taker)["jobs/x"]
    assert "at once, since its next checkpoint is too far away" in stopped.message
    saved = job_life.saved(stopped, NOW + 5 * SECOND)
    assert (saved.turn.saves_when_stopped, saved.turn.checkpoint_interval_s) == (True, 60.0)
    waiting = job_life.timed(saved, job_life.left(saved, NOW + 6 * SECOND), NOW + 6 * SECOND)
    assert waiting.turn.lent is not None
    assert (waiting.turn.lent.to_job, waiting.turn.lent.gpus) == ("jobs/y", 2)
    # It runs again. The time between a checkpoint and the first one after a wait is no interval.
    again = replace(waiting, state=JobState.RUNNING, placement=job().placement)
    again = job_life.saved(job_life.timed(waiting, again, NOW + 20 * SECOND), NOW + 29 * SECOND)
    assert (again.turn.saves_when_stopped, again.turn.checkpoint_interval_s) == (True, 60.0)
    again = job_life.saved(again, NOW + 60 * SECOND)
    assert again.turn.checkpoint_interval_s == 31.0
    later = replace(again, turn=replace(again.turn, leaving=replace(leaving, asked_unix_ns=NOW + 90 * SECOND)))
    second = changed(later, taker, now_unix_ns=NOW + 90 * SECOND)["jobs/x"]
    assert second.message == "its ranks are being stopped and asked for a checkpoint, as it makes one then, for jobs/y"
    assert not second.turn.saves_when_stopped  # to be shown again
    assert not job_life.saved(second, NOW + 121 * SECOND).turn.saves_when_stopped


def test_a_dependency_that_is_gone_was_met_only_when_any_end_would_do() -> None:
    waits = job("x", JobState.PENDING, waits_for=(Dependency("jobs/a"), Dependency("jobs/b", any_end=True)))
    rules = Rules(ended={"jobs/b": None})
    assert changed(waits, rules=rules)["jobs/x"].turn.waits_for == (Dependency("jobs/a"),)
    lost = changed(waits, rules=Rules(ended={"jobs/a": None}))["jobs/x"]
    assert (lost.state, "is not known any more" in lost.message) == (JobState.CANCELLED, True)
    met = changed(waits, rules=Rules(ended={"jobs/a": JobState.SUCCEEDED, "jobs/b": JobState.FAILED}))["jobs/x"]
    assert (met.state, met.turn.waits_for) == (JobState.PENDING, ())


def test_time_with_nodes_is_added_up_over_placements() -> None:
    waiting = job(state=JobState.PENDING)
    placed = job_life.timed(waiting, job(), NOW)
    assert placed.turn.placed_unix_ns == NOW
    later = job_life.timed(placed, job_life.waiting(placed, ""), NOW + 5 * SECOND)
    assert (later.turn.placed_unix_ns, later.turn.ran_ns) == (None, 5 * SECOND)
    again = job_life.timed(later, replace(placed, turn=later.turn), NOW + 9 * SECOND)
    assert again.turn.ran_s(NOW + 11 * SECOND) == 7.0


def test_a_snapshot_counts_gpus_by_position_and_matches_models_by_a_part_of_their_name() -> None:
    gpus = tuple(GpuRecord(index, model="NVIDIA H100 80GB HBM3", memory_bytes=80 << 30) for index in (2, 4, 6))
    node = NodeRecord("nodes/a", Inventory("10.0.0.1", gpus, "1", labels=(("topology/leaf", "l1"),)), NOW)
    pending = replace(job("y", JobState.PENDING), spec=replace(SPEC, gpu_models=("h100", "b200"), queue="queues/q"))
    rules = Rules(
        reservations=(ReservationRecord("reservations/r", ("nodes/a",), NOW, NOW + SECOND),),
        usage=(Usage("queues/q", "ann", 8.0, NOW - 10 * SECOND),),
    )
    view = View(planner.Policy(half_life_s=10.0))
    snapshot = view.snapshot({"nodes/a": node}, [job(), pending], rules, {"nodes/a": "cordoned"}, NOW)
    (shown,) = snapshot.nodes
    assert (shown.gpus, shown.gpu_memory_mib, shown.topology, shown.closed) == (3, 80 << 10, ("l1",), "cordoned")
    assert snapshot.levels == ("leaf",)
    assert snapshot.running[0].seats == (planner.Seat("nodes/a", (1, 2)),)
    assert snapshot.pending[0].task.gpu_models == {"NVIDIA H100 80GB HBM3", "b200"}
    assert snapshot.used_gpu_s == {("queues/q", "ann"): 4.0}
    again = view.snapshot({"nodes/a": node}, [job(), pending], rules, {"nodes/a": "cordoned"}, NOW)
    assert again.nodes[0] is shown
    assert again.pending[0] is snapshot.pending[0]


def test_replicas_are_not_preempted_unless_they_say_so_and_scripts_give_their_name_to_what_is_learned() -> None:
    replica = replace(SPEC, workload=Workload.INFERENCE)
    assert [is_preemptible(spec) for spec in (SPEC, replica, replace(replica, preemptible=True))] == [True, False, True]
    assert key_of(replace(SPEC, argv=("-m", "lab.train", "--lr", "1"))) == "lab"
    assert key_of(replace(SPEC, argv=("/x/train.py",), key="bert")) == "bert"


def test_a_start_that_may_never_come_has_no_time() -> None:
    task = planner.Task(gpus=2)
    running = planner.Running(planner.Job("jobs/a", task, 0.0), (planner.Seat("nodes/a", (0, 1)),), 0.0)
    snapshot = planner.Snapshot((planner.Node("nodes/a", 2),), (planner.Job("jobs/b", task, 1.0),), (running,))
    answer = explained(snapshot, "jobs/b", 10.0)
    assert (answer.job, answer.causes[0].cause) == ("jobs/b", "GPUS")
    assert answer.text
    assert explained(snapshot, "jobs/a", 10.0).causes == []


FULL: dict[str, Any] = {
    "argv": ["x.py"],
    "working_directory": "/w",
    "nnodes": 2,
    "nproc_per_node": 1,
    "workload": job_pb.JobSpec.TRAINING,
    "queue": "queues/lab",
    "user": "ann",
    "priority": -5,
    "cpu_milli": 1500,
    "memory_mib": 64,
    "gpu_milli": 250,
    "gpu_models": ["a", "b"],
    "node_selectors": [job_pb.NodeSelector(key="pool", values=["x", "y"], excludes=True)],
    "tolerations": ["t"],
    "topology": [job_pb.TopologyWish(level="leaf", required=True)],
    "time_limit_seconds": 1.5,
    "after": [job_pb.Dependency(job="jobs/a", any_end=True)],
    "preemptible": False,
    "harvest": True,
    "key": "k",
}


def test_what_a_job_asks_of_the_planner_comes_back_as_it_was_given() -> None:
    proto = job_pb.JobSpec(**FULL)
    proto.not_before.FromNanoseconds(NOW)
    spec = spec_from_proto(proto)
    assert (spec.not_before_unix_ns, spec.preemptible, spec.after) == (
        NOW,
        False,
        (Dependency("jobs/a", any_end=True),),
    )
    assert spec_to_proto(spec) == proto


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"queue": "lab"}, Reason.BAD_NAME),
        ({"priority": 1001}, Reason.BAD_FIELD),
        ({"cpu_milli": -1}, Reason.BAD_FIELD),
        ({"gpu_milli": 1000}, Reason.BAD_FIELD),
        ({"gpu_milli": 500, "nproc_per_node": 2}, Reason.BAD_FIELD),
        ({"gpu_milli": 500, "mig_profile": "1g.10gb"}, Reason.BAD_FIELD),
        ({"mig_profile": "half"}, Reason.BAD_FIELD),
        ({"topology": [job_pb.TopologyWish(level="aisle")]}, Reason.BAD_FIELD),
        ({"node_selectors": [job_pb.NodeSelector(key="pool")]}, Reason.BAD_FIELD),
        ({"tolerations": ["x", "x"]}, Reason.BAD_FIELD),
        ({"tolerations": [f"t{n}" for n in range(65)]}, Reason.LIMIT_EXCEEDED),
        ({"time_limit_seconds": float("nan")}, Reason.BAD_FIELD),
        ({"after": [job_pb.Dependency(job="x")]}, Reason.BAD_NAME),
        ({"after": [job_pb.Dependency(job=f"jobs/{n}") for n in range(17)]}, Reason.LIMIT_EXCEEDED),
    ],
)
def test_what_cannot_be_asked_is_refused_with_its_field(fields: dict[str, Any], reason: Reason) -> None:
    good: dict[str, Any] = {"argv": ["x.py"], "working_directory": "/w", "nnodes": 1, "nproc_per_node": 1}
    with pytest.raises(Invalid) as caught:
        spec_from_proto(job_pb.JobSpec(**{**good, **fields}))
    assert caught.value.reason is reason


def test_times_are_written_as_people_say_them() -> None:
    now = datetime(2026, 11, 22, 21, 0, tzinfo=UTC)
    assert [seconds(text, "x") for text in ("90", "15m", "1.5h", "2d")] == [90, 900, 5400, 172_800]
    assert moment("22:00", now) == datetime(2026, 11, 22, 22, 0, tzinfo=UTC)
    assert moment("8:30", now) == datetime(2026, 11, 23, 8, 30, tzinfo=UTC)
    assert moment("+2h", now) == datetime(2026, 11, 22, 23, 0, tzinfo=UTC)
    assert moment("2026-12-01T08:00", now) == datetime(2026, 12, 1, 8, 0, tzinfo=UTC)
    for wrong in ("soon", "25:00", "+x"):
        with pytest.raises(Invalid):
            moment(wrong, now)


def test_what_operators_choose_of_the_planner_is_one_flag() -> None:
    def policy(text: str) -> planner.Policy:
        return policy_from(argparse.Namespace(planner=text))

    assert policy("") == planner.Policy()
    documented = "spares=0,guaranteed-run=10m,checkpoint-wait=10m,half-life=7d,starving=24h,preemption=on"
    assert policy(documented) == planner.Policy()
    chosen = policy("spares=2, preemption=off,guaranteed-run=1h")
    assert (chosen.spares, chosen.preemption, chosen.guaranteed_run_s) == (2, False, 3600)
    for wrong in ("spare=2", "spares=-1", "preemption=maybe", "half-life=0"):
        with pytest.raises(Invalid):
            policy(wrong)


def test_the_flags_of_a_command_become_the_job() -> None:
    parser = argparse.ArgumentParser()
    add_queue_flags(parser)
    given = (
        "--queue lab --priority 7 --time-limit 4h --hold --after a --after-any jobs/b --no-preemptible --harvest --gpu-model h100 "
        "--gpu-share 0.25 --cpus 1.5 --memory 2g --select pool=x,y --select disk!=slow --tolerate t --within leaf --near spine --key k"
    )
    args = parser.parse_args(given.split())
    spec = job_pb.JobSpec()
    apply(args, spec, datetime(2026, 11, 22, tzinfo=UTC))
    assert (spec.queue, spec.priority, spec.time_limit_seconds, spec.hold) == ("queues/lab", 7, 14_400, True)
    assert [(one.job, one.any_end) for one in spec.after] == [("jobs/a", False), ("jobs/b", True)]
    assert (spec.HasField("preemptible"), spec.preemptible, spec.harvest) == (True, False, True)
    assert (spec.gpu_milli, spec.cpu_milli, spec.memory_mib, spec.key) == (250, 1500, 2048, "k")
    assert [(one.key, list(one.values), one.excludes) for one in spec.node_selectors] == [
        ("pool", ["x", "y"], False),
        ("disk", ["slow"], True),
    ]
    assert [(one.level, one.required) for one in spec.topology] == [("leaf", True), ("spine", False)]
    assert asked_for(parser.parse_args([])) == []
    assert "--gpu-share" in asked_for(args)
    for wrong in (["--gpu-share", "1"], ["--memory", "lots"], ["--select", "pool"], ["--cpus", "-1"]):
        with pytest.raises(Invalid):
            apply(parser.parse_args(wrong), job_pb.JobSpec(), datetime(2026, 11, 22, tzinfo=UTC))
