"""What looks on while samples come in: exporters, recordings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from switchgear.collector.blocks import Values
from switchgear.collector.windows import NodeWindow, SeriesKey, Times


class Tap(Protocol):
    """Called on the event loop at each block: it takes microseconds, does not wait and does not raise."""

    def row(self, window: NodeWindow) -> None:
        """A row was written: `window.newest` at `window.time_unix_ns`. The row is a view; copy what is kept."""

    def late(self, window: NodeWindow, series: Sequence[SeriesKey], times: Times, rows: Values) -> None:
        """Rows of the past came, of an outage. times: ns, shape (n,). rows: shape (n, len(series)), NaN = unknown; both are views."""


class Taps:
    """All taps of this process: what writes live rows into a window calls `row` after each."""

    def __init__(self, taps: Sequence[Tap] = ()) -> None:
        self._taps = tuple(taps)

    def row(self, window: NodeWindow) -> None:
        for tap in self._taps:
            tap.row(window)

    def late(self, window: NodeWindow, series: Sequence[SeriesKey], times: Times, rows: Values) -> None:
        for tap in self._taps:
            tap.late(window, series, times, rows)
