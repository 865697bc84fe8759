"""The agent's own metrics, read from its parts when they are scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from switchgear.agent.outbox import Outbox
from switchgear.agent.stream import TelemetryStream


class AgentMetrics(Collector):
    """Registers itself; `deadline_misses` is counted by the ticker, by source."""

    def __init__(
        self, registry: CollectorRegistry, outbox: Outbox, stream: TelemetryStream, launchers_warm: Callable[[], int]
    ) -> None:
        self._outbox = outbox
        self._stream = stream
        self._launchers_warm = launchers_warm
        self.deadline_misses = Counter(
            "switchgear_agent_source_deadline_misses",
            "Samples that a source did not answer within its deadline",
            ["source"],
            registry=registry,
        )
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        outbox, spool, samples = self._outbox, self._outbox.spool, self._outbox.samples
        for name, value, what in (
            ("blocks_sent", outbox.blocks_sent, "Blocks written to the collector's stream"),
            ("blocks_made", outbox.blocks_made, "Blocks made since the start, one a tick"),
            ("blocks_lost", samples.lost, "Blocks given up because the collector was away for too long"),
            ("events_dropped", spool.dropped, "Events that found the spool full"),
            ("spool_write_errors", spool.write_errors, "Writes of events that the disk refused"),
            ("samples_write_errors", samples.write_errors, "Writes of blocks that the disk refused"),
        ):
            yield CounterMetricFamily(f"switchgear_agent_{name}", what, value=value)
        for name, level, what in (
            ("collector_connected", int(self._stream.connected), "1 while the collector answers"),
            ("blocks_queued", samples.blocks_waiting, "Blocks that are not acked yet"),
            ("samples_bytes", samples.nbytes, "Bytes of blocks on disk"),
            ("spool_bytes", spool.pending_bytes, "Bytes of events that are not acked yet"),
            ("series", len(outbox.sampler.dictionary()), "Series in the dictionary"),
            ("launchers_warm", self._launchers_warm(), "Launchers without a job whose imports are done"),
            ("series_refused", outbox.sampler.refused, "Series that did not fit into the dictionary"),
        ):
            yield GaugeMetricFamily(f"switchgear_agent_{name}", what, value=level)
