"""The scheduler's own metrics. Labels are ids without their collection: `gpu-01`, not `nodes/gpu-01`."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator

from prometheus_client import Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from switchgear.scheduler.decide import Snapshot
from switchgear.scheduler.model import FINAL_STATES, JobRecord, JobState, NodeState, Workload
from switchgear.scheduler.rules import use_of

_WAITING_STATES = [state for state in JobState if state not in FINAL_STATES]


class SchedulerMetrics(Collector):
    """Registers itself. What is now comes from the snapshot of the scheduler's last pass, so that a scrape asks no database.

    The series of a node vanish when it is forgotten; jobs have none of their own.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._snapshot = Snapshot((), ())
        self._ended = Counter(
            "switchgear_jobs_ended",
            "Jobs that came to a final state, since this process started",
            ["state", "workload"],
            registry=registry,
        )
        for state in FINAL_STATES:
            for workload in Workload:  # from 0 on, or the first failure would be no increase
                self._ended.labels(state.value, workload.value)
        self._queued = Histogram(
            "switchgear_job_queue_seconds",
            "From the creation of a job to its first placement",
            buckets=(0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600),
            registry=registry,
        )
        self._preempted = Counter(
            "switchgear_job_preemptions", "Times that a job left its nodes for another", registry=registry
        )
        self._pass = Histogram(
            "switchgear_scheduler_pass_seconds",
            "A pass of the scheduler that found something new: reading, planning and writing",
            buckets=(0.01, 0.05, 0.1, 0.5, 1, 2, 5, 15, 60),
            registry=registry,
        )
        registry.register(self)

    def seen(self, snapshot: Snapshot, took_s: float) -> None:
        """What is stored now, after a pass that took so long."""
        self._snapshot = snapshot
        self._pass.observe(took_s)

    def job_changed(self, before: JobRecord | None, after: JobRecord, now_unix_ns: int) -> None:
        """A committed write of a job. before: None when it was created."""
        if after.ended and not (before and before.ended):
            self._ended.labels(after.state.value, after.spec.workload.value).inc()
        if before and after.turn.preemptions > before.turn.preemptions:
            self._preempted.inc()
        if after.placement.epoch == 1 and not (before and before.placement.epoch):
            self._queued.observe(max(0, now_unix_ns - after.create_time_unix_ns) / 1e9)

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot
        jobs = [job for job in snapshot.jobs if not job.ended]
        allocated = Tally[str]()
        for job in jobs:
            for seat in job.placement.nodes:
                allocated[seat.node] += len(seat.gpu_indices)
        up = GaugeMetricFamily("switchgear_node_up", "1 while the node's agent is heard", labels=["node"])
        state = GaugeMetricFamily(
            "switchgear_node_state", "1 for the state that the node is in", labels=["node", "state"]
        )
        gpus = GaugeMetricFamily("switchgear_node_gpus", "GPUs of the node", labels=["node"])
        taken = GaugeMetricFamily(
            "switchgear_node_gpus_allocated", "GPUs of the node that running placements hold", labels=["node"]
        )
        for node in snapshot.nodes:
            node_id = node.name.partition("/")[2]
            up.add_metric([node_id], float(node.reachable))
            for one in NodeState:
                state.add_metric([node_id, one.value], float(node.state is one))
            gpus.add_metric([node_id], len(node.inventory.gpus))
            taken.add_metric([node_id], allocated[node.name])
        waiting = GaugeMetricFamily("switchgear_jobs", "Jobs that have not ended, by state", labels=["state"])
        by_state = Tally(job.state for job in jobs)
        for job_state in _WAITING_STATES:
            waiting.add_metric([job_state.value], by_state[job_state])
        queue_gpus = GaugeMetricFamily(
            "switchgear_queue_gpus", "GPUs of a queue: guaranteed to it, and used by its jobs", labels=["queue", "kind"]
        )
        queued = GaugeMetricFamily("switchgear_queue_jobs_pending", "Jobs of a queue that wait", labels=["queue"])
        use = use_of(jobs, snapshot.rules.queues)
        for queue in snapshot.rules.queues:
            queue_id, (used, pending) = queue.name.partition("/")[2], use[queue.name]
            queue_gpus.add_metric([queue_id, "guaranteed"], queue.guaranteed_gpus)
            queue_gpus.add_metric([queue_id, "used"], used)
            queued.add_metric([queue_id], pending)
        yield from (up, state, gpus, taken, waiting, queue_gpus, queued)
