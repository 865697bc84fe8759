"""What the scheduler, recovery and the collector show on `/metrics`, from values alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from prometheus_client import CollectorRegistry

from switchgear.collector.detectors import signals_of
from switchgear.collector.metrics import AGENTS_MAX, CollectorMetrics
from switchgear.collector.model import Event
from switchgear.core.clock import ManualClock
from switchgear.recovery import model as m
from switchgear.recovery.ledger import Bucket, Ledger
from switchgear.recovery.metrics import RecoveryMetrics
from switchgear.scheduler.decide import Snapshot
from switchgear.scheduler.metrics import SchedulerMetrics
from switchgear.scheduler.model import (
    GpuRecord,
    Inventory,
    JobRecord,
    JobSpec,
    JobState,
    NodeRecord,
    NodeState,
    PlacedNode,
    PlacementRecord,
    QueueRecord,
    Rules,
    Turn,
    Workload,
)

SECOND_NS = 1_000_000_000
NODE = NodeRecord("nodes/n1", Inventory("127.0.0.1", (GpuRecord(0), GpuRecord(1)), "1"), 0)
SPEC = JobSpec(("train.py",), "/", (), "", 1, 2, 3, "", "")
QUEUED = JobRecord("jobs/train", SPEC, create_time_unix_ns=10 * SECOND_NS)
PLACED = replace(
    QUEUED,
    state=JobState.STARTING,
    placement=PlacementRecord(1, (PlacedNode("nodes/n1", (0, 1), "127.0.0.1", 1),)),
)


class Page:
    """A registry that can be asked for one sample."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    def labels_of(self, name: str) -> list[Mapping[str, str]]:
        return [s.labels for family in self.registry.collect() for s in family.samples if s.name == name]


def test_a_node_has_one_state_its_gpus_and_what_is_taken_of_them() -> None:
    page = Page()
    metrics = SchedulerMetrics(page.registry)
    queues = Rules((QueueRecord("queues/lab", guaranteed_gpus=4.0), QueueRecord("queues/vision", "queues/lab")))
    mine = replace(PLACED, spec=replace(PLACED.spec, queue="queues/vision"))
    metrics.seen(Snapshot((NODE,), (mine,), queues), 0.3)
    assert page("switchgear_scheduler_pass_seconds_sum") == 0.3
    assert page("switchgear_queue_gpus", queue="lab", kind="used") == 2
    assert page("switchgear_queue_gpus", queue="lab", kind="guaranteed") == 4
    assert page("switchgear_queue_jobs_pending", queue="vision") == 0
    assert page("switchgear_node_up", node="n1") == 1
    assert page("switchgear_node_gpus", node="n1") == 2
    assert page("switchgear_node_gpus_allocated", node="n1") == 2
    assert page("switchgear_jobs", state="STARTING") == 1
    lost = replace(NODE, reachable=False, standing=NodeState.CORDONED)
    metrics.seen(Snapshot((lost,), (replace(PLACED, state=JobState.FAILED),)), 0.1)
    assert page("switchgear_node_up", node="n1") == 0
    states = {state: page("switchgear_node_state", node="n1", state=state) for state in NodeState}
    assert states == {"HEALTHY": 0, "CORDONED": 0, "UNREACHABLE": 1}
    assert page("switchgear_node_gpus_allocated", node="n1") == 0
    assert page("switchgear_jobs", state="STARTING") == 0
    metrics.seen(Snapshot((), ()), 0.1)
    assert page.labels_of("switchgear_node_up") == []


def test_a_job_is_counted_once_when_it_ends_and_its_queue_time_when_it_is_first_placed() -> None:
    page = Page()
    metrics = SchedulerMetrics(page.registry)
    assert page("switchgear_jobs_ended_total", state="FAILED", workload="INFERENCE") == 0
    metrics.job_changed(None, QUEUED, 10 * SECOND_NS)
    metrics.job_changed(QUEUED, PLACED, 13 * SECOND_NS)
    moved = replace(PLACED, placement=replace(PLACED.placement, epoch=2))
    metrics.job_changed(PLACED, moved, 20 * SECOND_NS)
    assert page("switchgear_job_queue_seconds_count") == 1
    assert page("switchgear_job_queue_seconds_sum") == 3
    metrics.job_changed(moved, replace(moved, turn=Turn(preemptions=1)), 25 * SECOND_NS)
    assert page("switchgear_job_preemptions_total") == 1
    failed = replace(moved, state=JobState.FAILED, spec=replace(SPEC, workload=Workload.INFERENCE))
    metrics.job_changed(moved, failed, 30 * SECOND_NS)
    metrics.job_changed(failed, replace(failed, message="why"), 31 * SECOND_NS)
    assert page("switchgear_jobs_ended_total", state="FAILED", workload="INFERENCE") == 1


