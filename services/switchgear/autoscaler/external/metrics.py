"""What `switchgear inference scale` shows at `/metrics`. Label `service`: names of the configuration."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from switchgear.autoscaler.external.board import Board
from switchgear.core.clock import Clock


class ExternalMetrics:
    """Counted as it happens. cause: classes of the policy's decisions, some dozens."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.decisions = Counter(
            "switchgear_autoscaler_decisions",
            "Decisions about services that others run, by what led to them",
            ["service", "cause"],
            registry=registry,
        )
        self.look = Histogram(
            "switchgear_autoscaler_look_seconds",
            "One look at all replicas of a service that others run",
            ["service"],
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=registry,
        )


class BoardCollector(Collector):
    """What is in force when the page is read. A number that nobody stands for is absent: an HPA then keeps the replicas that there are."""

    def __init__(self, board: Board, clock: Clock) -> None:
        self._board, self._clock = board, clock

    def collect(self) -> Iterable[GaugeMetricFamily]:
        def gauge(name: str, text: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(name, text, labels=["service"])

        desired = gauge(
            "switchgear_desired_replicas", "Replicas that the service should have; absent while nobody knows"
        )
        current = gauge("switchgear_current_replicas", "Replicas that answered the last look")
        blind = gauge("switchgear_inference_blind", "1 while the service is not seen as a whole, 0 while it is")
        age = gauge("switchgear_autoscaler_scrape_age_seconds", "Since the last look at which nothing was missing")
        now_s = self._clock.monotonic_s()
        for service, published in self._board.now().items():
            blind.add_metric([service], float(published is None or bool(published.blind)))
            if published is None:
                continue
            desired.add_metric([service], published.desired)
            current.add_metric([service], published.current)
            if published.seen_s is not None:
                age.add_metric([service], now_s - published.seen_s)
        return desired, current, blind, age
