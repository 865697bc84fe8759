"""What looks on cannot harm what it looks at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from switchgear.collector.blocks import Values
from switchgear.collector.taps import Taps
from switchgear.collector.windows import NodeWindow, SeriesKey, Times


class Broken:
    def row(self, window: NodeWindow) -> None:
        raise OverflowError(window.node)

    def late(self, window: NodeWindow, series: Sequence[SeriesKey], times: Times, rows: Values) -> None:
        raise OverflowError(window.node)


class Counting:
    def __init__(self) -> None:
        self.rows = self.late_rows = 0

    def row(self, window: NodeWindow) -> None:
        self.rows += 1

    def late(self, window: NodeWindow, series: Sequence[SeriesKey], times: Times, rows: Values) -> None:
        self.late_rows += len(rows)


def test_a_tap_that_raises_costs_neither_the_stream_nor_the_other_taps_and_does_not_fill_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    window, counting = NodeWindow("epoch", node="nodes/a"), Counting()
    taps = Taps([Broken(), counting])
    for _ in range(1000):
        taps.row(window)
    taps.late(window, (), np.zeros(3, np.int64), np.zeros((3, 0)))
    assert (counting.rows, counting.late_rows) == (1000, 3)
    assert 1 <= len(caplog.records) <= 11
    assert "Broken cannot take a row of nodes/a (failure 1)" in caplog.text