def training(clock: ManualClock) -> m.JobState:
    """A job that has made 40 steps, 10 of them twice, and keeps two checkpoints."""
    now_ns = clock.unix_ns()
    state = m.JobState("jobs/train", m.Spec(1, 1, 3, "/checkpoints"), create_ns=now_ns - 100 * SECOND_NS)
    rank = m.Rank("nodes/n1", step=40, step_time_ns=now_ns, first_step_ns=1, first_new_step_ns=now_ns - 50 * SECOND_NS)
    state.attempt = m.Attempt(2, m.AttemptState.RUNNING, ["nodes/n1"], now_ns, 30, "", 0, "", 20, {0: rank})
    state.generation, state.high_water_step = 2, 40
    state.ledger = Ledger(gpus=1, gpu_ns={Bucket.PRODUCTIVE: 50 * SECOND_NS, Bucket.REDO: 10 * SECOND_NS})
    state.checkpoints = {
        path: m.Checkpoint(path, kind, 20)
        for path, kind in (("a", m.CheckpointState.VERIFIED), ("b", m.CheckpointState.CORRUPT))
    }
    return state


def test_a_training_job_shows_its_steps_and_what_they_cost() -> None:
    page, clock = Page(), ManualClock()
    states = [training(clock)]
    RecoveryMetrics(page.registry, clock, lambda: states)
    assert page.labels_of("switchgear_job_info") == [{"job": "train", "account": "", "user": "", "queue": ""}]
    assert page("switchgear_job_step", job="train") == 40
    assert page("switchgear_job_generation", job="train") == 2
    assert page("switchgear_job_steps_total", job="train", kind="productive") == 40
    assert page("switchgear_job_steps_total", job="train", kind="redone") == 10
    assert page("switchgear_job_goodput_ratio", job="train") == 0.5
    assert page("switchgear_job_gpu_seconds_total", job="train", bucket="productive") == 50
    assert page("switchgear_job_gpu_seconds_total", job="train", bucket="redo") == 10
    assert page("switchgear_job_gpu_seconds_total", job="train", bucket="hung") == 0
    assert page("switchgear_checkpoints", job="train", state="CORRUPT") == 1
    states.clear()
    assert page.labels_of("switchgear_job_step") == []


def test_an_unknown_step_has_no_number_and_a_replica_has_no_steps() -> None:
    page, clock = Page(), ManualClock()
    unknown, replica = training(clock), training(clock)
    assert unknown.attempt is not None
    unknown.attempt.ranks[0].step = None
    replica.job, replica.spec = "jobs/chat-r1", m.Spec(1, 1, 0, "", inference=True)
    RecoveryMetrics(page.registry, clock, lambda: [unknown, replica])
    assert page.labels_of("switchgear_job_step") == []
    assert page.labels_of("switchgear_job_goodput_ratio") == [{"job": "train"}]
    assert {labels["job"] for labels in page.labels_of("switchgear_job_gpu_seconds_total")} == {"train"}
    assert page("switchgear_job_generation", job="chat-r1") == 2


def test_an_incident_is_open_for_as_long_as_it_is_and_is_counted_at_its_end() -> None:
    page, clock = Page(), ManualClock()
    state, start_ns = training(clock), clock.unix_ns()
    times_ns = {
        phase: start_ns + second * SECOND_NS
        for second, phase in enumerate(("fault", "detected", "stopped", "decided", "started", "loaded"))
    }
    incident = state.incident = m.Incident(
        "train-1", "jobs/train", m.IncidentState.ACTING, m.Fault.GPU_LOST, timeline=times_ns
    )
    metrics = RecoveryMetrics(page.registry, clock, lambda: [state])
    clock.advance(8)
    assert page("switchgear_incidents_open") == 1
    assert page("switchgear_incident_open_seconds", job="train") == 7
    metrics.kept([m.SaveIncident(incident)])
    assert page.labels_of("switchgear_incidents_closed_total") == []
    incident.decision, incident.state = m.Decision.REPLACE_NODE, m.IncidentState.RESOLVED
    metrics.kept([m.SaveIncident(incident)])
    closed = {"fault": "GPU_LOST", "decision": "REPLACE_NODE", "state": "RESOLVED"}
    assert page("switchgear_incidents_closed_total", **closed) == 1
    assert page("switchgear_recovery_seconds_sum", phase="started") == 4
    assert page("switchgear_recovery_seconds_count", phase="first_new_step") == 0


def test_an_agent_that_has_gone_is_shown_as_gone_and_such_agents_are_bounded() -> None:
    page = Page()
    metrics = CollectorMetrics(page.registry)
    metrics.agent("nodes/stays", connected=True)
    for number in range(AGENTS_MAX + 5):
        metrics.agent(f"nodes/n{number}", connected=True)
        metrics.agent(f"nodes/n{number}", connected=False)
    assert page("switchgear_agent_connected", node="stays") == 1
    assert page("switchgear_agent_connected", node="n10") == 0
    assert len(page.labels_of("switchgear_agent_connected")) == AGENTS_MAX


def test_signals_are_counted_by_kind_and_severity_from_zero_on() -> None:
    page = Page()
    metrics = CollectorMetrics(page.registry)
    assert page("switchgear_signals_total", kind="GPU_LOST", severity="FATAL") == 0
    event = Event("nodes/n1", "boot", "kernel_log", 1, 5, "XID", 0, 79, "GPU has fallen off the bus", simulated=True)
    metrics.raised(signals_of(event))
    assert page("switchgear_signals_total", kind="GPU_LOST", severity="FATAL") == 1
