"""The scheduler's policy on small fleets, one moment at a time."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

import pytest

from switchgear.core.errors import FailedPrecondition
from switchgear.scheduler import jobs as job_life
from switchgear.scheduler import nodes as node_life
from switchgear.scheduler.decide import (
    EXCLUDED_NODES_MAX,
    PLACEMENTS_PER_PASS_MAX,
    Snapshot,
    decide,
    replace_nodes,
    upheld,
    wanted,
)
from switchgear.scheduler.model import (
    GpuRecord,
    Inventory,
    JobRecord,
    JobSpec,
    JobState,
    LauncherRef,
    NodeRecord,
    NodeSelector,
    NodeState,
    NodeStatus,
    Observation,
    PlacedNode,
    PlacementRecord,
    Rules,
    TopologyWish,
    Wanted,
)
from switchgear.scheduler.nodes import NODES_MAX

NOW = 1_700_000_000_000_000_000
TWO_GPUS = Inventory("127.0.0.1", (GpuRecord(0), GpuRecord(1)), "1.0")


def _node(name: str) -> NodeRecord:
    return NodeRecord(f"nodes/{name}", TWO_GPUS, NOW, revision=1, healthy_revision=1)


def _job(name: str, order: int, nnodes: int = 1, per_node: int = 2) -> JobRecord:
    spec = JobSpec(("train.py",), "/w", (), "", nnodes, per_node, 0, "", "/logs")
    return JobRecord(f"jobs/{name}", spec, NOW, create_revision=order, revision=order)


def _seen(names: Iterable[str], **changes: NodeStatus) -> Observation:
    usual = {name: NodeStatus(TWO_GPUS, connected=True, silent=False) for name in names}
    return Observation(tuple((f"nodes/{name}", status) for name, status in sorted({**usual, **changes}.items())))


def _running(job: str) -> NodeStatus:
    return NodeStatus(TWO_GPUS, connected=True, silent=False, launchers=frozenset({LauncherRef(f"jobs/{job}", 1)}))


def _unable(job: str, epoch: int) -> NodeStatus:
    trouble = ((LauncherRef(f"jobs/{job}", epoch), "disk is full"),)
    return NodeStatus(TWO_GPUS, connected=True, silent=False, unstartable=trouble)


class _World:
    """Applies decisions, as the store does, until nothing changes."""

    def __init__(self, nodes: Iterable[str], *jobs: JobRecord) -> None:
        self.seen = _seen(nodes)
        self.nodes = {f"nodes/{name}": _node(name) for name in nodes}
        self.jobs = {job.name: job for job in jobs}
        self.revision = 100

    def snapshot(self) -> Snapshot:
        return Snapshot(tuple(self.nodes.values()), tuple(self.jobs.values()))

    def settle(self) -> None:
        for _ in range(10):
            decisions = decide(self.snapshot(), self.seen, NOW)
            for node in decisions.nodes:
                self.put(node)
            self.jobs.update({job.name: job for job in decisions.jobs})
            if not decisions.nodes and not decisions.jobs:
                return
        raise AssertionError("decisions never settle")

    def put(self, node: NodeRecord) -> None:
        self.revision += 1
        before = self.nodes.get(node.name)
        anew = node.state is NodeState.HEALTHY and (before is None or before.state is not NodeState.HEALTHY)
        self.nodes[node.name] = replace(
            node, revision=self.revision, healthy_revision=self.revision if anew else node.healthy_revision
        )

    def state_of(self, name: str) -> str:
        return (self.nodes[name] if name in self.nodes else self.jobs[name]).state

    def replace(self, name: str, *excluded: str) -> JobRecord:
        job = replace_nodes(self.jobs[name], excluded, self.snapshot(), self.seen, reason="it broke")
        self.jobs[name] = job
        return job


def _where(job: JobRecord) -> list[str]:
    return [seat.node for seat in job.placement.nodes]


def test_jobs_are_placed_in_the_order_in_which_they_came() -> None:
    world = _World("ab", _job("late", 9), _job("early", 3, nnodes=2))
    world.settle()
    early, late = world.jobs["jobs/early"], world.jobs["jobs/late"]
    assert (early.state, early.placement.epoch, _where(early)) == (JobState.STARTING, 1, ["nodes/a", "nodes/b"])
    assert late.state is JobState.PENDING
    assert late.message


def test_a_long_queue_is_placed_over_several_passes_in_order() -> None:
    count = PLACEMENTS_PER_PASS_MAX + 10
    world = _World([f"n{i}" for i in range(count)], *(_job(f"j{i:03}", i + 1) for i in range(count)))
    first = decide(world.snapshot(), world.seen, NOW)
    assert sorted(job.name for job in first.jobs) == [f"jobs/j{i:03}" for i in range(PLACEMENTS_PER_PASS_MAX)]
    assert first.more
    world.settle()
    assert {job.state for job in world.jobs.values()} == {JobState.STARTING}


def test_a_job_for_which_there_are_not_enough_nodes_holds_nobody_up() -> None:
    world = _World("ab", _job("large", 1, nnodes=3), _job("small", 2))
    world.settle()
    assert world.jobs["jobs/large"].state is JobState.PENDING
    assert world.jobs["jobs/small"].state is JobState.STARTING


def test_two_small_jobs_share_a_node() -> None:
    world = _World("ab", _job("x", 1, per_node=1), _job("y", 2, per_node=1))
    world.settle()
    x, y = (world.jobs[name].placement.nodes[0] for name in ("jobs/x", "jobs/y"))
    assert (x.node, x.gpu_indices, y.node, y.gpu_indices) == ("nodes/a", (0,), "nodes/a", (1,))


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (NodeStatus(TWO_GPUS, connected=False, silent=False), "1 without a connected agent"),
        (NodeStatus(TWO_GPUS, connected=True, silent=True), "1 unreachable"),
        (
            NodeStatus(TWO_GPUS, connected=True, silent=False, launchers=frozenset({LauncherRef("jobs/old", 1)})),
            "1 still stopping an ended job",
        ),
    ],
)
def test_a_node_that_cannot_take_a_job_now_is_passed_over(status: NodeStatus, why: str) -> None:
    world = _World("a", _job("x", 1))
    world.seen = _seen("", a=status)
    world.settle()
    assert world.jobs["jobs/x"].state is JobState.PENDING
    assert why in world.jobs["jobs/x"].message


def test_a_cordoned_node_takes_nothing_new_and_keeps_what_runs() -> None:
    world = _World("a", _job("x", 1, per_node=1))
    world.settle()
    world.put(node_life.cordon(world.nodes["nodes/a"], "fan", "user"))
    world.jobs["jobs/y"] = _job("y", 2, per_node=1)
    world.settle()
    assert "1 cordoned" in world.jobs["jobs/y"].message
    assert len(wanted(world.jobs.values())["nodes/a"].run) == 1


def test_a_silent_node_becomes_unreachable_and_comes_back_as_it_was() -> None:
    world = _World("ab")
    world.put(node_life.cordon(world.nodes["nodes/b"], "fan", "user"))
    gone = NodeStatus(TWO_GPUS, connected=False, silent=True)
    world.seen = _seen("", a=gone, b=gone)
    world.settle()
    assert {node.state for node in world.nodes.values()} == {NodeState.UNREACHABLE}
    assert node_life.reason(world.nodes["nodes/b"]) == "no heartbeat for more than 10 s; cordoned: fan"
    world.seen = _seen("ab")
    world.settle()
    assert [world.nodes[name].state for name in ("nodes/a", "nodes/b")] == [NodeState.HEALTHY, NodeState.CORDONED]


def test_after_a_restart_nodes_have_time_to_report_before_they_are_missed() -> None:
    world = _World("a")
    world.seen = Observation()
    world.settle()
    assert world.state_of("nodes/a") == "HEALTHY"
    world.seen = Observation(complete=True)
    world.settle()
    assert world.state_of("nodes/a") == "UNREACHABLE"


def test_a_replaced_node_leaves_the_others_as_they_were() -> None:
    world = _World("abc", _job("x", 1, nnodes=2))
    world.settle()
    before = world.jobs["jobs/x"]
    world.jobs["jobs/x"] = job_life.moved(before, JobState.RECOVERING, "", NOW)
    after = world.replace("jobs/x", "nodes/a")
    assert (after.placement.epoch, after.state) == (2, JobState.RECOVERING)
    assert _where(after) == ["nodes/c", "nodes/b"]
    assert after.placement.nodes[1] == before.placement.nodes[1]
    assert [seat.launcher_epoch for seat in after.placement.nodes] == [2, 1]
    assert [launcher.ref.epoch for launcher in wanted([after])["nodes/b"].run] == [1]


def test_without_a_replacement_the_job_waits_and_holds_nothing() -> None:
    world = _World("ab", _job("x", 1, nnodes=2))
    world.settle()
    world.seen = _seen("b", a=_running("x"))
    after = world.replace("jobs/x", "nodes/a")
    assert (after.state, after.placement.nodes, after.placement.epoch) == (JobState.PENDING, (), 1)
    assert wanted([after]) == {}
    world.settle()
    assert "1 still stopping an ended job" in world.jobs["jobs/x"].message
    world.nodes["nodes/c"] = _node("c")
    world.seen = _seen("bc", a=_running("x"))
    world.settle()
    placed = world.jobs["jobs/x"]
    assert (placed.state, placed.placement.epoch, _where(placed)) == (JobState.STARTING, 2, ["nodes/b", "nodes/c"])


def test_a_node_that_was_only_out_of_touch_is_taken_again_when_its_launcher_is_gone_and_there_is_no_spare() -> None:
    world = _World("a", _job("x", 1))
    world.settle()
    world.seen = _seen("", a=_running("x"))
    assert world.replace("jobs/x", "nodes/a").state is JobState.PENDING
    world.settle()
    assert world.state_of("jobs/x") == "PENDING"
    world.seen = _seen("a")
    world.settle()
    assert (world.state_of("jobs/x"), world.jobs["jobs/x"].placement.epoch) == ("STARTING", 2)


def test_a_cordoned_node_counts_again_once_it_has_been_mended() -> None:
    world = _World("a", _job("x", 1))
    world.settle()
    world.put(node_life.cordon(world.nodes["nodes/a"], "gpu lost", "policy:recovery"))
    world.replace("jobs/x", "nodes/a")
    world.settle()
    assert world.state_of("jobs/x") == "PENDING"
    world.put(node_life.uncordon(world.nodes["nodes/a"], "user"))
    world.settle()
    assert world.state_of("jobs/x") == "STARTING"


def test_a_launcher_that_one_node_cannot_start_goes_to_another() -> None:
    world = _World("abc", _job("x", 1, nnodes=2))
    world.settle()
    world.seen = _seen("bc", a=_unable("x", 1))
    world.settle()
    job = world.jobs["jobs/x"]
    assert (job.state, job.placement.epoch, _where(job)) == (JobState.STARTING, 2, ["nodes/c", "nodes/b"])


def test_a_job_waits_for_nodes_that_are_away_rather_than_to_try_again_where_it_cannot_start() -> None:
    world = _World("ab", _job("x", 1))
    world.put(node_life.cordon(world.nodes["nodes/b"], "fan", "user"))
    world.settle()
    world.seen = _seen("b", a=_unable("x", 1))
    world.settle()
    assert world.state_of("jobs/x") == "PENDING"
    assert world.jobs["jobs/x"].message.endswith("(others: 1 cordoned, 1 excluded for this job)")
    world.seen = _seen("ab")
    world.settle()
    assert world.state_of("jobs/x") == "PENDING"
    world.put(replace(world.nodes["nodes/a"], healthy_revision=world.revision + 1))  # as uncordoning it does
    world.settle()
    assert (world.state_of("jobs/x"), _where(world.jobs["jobs/x"])) == ("STARTING", ["nodes/a"])


def test_a_job_that_runs_may_have_any_node_the_next_time() -> None:
    world = _World("ab", _job("x", 1))
    world.settle()
    world.seen = _seen("b", a=_unable("x", 1))
    world.settle()
    assert [entry.node for entry in world.jobs["jobs/x"].excluded] == ["nodes/a"]
    assert job_life.moved(world.jobs["jobs/x"], JobState.RUNNING, "", NOW).excluded == ()


def test_a_launcher_that_many_nodes_cannot_start_does_not_go_through_the_whole_fleet() -> None:
    names = [f"n{number:02}" for number in range(EXCLUDED_NODES_MAX + 5)]
    world = _World(names, _job("x", 1))
    world.settle()
    for epoch, name in enumerate(names[: EXCLUDED_NODES_MAX + 1], start=1):
        assert (world.state_of("jobs/x"), world.jobs["jobs/x"].placement.epoch) == ("STARTING", epoch)
        others = [other for other in names if other != name]
        world.seen = _seen(others, **{name: _unable("x", epoch)})
        world.settle()
    assert world.jobs["jobs/x"].state is JobState.FAILED
    assert "(nor on 32 other nodes)" in world.jobs["jobs/x"].message


def test_a_pass_over_the_largest_fleet_takes_less_than_two_seconds() -> None:
    """Of processor time; the bound leaves room for a slow machine."""
    names = [f"n{number}" for number in range(NODES_MAX)]
    world = _World(names, *(_job(f"j{number}", number + 1) for number in range(200)))
    start_s = time.process_time()
    decisions = decide(world.snapshot(), world.seen, NOW)
    assert time.process_time() - start_s < 2.0
    assert len(decisions.jobs) == 200


def test_a_launcher_that_no_node_can_start_fails_its_job_with_the_cause() -> None:
    world = _World("a", _job("x", 1))
    world.settle()
    world.seen = _seen("", a=_unable("x", 1))
    world.settle()
    job = world.jobs["jobs/x"]
    assert (job.state, job.message) == (
        JobState.FAILED,
        "its launcher could not be started on nodes/a: disk is full",
    )
    assert job.end_time_unix_ns == NOW


def test_a_node_that_was_away_for_a_week_is_forgotten_unless_a_person_or_a_job_holds_it() -> None:
    world = _World("abcd", _job("x", 1))
    world.settle()
    world.put(node_life.cordon(world.nodes["nodes/b"], "fan", "user"))
    world.seen = replace(_seen("d"), complete=True)
    world.settle()
    before = world.snapshot()
    week_ns = int(node_life.FORGET_S * 1e9)
    assert decide(before, world.seen, NOW + week_ns).forgotten == frozenset()
    assert decide(before, world.seen, NOW + week_ns + 1).forgotten == {"nodes/c"}
    assert not decide(before, _seen("abcd"), NOW + week_ns + 1).forgotten


def test_beyond_the_limit_the_node_that_was_silent_the_longest_is_forgotten_first() -> None:
    away = [
        replace(_node(f"n{number}"), reachable=False, last_seen_unix_ns=NOW - number) for number in range(NODES_MAX + 2)
    ]
    assert node_life.forgotten(away, {f"nodes/n{NODES_MAX}"}, NOW) == {
        f"nodes/n{NODES_MAX + 1}",
        f"nodes/n{NODES_MAX - 1}",
    }
    assert node_life.forgotten(away[:NODES_MAX], (), NOW) == frozenset()


def test_launchers_of_a_job_that_has_just_ended_are_left_to_finish() -> None:
    world = _World("a", _job("x", 1))
    world.settle()
    ended = job_life.moved(world.jobs["jobs/x"], JobState.SUCCEEDED, "done", NOW)
    assert wanted([ended]) == {"nodes/a": Wanted((), frozenset({LauncherRef("jobs/x", 1)}))}
    assert wanted([]) == {}


def test_an_ended_job_never_changes_its_end() -> None:
    ended = job_life.moved(_job("x", 1), JobState.FAILED, "it broke", NOW)
    again = job_life.moved(ended, JobState.FAILED, "rank 3 broke", NOW + 5)
    assert (again.message, again.end_time_unix_ns) == ("rank 3 broke", NOW)
    with pytest.raises(FailedPrecondition, match="has ended as FAILED"):
        job_life.moved(ended, JobState.RUNNING, "", NOW)


def test_a_job_in_the_queue_takes_no_news_but_its_end() -> None:
    job = _job("x", 1)
    assert job_life.moved(job, JobState.RECOVERING, "late news", NOW) == job
    assert job_life.moved(job, JobState.CANCELLED, "", NOW).ended


def test_a_broken_node_that_nobody_may_cordon_is_not_given_to_its_job_again() -> None:
    world = _World("ab", _job("x", 1))
    world.settle()
    x = world.jobs["jobs/x"]
    assert _where(x) == ["nodes/a"]
    x = replace_nodes(x, ["nodes/a"], world.snapshot(), world.seen, reason="xid 79", avoided=["nodes/a"])
    assert _where(x) == ["nodes/b"]
    # It runs elsewhere, and fails there too: the queue has nothing for it, though node a looks well.
    world.jobs["jobs/x"] = job_life.moved(x, JobState.RUNNING, "", NOW)
    assert world.replace("jobs/x", "nodes/b").state is JobState.PENDING
    world.put(node_life.cordon(world.nodes["nodes/b"], "fan", "user:eve"))
    world.settle()
    assert world.jobs["jobs/x"].state is JobState.PENDING
    assert world.jobs["jobs/x"].message.endswith("(others: 1 cordoned, 1 excluded for this job)")
    # Whoever has mended it says so.
    world.put(replace(world.nodes["nodes/a"], reachable=False))
    world.put(replace(world.nodes["nodes/a"], reachable=True))
    world.settle()
    assert _where(world.jobs["jobs/x"]) == ["nodes/a"]


def _upheld(
    world: _World, fresh: Snapshot, *, seen: Observation | None = None, written: tuple[JobRecord, ...] = ()
) -> list[str]:
    """Jobs of which the decisions hold that were made in this world, when this is what is found at the time of the write."""
    before = world.snapshot()
    decisions = decide(before, world.seen, NOW)
    earlier = {job.name: job for job in written}
    kept = upheld(decisions, before, fresh, seen_before=world.seen, seen=seen or world.seen, written=earlier)
    return sorted(job.name for job in kept.jobs)


def test_what_was_decided_holds_as_long_as_nothing_has_changed_that_it_rests_on() -> None:
    world = _World("ab", _job("x", 1), _job("y", 2))
    before = world.snapshot()
    assert _upheld(world, before) == ["jobs/x", "jobs/y"]
    heard = replace(before, nodes=tuple(replace(node, last_seen_unix_ns=NOW + 1, revision=9) for node in before.nodes))
    assert _upheld(world, heard) == ["jobs/x", "jobs/y"]
    a, b = before.nodes
    cordoned = replace(before, nodes=(node_life.cordon(a, "fan", "user"), b))
    assert _upheld(world, cordoned) == ["jobs/y"]
    assert _upheld(world, before, seen=_seen("a", b=_running("z"))) == ["jobs/x"]
    cancelled = replace(before, jobs=(job_life.moved(before.jobs[0], JobState.CANCELLED, "", NOW), before.jobs[1]))
    assert _upheld(world, cancelled) == ["jobs/y"]


def test_a_node_that_recovery_has_taken_meanwhile_is_not_given_away_twice() -> None:
    world = _World("abc", _job("x", 1), _job("y", 2))
    world.jobs["jobs/z"] = replace(
        _job("z", 0),
        state=JobState.RECOVERING,
        placement=PlacementRecord(1, (PlacedNode("nodes/c", (0, 1), "127.0.0.1", 1),)),
    )
    moved = replace(
        world.jobs["jobs/z"], placement=PlacementRecord(2, (PlacedNode("nodes/a", (0, 1), "127.0.0.1", 2),))
    )
    fresh = replace(world.snapshot(), jobs=(world.jobs["jobs/x"], world.jobs["jobs/y"], moved))
    assert _upheld(world, fresh) == ["jobs/y"]
    # It was one of our own that was written first.
    x = next(job for job in decide(world.snapshot(), world.seen, NOW).jobs if job.name == "jobs/x")
    fresh = replace(world.snapshot(), jobs=(x, world.jobs["jobs/y"], world.jobs["jobs/z"]))
    assert _upheld(world, fresh, written=(x,)) == ["jobs/x", "jobs/y"]


def test_a_replacement_is_the_node_that_can_be_trusted_most_and_a_doubtful_one_only_where_there_is_no_other() -> None:
    world = _World("abc", _job("x", 1))
    world.settle()
    x, known = world.jobs["jobs/x"], Rules(health={"nodes/b": 0.5})
    assert _where(x) == ["nodes/a"]
    snapshot = replace(world.snapshot(), rules=known)
    assert _where(replace_nodes(x, ["nodes/a"], snapshot, world.seen, reason="it broke")) == ["nodes/c"]
    assert _where(replace_nodes(x, ["nodes/a", "nodes/c"], snapshot, world.seen, reason="it broke")) == ["nodes/b"]


def test_a_replacement_has_what_the_job_asks_for() -> None:
    spec = replace(
        _job("x", 1, nnodes=2).spec,
        node_selectors=(NodeSelector("pool", ("large",)),),
        topology=(TopologyWish("leaf", required=True),),
        cpu_milli=4000,
    )
    world = _World("abcdef", replace(_job("x", 1), spec=spec))
    for name, pool, leaf, cpu in (
        *(("a", "large", "l1", 8000), ("b", "large", "l1", 8000), ("c", "small", "l1", 8000)),
        *(("d", "large", "l2", 8000), ("e", "large", "l1", 2000), ("f", "large", "l1", 8000)),
    ):
        node = world.nodes[f"nodes/{name}"]
        labels = (("pool", pool), ("topology/leaf", leaf))
        inventory = replace(node.inventory, labels=labels, cpu_milli=cpu)
        world.nodes[node.name] = replace(node, inventory=inventory)
    status = {
        name.removeprefix("nodes/"): NodeStatus(node.inventory, connected=True, silent=False)
        for name, node in world.nodes.items()
    }
    world.seen = _seen("", **status)
    world.settle()
    assert _where(world.jobs["jobs/x"]) == ["nodes/a", "nodes/b"]
    assert _where(world.replace("jobs/x", "nodes/a")) == ["nodes/f", "nodes/b"]
    waits = world.replace("jobs/x", "nodes/f", "nodes/a")
    assert waits.state is JobState.PENDING
    for part in ("1 in another leaf", "2 without the model, labels, CPUs or memory that it asks for"):
        assert part in waits.message
