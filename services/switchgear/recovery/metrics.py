"""Recovery's own metrics. Labels are ids without their collection: `llama`, not `jobs/llama`."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from switchgear.core.clock import Clock
from switchgear.recovery import model as m
from switchgear.recovery.goodput import goodput
from switchgear.recovery.ledger import Bucket
from switchgear.recovery.machine import steps_redone

_CLOSED = (m.IncidentState.RESOLVED, m.IncidentState.ESCALATED)
#: What recovery took is told from the first sign of the fault up to each of these.
PHASES = ("detected", "stopped", "started", "first_step", "first_new_step")


class RecoveryMetrics(Collector):
    """Registers itself. live: the newest states of all jobs that have not ended; only they have series of their own."""

    def __init__(self, registry: CollectorRegistry, clock: Clock, live: Callable[[], Iterable[m.JobState]]) -> None:
        self._clock, self._live = clock, live
        self._closed = Counter(
            "switchgear_incidents_closed",
            "Incidents that came to their end, since this process started",
            ["fault", "decision", "state"],
            registry=registry,
        )
        self._recovery = Histogram(
            "switchgear_recovery_seconds",
            "From the first sign of a fault to the end of each phase, of closed incidents",
            ["phase"],
            buckets=(0.25, 0.5, 1, 2, 3, 5, 8, 13, 20, 30, 60, 120, 300, 900, 3600),
            registry=registry,
        )
        for phase in PHASES:
            self._recovery.labels(phase)
        registry.register(self)

    def kept(self, records: Sequence[m.Effect]) -> None:
        """Records that have been stored."""
        for record in records:
            if isinstance(record, m.SaveIncident) and record.incident.state in _CLOSED:
                self._close(record.incident)

    def _close(self, incident: m.Incident) -> None:
        decision = incident.decision.value if incident.decision else "NONE"
        self._closed.labels(incident.fault.value, decision, incident.state.value).inc()
        times_ns = incident.timeline
        start_ns = times_ns.get("fault", times_ns["detected"])
        for phase in PHASES:
            if phase in times_ns:
                self._recovery.labels(phase).observe(max(0, times_ns[phase] - start_ns) / 1e9)

    def collect(self) -> Iterator[Metric]:
        now_ns = self._clock.unix_ns()
        states = list(self._live())
        incidents = [state.incident for state in states if state.incident]
        yield GaugeMetricFamily("switchgear_incidents_open", "Incidents that are not closed", value=len(incidents))
        age = GaugeMetricFamily(
            "switchgear_incident_open_seconds", "Since the detection of the job's open incident", labels=["job"]
        )
        for incident in incidents:
            age.add_metric([_job(incident.job)], max(0, now_ns - incident.timeline["detected"]) / 1e9)
        yield age
        yield from _jobs(states, now_ns)


def _jobs(states: Sequence[m.JobState], now_ns: int) -> Iterator[Metric]:
    info = GaugeMetricFamily(
        "switchgear_job_info",
        "1 for each job that has had nodes and has not ended: whose it is",
        labels=["job", "account", "user", "queue"],
    )
    generation = GaugeMetricFamily("switchgear_job_generation", "Number of the job's newest attempt", labels=["job"])
    step = GaugeMetricFamily(
        "switchgear_job_step", "Newest step that all ranks have completed; absent while unknown", labels=["job"]
    )
    steps = CounterMetricFamily(
        "switchgear_job_steps", "Steps that were new when they were made, and steps made again", labels=["job", "kind"]
    )
    ratio = GaugeMetricFamily(
        "switchgear_job_goodput_ratio", "Share of the job's age in which new steps were made", labels=["job"]
    )
    gpu_time = CounterMetricFamily(
        "switchgear_job_gpu_seconds",
        "GPU time of the job by what became of it, as far as that is decided; see docs/goodput.md",
        labels=["job", "bucket"],
    )
    checkpoints = GaugeMetricFamily(
        "switchgear_checkpoints", "Newest checkpoints that recovery keeps in mind, by state", labels=["job", "state"]
    )
    for state in states:
        job = _job(state.job)
        spec = state.spec
        info.add_metric([job, spec.account, spec.user, spec.queue.partition("/")[2]], 1)
        generation.add_metric([job], state.generation)
        if state.spec.inference:
            continue  # it makes no steps
        common = state.attempt.common_step() if state.attempt else None
        if common is not None:
            step.add_metric([job], common)
        steps.add_metric([job, "productive"], state.high_water_step)
        steps.add_metric([job, "redone"], steps_redone(state))
        ratio.add_metric([job], goodput(state, now_ns))
        for bucket in Bucket:
            gpu_time.add_metric([job, bucket.value], state.ledger.gpu_ns.get(bucket, 0) / 1e9)
        tally = Tally(checkpoint.state for checkpoint in state.checkpoints.values())
        for kind in m.CheckpointState:
            checkpoints.add_metric([job, kind.value], tally[kind])
    yield from (info, generation, step, steps, ratio, gpu_time, checkpoints)


def _job(name: str) -> str:
    return name.partition("/")[2]
