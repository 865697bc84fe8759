"""How much memory the windows may take, and how much they take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry
from pydantic import Field

from switchgear.collector.settings import Section
from switchgear.collector.windows import Windows

_CGROUP = Path("/sys/fs/cgroup/memory.max")


class WindowSettings(Section):
    """memory_gib: for the windows of all nodes together; 1 GiB holds about 1,300 nodes with 320 series each.

    Half of the machine's memory (or of the container's, where that is less) when left out.
    """

    memory_gib: float | None = Field(default=None, ge=0.01)

    def bytes_max(self) -> int:
        return int(self.memory_gib * 1024**3) if self.memory_gib else _memory_bytes() // 2


def _memory_bytes() -> int:
    total: int = psutil.virtual_memory().total
    try:
        return min(total, int(_CGROUP.read_text()))
    except (OSError, ValueError):  # no cgroup of ours, or "max"
        return total


class WindowMetrics(Collector):
    """Registered in `registry`."""

    def __init__(self, registry: CollectorRegistry, windows: Windows) -> None:
        self._windows = windows
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        windows = self._windows
        for name, text, value in (
            ("nodes", "Nodes that have a window", windows.nodes),
            ("series", "Series in all windows", windows.series),
            ("bytes", "Memory that is set aside for windows: what they take once they are full", windows.nbytes),
            ("bytes_max", "Memory that may be set aside; nodes beyond it are refused", windows.bytes_max),
        ):
            yield GaugeMetricFamily(f"switchgear_collector_window_{name}", text, value)
