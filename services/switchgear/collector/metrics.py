"""The collector's own metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from switchgear.collector.delays import BOUNDS_S, Delays
from switchgear.collector.detectors import KINDS
from switchgear.collector.model import Severity, Signal
from switchgear.collector.windows import Outcome

#: Agents that are remembered when they have gone; the scheduler has no more nodes.
AGENTS_MAX = 10_000
#: Nodes whose clocks are told to be off. When there are more, it is ours.
CLOCKS_MAX = 1000


class CollectorMetrics(Collector):
    """Registered in `registry`, one set for each."""

    def __init__(self, registry: CollectorRegistry) -> None:
        #: 1 for a connected agent, 0 for one that has gone, which stays until it comes back or this process ends.
        self._agents: dict[str, int] = {}
        self.streams = Gauge("switchgear_collector_streams", "Agents that are connected", registry=registry)
        self.redirects = Counter(
            "switchgear_collector_redirects",
            "Agents that were sent on to the collector of their node",
            registry=registry,
        )
        #: Counted without a lock: there is one event loop, and this happens thousands of times a second.
        self._blocks = dict.fromkeys(Outcome, 0)
        self._samples = 0
        #: From the tick of each block to its row.
        self.delays = Delays()
        self._blocks_lost = Counter(
            "switchgear_collector_blocks_lost", "Blocks that agents made and no window has", registry=registry
        )
        self._blocks_late = Counter(
            "switchgear_collector_blocks_late",
            "Blocks that came behind the live ones, from an agent's spool",
            registry=registry,
        )
        self.events = Counter("switchgear_collector_events", "Events that were stored", registry=registry)
        self.events_delayed = Counter(
            "switchgear_collector_events_delayed",
            "Events that waited at their agents, which sent more than they may",
            registry=registry,
        )
        self.loop_lag = Histogram(
            "switchgear_collector_loop_lag_seconds",
            "By how much a look once a second was late: what every stream waited then",
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
            registry=registry,
        )
        self._events_waiting = Gauge(
            "switchgear_collector_events_waiting", "Events in memory that are not stored yet", registry=registry
        )
        self._interval_asked = Gauge(
            "switchgear_collector_interval_asked_seconds",
            "Shortest interval that all agents are asked for, since this collector falls behind; 0: their own",
            registry=registry,
        )
        self._clock_offsets: dict[str, float] = {}
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
        connected = GaugeMetricFamily(
            "switchgear_agent_connected", "1 while the node's agent has a telemetry stream here", labels=["node"]
        )
        for node, up in self._agents.copy().items():
            connected.add_metric([node.partition("/")[2]], up)
        yield connected
        offsets = GaugeMetricFamily(
            "switchgear_collector_clock_offset_seconds",
            "How far a node's clock is behind the collector's, of nodes where it is too far off; their times are corrected by it",
            labels=["node"],
        )
        for node, offset_s in list(self._clock_offsets.items())[:CLOCKS_MAX]:
            offsets.add_metric([node.partition("/")[2]], offset_s)
        yield offsets
        blocks = CounterMetricFamily(
            "switchgear_collector_blocks", "Blocks that came, by what became of them", labels=["outcome"]
        )
        for outcome, count in self._blocks.items():
            blocks.add_metric([outcome.name.lower()], count)
        yield blocks
        yield CounterMetricFamily(
            "switchgear_collector_samples",
            "Values that came with blocks or are known not to have changed, one of each series a block",
            value=self._samples,
        )
        counts = accumulate(self.delays.counts)
        yield HistogramMetricFamily(
            "switchgear_collector_block_delay_seconds",
            "From the tick of a live block, on its node's clock, to its row",
            buckets=list(zip([*map(str, BOUNDS_S), "+Inf"], counts, strict=True)),
            sum_value=self.delays.sum_s,
        )

    def backlog(self, late: int, lost: int) -> None:
        """An agent sent what it had kept, and said what it had given up."""
        self._blocks_late.inc(late)
        self._blocks_lost.inc(lost)

    def block_taken(self, series: int, delay_s: float) -> None:
        """A live block became a row."""
        self._blocks[Outcome.APPLIED] += 1
        self._samples += series
        self.delays.add(delay_s)

    def block_missed(self, outcome: Outcome, lost: int) -> None:
        """A live block became none, or others before it are missing."""
        if outcome is not Outcome.APPLIED:
            self._blocks[outcome] += 1
        if lost:
            self._blocks_lost.inc(lost)

    def looked(self, interval_s_min: float, clock_offsets: dict[str, float], events_waiting: int) -> None:
        """What is looked at once a second. clock_offsets: seconds by `nodes/{node}`."""
        self._interval_asked.set(interval_s_min)
        self._clock_offsets = clock_offsets
        self._events_waiting.set(events_waiting)
