"""What exporters count. Every sample that a target was to get is counted once: sent, failed or dropped; until then it waits.

Of the samples that were sent a target has each once, and beside these at most those in doubt, once more for each time they were.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge
from prometheus_client.registry import CollectorRegistry

from switchgear.collector.export.queue import BatchQueue

REMOTE_WRITE = "switchgear_remote_write"
OTLP_EXPORT = "switchgear_otlp_export"


class ExportMetrics:
    """Of all targets of one kind. prefix: of the names. Labels: `target` is what its settings name it."""

    def __init__(self, registry: CollectorRegistry, prefix: str) -> None:
        target = ["target"]
        self.samples = Counter(
            f"{prefix}_samples",
            "Samples that a target was to get, by what became of them",
            [*target, "outcome"],
            registry=registry,
        )
        self.lost = Counter(
            f"{prefix}_samples_lost",
            "Samples that failed or were dropped, by why",
            [*target, "reason"],
            registry=registry,
        )
        self.in_doubt = Counter(
            f"{prefix}_samples_in_doubt",
            "Samples of requests that may have arrived although no answer says so, each time",
            target,
            registry=registry,
        )
        self.requests = Counter(f"{prefix}_requests", "Requests, by answer", [*target, "code"], registry=registry)
        self.queue_bytes = Gauge(
            f"{prefix}_queue_bytes", "What waits for the target or is under way takes", target, registry=registry
        )
        self.queue_samples = Gauge(
            f"{prefix}_queue_samples", "Samples that wait for the target or are under way", target, registry=registry
        )
        self.lag = Gauge(
            f"{prefix}_lag_seconds",
            "Newest sample made less newest sample delivered, of the slowest connection",
            target,
            registry=registry,
        )


class TargetMetrics:
    """Of one target."""

    def __init__(self, metrics: ExportMetrics, target: str, queue: BatchQueue) -> None:
        self._metrics = metrics
        self._target = target
        self._sent, self._failed, self._dropped = (
            metrics.samples.labels(target, outcome) for outcome in ("sent", "failed", "dropped")
        )
        self._in_doubt = metrics.in_doubt.labels(target)
        metrics.queue_bytes.labels(target).set_function(lambda: queue.nbytes)
        metrics.queue_samples.labels(target).set_function(lambda: queue.samples)
        metrics.lag.labels(target).set_function(lambda: queue.lag_s)

    def sent(self, samples: int) -> None:
        self._sent.inc(samples)

    def failed(self, samples: int, reason: str) -> None:
        """The target refused them."""
        if samples:
            self._failed.inc(samples)
            self._metrics.lost.labels(self._target, reason).inc(samples)

    def dropped(self, samples: int, reason: str) -> None:
        """They were not sent, or nobody knows."""
        if samples:
            self._dropped.inc(samples)
            self._metrics.lost.labels(self._target, reason).inc(samples)

    def in_doubt(self, samples: int) -> None:
        """They may have arrived; what becomes of them in the end is counted beside this."""
        self._in_doubt.inc(samples)

    def request(self, code: str) -> None:
        self._metrics.requests.labels(self._target, code).inc()
