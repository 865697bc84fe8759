"""The collector's own metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from switchgear.collector.windows import Outcome


class CollectorMetrics:
    """Registered in `registry`, one set for each."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.streams = Gauge("switchgear_collector_streams", "Agents that are connected", registry=registry)
        self._blocks = Counter(
            "switchgear_collector_blocks", "Blocks that came, by what became of them", ["outcome"], registry=registry
        )
        self._blocks_lost = Counter(
            "switchgear_collector_blocks_lost", "Blocks that agents made and no window has", registry=registry
        )
        self.events = Counter("switchgear_collector_events", "Events that were stored", registry=registry)
        self.event_duplicates = Counter(
            "switchgear_collector_event_duplicates", "Events that were stored already", registry=registry
        )
        self.events_refused = Counter(
            "switchgear_collector_events_refused",
            "Events that the database does not take, dropped so that the others go on",
            registry=registry,
        )
        self.signals = Counter("switchgear_collector_signals", "Signals that were raised", registry=registry)

    def block(self, result: tuple[Outcome, int]) -> None:
        outcome, lost = result
        self._blocks.labels(outcome.name.lower()).inc()
        if lost:
            self._blocks_lost.inc(lost)
