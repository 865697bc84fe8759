"""What exporters count. Every sample that a target was to get is counted once: sent, failed or dropped."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Counter, Gauge
from prometheus_client.registry import CollectorRegistry

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
        self.requests = Counter(f"{prefix}_requests", "Requests, by answer", [*target, "code"], registry=registry)
        self.queue_bytes = Gauge(
            f"{prefix}_queue_bytes", "Samples that wait for the target or are under way", target, registry=registry
        )
        self.lag = Gauge(
            f"{prefix}_lag_seconds",
            "Newest sample made less newest sample delivered, of the slowest connection",
            target,
            registry=registry,
        )


class TargetMetrics:
    """Of one target."""

    def __init__(
        self, metrics: ExportMetrics, target: str, queue_bytes: Callable[[], float], lag_s: Callable[[], float]
    ) -> None:
        self._metrics = metrics
        self._target = target
        self._sent, self._failed, self._dropped = (
            metrics.samples.labels(target, outcome) for outcome in ("sent", "failed", "dropped")
        )
        metrics.queue_bytes.labels(target).set_function(queue_bytes)
        metrics.lag.labels(target).set_function(lag_s)

    def sent(self, samples: int) -> None:
        self._sent.inc(samples)

    def failed(self, samples: int, reason: str) -> None:
        """The target refused them."""
        if samples:
            self._failed.inc(samples)
            self._metrics.lost.labels(self._target, reason).inc(samples)

    def dropped(self, samples: int, reason: str) -> None:
        """They were not sent."""
        if samples:
            self._dropped.inc(samples)
            self._metrics.lost.labels(self._target, reason).inc(samples)

    def request(self, code: str) -> None:
        self._metrics.requests.labels(self._target, code).inc()
