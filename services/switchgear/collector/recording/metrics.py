"""What recording shows of itself."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class RecordingMetrics:
    """Registered in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.samples = Counter("switchgear_recording_samples", "Samples that were written", registry=registry)
        self.lost = Counter(
            "switchgear_recording_lost",
            "Samples and events that were not: the disk was full or too slow",
            ["what"],
            registry=registry,
        )
        self.bytes = Gauge("switchgear_recording_bytes", "Size of all files in the folder", registry=registry)
        for what in ("samples", "events"):
            self.lost.labels(what)
