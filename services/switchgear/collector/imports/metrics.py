"""What imports tell of themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge

#: Why something that came was not taken in.
REASONS = (
    "elsewhere",
    "histogram",
    "labels",
    "malformed",
    "memory",
    "no_node",
    "nodes",
    "out_of_order",
    "series",
    "time",
)
#: How a scrape ended.
OUTCOMES = ("ok", "unreachable", "timeout", "status", "redirect", "too_large", "garbage", "settings", "error")


class ImportMetrics:
    """Registered in `registry`, one set for each. scrapes: names of all `[[scrape]]`."""

    def __init__(self, registry: CollectorRegistry, scrapes: Iterable[str] = ()) -> None:
        self.scrapes = Counter(
            "switchgear_import_scrapes", "Scrapes, by how they ended", ["scrape", "outcome"], registry=registry
        )
        for scrape in scrapes:
            for outcome in OUTCOMES:
                self.scrapes.labels(scrape, outcome)
        self.samples = Counter("switchgear_import_samples", "Samples that came in", ["source"], registry=registry)
        self.rejected = Counter(
            "switchgear_import_rejected",
            "Samples, or lines of a page, that were not taken in, by why",
            ["reason"],
            registry=registry,
        )
        for reason in REASONS:
            self.rejected.labels(reason)
        self.epochs = Counter(
            "switchgear_import_epochs",
            "Windows that began anew because their series keep changing",
            registry=registry,
        )
        self.events = Counter(
            "switchgear_import_events", "Faults that were found in imported series", ["source"], registry=registry
        )
        self._nodes = Gauge("switchgear_import_nodes", "Nodes of which somebody else tells", registry=registry)
        self._series = Gauge("switchgear_import_series", "Series in the windows of imports", registry=registry)

    def watch(self, nodes: Callable[[], int], series: Callable[[], int]) -> None:
        self._nodes.set_function(nodes)
        self._series.set_function(series)
