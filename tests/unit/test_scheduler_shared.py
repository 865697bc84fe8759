"""Nodes that are not ours alone, in the scheduler's policy: what their engine and its people say of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from switchgear.core.errors import Invalid
from switchgear.scheduler import jobs as job_life
from switchgear.scheduler import nodes as node_life
from switchgear.scheduler.decide import Snapshot, decide, unanswered, wanted
from switchgear.scheduler.model import (
    Closure,
    ForeignJob,
    GpuRecord,
    Inventory,
    JobRecord,
    JobSpec,
    JobState,
    LauncherRef,
    Lost,
    NodeRecord,
    NodeState,
    NodeStatus,
    Observation,
    PlacedNode,
    PlacementRecord,
    Rules,
)
from switchgear.scheduler.shared import require_partitions

NOW = 1_700_000_000_000_000_000
GPUS = Inventory("127.0.0.1", tuple(map(GpuRecord, range(4))), "")
REF = LauncherRef("jobs/llama", 1)
NODES = tuple(NodeRecord(f"nodes/{name}", GPUS, NOW, revision=1, healthy_revision=1) for name in "ab")


def _job(name: str = "llama", per_node: int = 4, **spec: Any) -> JobRecord:
    wishes = JobSpec(("train.py",), "/w", (), "", 1, per_node, 0, "", "/logs", **spec)
    return JobRecord(f"jobs/{name}", wishes, NOW, create_revision=1, revision=1)


def _on(node: str, job: JobRecord, state: JobState = JobState.RUNNING) -> JobRecord:
    seat = PlacedNode(f"nodes/{node}", (0, 1, 2, 3), "127.0.0.1", 1)
    return replace(job, state=state, placement=PlacementRecord(1, (seat,)))


def _seen(**status: Any) -> Observation:
    """status: by node, what is said of it beyond that it is well."""
    well = NodeStatus(GPUS, connected=True, silent=False)
    return Observation(tuple((f"nodes/{name}", replace(well, **status.get(name, {}))) for name in "ab"), complete=True)


def _after(job: JobRecord, seen: Observation, nodes: tuple[NodeRecord, ...] = NODES, rules: Rules | None = None) -> Any:
    """Job and nodes by name, as they are after one decision."""
    snapshot = Snapshot(nodes, (job,), rules or Rules())
    decisions = decide(snapshot, seen, NOW)
    after = {node.name: node for node in (*nodes, *decisions.nodes)}
    return next(iter(decisions.jobs), job), after


def _where(job: JobRecord) -> list[str]:
    return [seat.node for seat in job.placement.nodes]


def test_a_node_that_people_close_in_the_engine_is_closed_with_their_reason_until_they_open_it() -> None:
    closed = {"closed": Closure("drained in Slurm by root: bad fan", "slurm:root")}
    job, nodes = _after(_job(), _seen(a=closed))
    assert _where(job) == ["nodes/b"]
    a = nodes["nodes/a"]
    assert (a.state, a.reason, a.actor) == (
        NodeState.CORDONED, "drained in Slurm by root: bad fan", "engine:slurm:root"
    )  # fmt: skip
    assert wanted([], nodes.values()) == {}, "what others have closed is not ours to close"
    _, nodes = _after(_job(), _seen(), tuple(nodes.values()))
    assert nodes["nodes/a"].state is NodeState.HEALTHY


def test_what_we_have_cordoned_ourselves_stays_so_whatever_others_do() -> None:
    ours = node_life.cordon(NODES[0], "xid 79", "policy:recovery")
    for status in ({}, {"closed": Closure("bad fan", "slurm:root")}):
        _, nodes = _after(_job(), _seen(a=status), (ours, NODES[1]))
        assert nodes["nodes/a"].reason == "xid 79"
    assert {name: one.closed for name, one in wanted([], (ours, NODES[1])).items()} == {"nodes/a": "xid 79"}


def test_a_node_that_somebody_opens_in_the_engine_is_open() -> None:
    ours = node_life.cordon(NODES[0], "xid 79", "policy:recovery")
    _, nodes = _after(_job(), _seen(a={"opened": True}), (ours, NODES[1]))
    assert (nodes["nodes/a"].state, nodes["nodes/a"].actor) == (NodeState.HEALTHY, node_life.ACTOR_ENGINE)


def test_a_seat_that_the_engine_took_is_marked_once_and_its_node_is_kept_out_where_that_is_allowed() -> None:
    lost = {"a": {"lost": (Lost(REF, "Slurm job 7 ended as NODE_FAIL", by_node=True),)}}
    job, nodes = _after(_on("a", _job()), _seen(**lost))
    assert [seat.lost for seat in job.placement.nodes] == ["Slurm job 7 ended as NODE_FAIL"]
    assert (job.state, job.placement.epoch) == (JobState.RUNNING, 1)
    assert nodes["nodes/a"].state is NodeState.HEALTHY
    assert _after(job, _seen(**lost))[0] is job
    _, nodes = _after(_on("a", _job()), _seen(**lost), rules=Rules(cordons_lost=True))
    assert (nodes["nodes/a"].state, nodes["nodes/a"].actor) == (NodeState.CORDONED, node_life.ACTOR_POLICY)
    assert job_life.request_of(job, {node.name: node for node in NODES}).kept == ()


def test_a_job_whose_launcher_somebody_cancelled_is_cancelled() -> None:
    job, _ = _after(_on("a", _job()), _seen(a={"cancelled": ((REF, "Slurm job 7 was cancelled there"),)}))
    assert (job.state, job.message) == (JobState.CANCELLED, "Slurm job 7 was cancelled there")


def test_what_a_launcher_waits_for_is_said_while_its_job_starts() -> None:
    waits = {"a": {"waiting": ((REF, "Slurm job 7 waits: Resources"),)}}
    job, _ = _after(_on("a", _job(), JobState.STARTING), _seen(**waits))
    assert job.message == "waits for its launcher on nodes/a: Slurm job 7 waits: Resources"
    assert [seat.waits for seat in job.placement.nodes] == ["Slurm job 7 waits: Resources"]
    assert _after(job, _seen(**waits))[0] is job
    starts, _ = _after(job, _seen())
    assert ([seat.waits for seat in starts.placement.nodes], starts.message) == ([""], "its launchers start")
    assert _after(replace(job, message="the first step"), _seen())[0].message == "the first step"
    runs = _on("a", _job())
    assert _after(runs, _seen(**waits))[0] is runs


WITHHELD = {"withheld": ((REF, "Slurm holds it for another job (Resources)"),)}


def test_a_job_from_which_the_engine_keeps_a_node_gives_all_of_them_back_and_nothing_speaks_against_either() -> None:
    starts = _on("a", _job(), JobState.STARTING)
    seat = PlacedNode("nodes/b", (0, 1, 2, 3), "127.0.0.1", 1, waits="Slurm job 7 waits: Resources")
    pair = replace(
        starts,
        spec=replace(starts.spec, nnodes=2),
        placement=PlacementRecord(1, (*starts.placement.nodes, seat)),
    )
    obstacle = {"obstacle": "withheld: Slurm holds it for another job (Resources)"}
    running = {"launchers": frozenset({REF})}
    job, nodes = _after(pair, _seen(a=running, b={**WITHHELD, **obstacle}))
    assert (job.state, job.placement.nodes, job.excluded) == (JobState.PENDING, (), ())
    assert job.message.endswith("; node b: Slurm holds it for another job (Resources)")
    assert {node.state for node in nodes.values()} == {NodeState.HEALTHY}
    assert _after(job, _seen(a=running, b=obstacle))[0] is job
    again, _ = _after(job, _seen())
    assert (again.state, again.placement.epoch, again.turn.withheld) == (JobState.STARTING, 2, "")


def test_a_job_that_has_run_goes_to_another_node_than_the_one_that_the_engine_keeps_from_it() -> None:
    recovers = _on("a", _job(), JobState.RECOVERING)
    job, _ = _after(recovers, _seen(a=WITHHELD))
    assert (job.state, job.placement.epoch, _where(job)) == (JobState.RECOVERING, 2, ["nodes/b"])
    assert job.message == "placed anew on nodes/b; node a: Slurm holds it for another job (Resources)"
    obstacle = {"obstacle": "planned by Slurm for another job"}
    job, _ = _after(recovers, _seen(a={**WITHHELD, **obstacle}, b=obstacle))
    assert (job.state, _where(job)) == (JobState.PENDING, [])


def test_what_the_engine_says_of_a_launcher_that_runs_or_leaves_is_old_news() -> None:
    for state in (JobState.RUNNING, JobState.PREEMPTED):
        job = _on("a", _job(), state)
        assert _after(job, _seen(a=WITHHELD))[0] is job


def test_a_node_that_can_start_nothing_now_is_passed_over_and_the_job_says_why() -> None:
    job, _ = _after(_job(), _seen(a={"obstacle": "planned by Slurm for another job"}))
    assert _where(job) == ["nodes/b"]
    why = {"obstacle": "out of sight: Slurm does not answer"}
    job, nodes = _after(_job(), _seen(a=why, b=why))
    assert "2 out of sight: Slurm does not answer" in job.message
    assert {node.state for node in nodes.values()} == {NodeState.HEALTHY}


def test_foreign_jobs_hold_as_many_gpus_as_they_have_whatever_ours_were_thought_to_have() -> None:
    foreign = (ForeignJob("slurm/7", "slurm:ann", 2, NOW, NOW + 60 * 10**9), ForeignJob("slurm/hidden", "", 1, 0))
    job, _ = _after(_job(per_node=2), _seen(a={"foreign": foreign}))
    assert _where(job) == ["nodes/b"]
    job, _ = _after(_job(per_node=1), _seen(a={"foreign": foreign}, b={"closed": Closure("x", "y")}))
    assert (_where(job), job.placement.nodes[0].gpu_indices) == (["nodes/a"], (0,))
    job, _ = _after(_job(), _seen(a={"foreign": foreign}, b={"foreign": foreign}))
    assert job.state is JobState.PENDING


def test_a_job_goes_to_nodes_of_its_partitions_alone() -> None:
    nodes = {"a": {"partitions": frozenset({"small"})}, "b": {"partitions": frozenset({"gpu", "big"})}}
    assert _where(_after(_job(partition="cpu,big"), _seen(**nodes))[0]) == ["nodes/b"]
    assert _after(_job(partition="cpu"), _seen(**nodes))[0].state is JobState.PENDING
    assert _where(_after(_job(), _seen(**nodes))[0]) == ["nodes/a"]


def test_a_partition_that_no_node_is_of_is_refused_with_those_that_there_are() -> None:
    seen = dict(_seen(a={"partitions": frozenset({"small"})}, b={"partitions": frozenset({"gpu", "big"})}).nodes)
    for known in ("", "gpu", "small,big"):
        require_partitions(known, seen)
    require_partitions("nowhere", dict(_seen().nodes))
    with pytest.raises(
        Invalid, match=r"spec\.partition names 'nowhere', of which no node is; there are big, gpu, small"
    ):
        require_partitions("gpu,nowhere", seen)


def test_a_job_whose_partitions_have_no_other_node_ends_with_what_slurm_said_of_the_last() -> None:
    job = _on("a", _job(partition="small"), JobState.STARTING)
    status = {
        "a": {"partitions": frozenset({"small"}), "unstartable": ((REF, "PartitionTimeLimit"),)},
        "b": {"partitions": frozenset({"gpu"})},
    }
    after, _ = _after(job, _seen(**status))
    assert (after.state, after.message) == (
        JobState.FAILED, "its launcher could not be started on nodes/a: PartitionTimeLimit"
    )  # fmt: skip


def test_a_lost_node_has_failed_only_when_the_engine_still_believes_its_launcher_to_run() -> None:
    job = _on("a", _job())
    assert unanswered(job, ["nodes/a", "nodes/b"], _seen(a={"launchers": frozenset({REF})})) == ["nodes/a"]
    assert unanswered(job, ["nodes/a", "nodes/z"], _seen()) == []
