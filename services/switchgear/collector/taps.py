"""What looks on while samples come in: exporters, recordings."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from switchgear.collector.blocks import Values
from switchgear.collector.windows import NodeWindow, SeriesKey, Times

log = logging.getLogger(__name__)


class Tap(Protocol):
    """Called on the event loop at each block: it takes microseconds, does not wait and does not raise."""

    def row(self, window: NodeWindow) -> None:
        """A row was written: `window.newest` at `window.time_unix_ns`. The row is a view; copy what is kept."""

    def late(self, window: NodeWindow, series: Sequence[SeriesKey], times: Times, rows: Values) -> None:
        """Rows of the past came, of an outage. times: ns, shape (n,). rows: shape (n, len(series)), NaN = unknown; both are views."""


class Taps:
    """All taps of this process: what writes live rows into a window calls `row` after each.

    One that raises all the same loses that row and is in the log; streams and the other taps go on.
    """

    def __init__(self, taps: Sequence[Tap] = ()) -> None:
        self._taps = tuple(taps)
        self._failures = 0

    def row(self, window: NodeWindow) -> None:
        for tap in self._taps:
            try:
                tap.row(window)
            except Exception:
                self._failed(tap, window)

    def late(self, window: NodeWindow, series: Sequence[SeriesKey], times: Times, rows: Values) -> None:
        for tap in self._taps:
            try:
                tap.late(window, series, times, rows)
            except Exception:
                self._failed(tap, window)

    def _failed(self, tap: Tap, window: NodeWindow) -> None:
        self._failures += 1
        if self._failures.bit_count() == 1:  # the 1st, 2nd, 4th …: there may be thousands a second
            log.exception("%s cannot take a row of %s (failure %d)", type(tap).__name__, window.node, self._failures)
