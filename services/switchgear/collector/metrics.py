"""The collector's own metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import Counter, Gauge
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from switchgear.collector.detectors import KINDS
from switchgear.collector.model import Severity, Signal
from switchgear.collector.windows import Outcome

#: Agents that are remembered when they have gone; the scheduler has no more nodes.
AGENTS_MAX = 10_000


class CollectorMetrics(Collector):
    """Registered in `registry`, one set for each."""

    def __init__(self, registry: CollectorRegistry) -> None:
        #: 1 for a connected agent, 0 for one that has gone, which stays until it comes back or this process ends.
        self._agents: dict[str, int] = {}
        self.streams = Gauge("switchgear_collector_streams", "Agents that are connected", registry=registry)
        self._blocks = Counter(
            "switchgear_collector_blocks", "Blocks that came, by what became of them", ["outcome"], registry=registry
        )
        self._blocks_lost = Counter(
            "switchgear_collector_blocks_lost", "Blocks that agents made and no window has", registry=registry
        )
        self._blocks_late = Counter(
            "switchgear_collector_blocks_late",
            "Blocks that came behind the live ones, from an agent's spool",
            registry=registry,
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
        self._signals = Counter(
            "switchgear_signals", "Signals that were raised", ["kind", "severity"], registry=registry
        )
        for kind in KINDS:  # from 0 on, or the first signal would be no increase
            for severity in Severity:
                self._signals.labels(kind, severity.value)
        registry.register(self)

    def agent(self, node: str, *, connected: bool) -> None:
        """An agent of `nodes/{node}` came or went, or should be here and is not."""
        self._agents.pop(node, None)
        self._agents[node] = int(connected)
        if len(self._agents) > AGENTS_MAX:
            gone = next((node for node, up in self._agents.items() if not up), node)
            del self._agents[gone]

    def raised(self, signals: Iterable[Signal]) -> None:
        for signal in signals:
            self._signals.labels(signal.kind, signal.severity.value).inc()

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "switchgear_agent_connected", "1 while the node's agent has a telemetry stream here", labels=["node"]
        )
        for node, up in self._agents.copy().items():
            family.add_metric([node.partition("/")[2]], up)
        yield family

    def backlog(self, late: int, lost: int) -> None:
        """An agent sent what it had kept, and said what it had given up."""
        self._blocks_late.inc(late)
        self._blocks_lost.inc(lost)

    def block(self, result: tuple[Outcome, int]) -> None:
        outcome, lost = result
        self._blocks.labels(outcome.name.lower()).inc()
        if lost:
            self._blocks_lost.inc(lost)
