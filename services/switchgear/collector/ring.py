"""The newest rows of a node at full resolution, in half of the memory that float64 takes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from switchgear.collector.blocks import Ids, Values

Times = npt.NDArray[np.int64]
#: What a read takes: all series, or these.
Columns = slice | Ids
#: Rows of which the counters are kept as differences to the same value.
_SEGMENT = 120


class Ring:
    """Rows of float32: a gauge as it is, a counter as its difference to its value at the begin of a segment of 120 rows.

    So a value comes back with a relative error of at most 2^-24, and a counter, however large, to 2^-24 of what it rose within the
    segment. Infinities and NaN come back; what is beyond float32 comes back infinite.
    """

    def __init__(self, ticks: int) -> None:
        self._ticks = ticks
        self._span = min(ticks, _SEGMENT)
        self._segments = -(-ticks // self._span) + 1
        #: Rows that were ever written; the place of row r is r modulo `ticks`.
        self._rows = 0
        self._times: Times = np.zeros(ticks, np.int64)
        self._differences = np.empty((ticks, 0), np.float32)
        self._bases: Values = np.empty((self._segments, 0))
        #: A counter of the newest segment that falls below this was reset.
        self._limits: Values = np.empty(0)
        #: Which of the series that are defined are counters.
        self.counters: npt.NDArray[np.bool_] = np.empty(0, np.bool_)

    @staticmethod
    def nbytes(ticks: int, width: int) -> int:
        """What a ring takes for so many series."""
        segments = -(-ticks // min(ticks, _SEGMENT)) + 1
        return 8 * ticks + width * (4 * ticks + 8 * segments + 8)

    def __len__(self) -> int:
        return min(self._rows, self._ticks)

    @property
    def times(self) -> Times:
        """Oldest first, shape (len,)."""
        return self._times[self._places()]

    def widen(self, width: int) -> None:
        """Makes room for so many series, unknown in the rows that are there."""
        have = self._differences.shape[1]
        differences = np.empty((self._ticks, width), np.float32)
        differences[: len(self), have:] = np.nan
        differences[: len(self), :have] = self._differences[: len(self)]
        self._differences = differences
        self._bases = np.concatenate([self._bases, np.zeros((self._segments, width - have))], axis=1)
        self._limits = np.concatenate([self._limits, np.full(width - have, -np.inf)])

    def write(self, time_unix_ns: int, row: Values) -> None:
        """Adds the newest row, of the width."""
        at = self._rows % self._ticks
        base = self._bases[self._rows // self._span % self._segments]
        if self._rows % self._span == 0:
            self._begin(base, row)
        elif np.count_nonzero(row < self._limits):
            self._rebase(base, row)
        self._differences[at] = row - base
        self._times[at] = time_unix_ns
        self._rows += 1

    def read(self, columns: Columns, newest: int | None = None) -> tuple[Times, Values]:
        """Times, shape (n,), and values, shape (n, columns), oldest first: all rows, or so many of the newest."""
        rows = np.arange(self._rows - (len(self) if newest is None else min(newest, len(self))), self._rows)
        at = rows % self._ticks
        if not isinstance(columns, slice):
            bases = self._bases[(rows // self._span % self._segments)[:, None], columns]
            return self._times[at], self._differences[at[:, None], columns] + bases
        values = self._differences[at, columns].astype(np.float64)
        # By segment: a gather of whole rows of bases would cost as much as the rest.
        begin = 0
        while begin < len(rows):
            segment, end = divmod(int(rows[begin]), self._span)
            end = begin + self._span - end
            values[begin:end] += self._bases[segment % self._segments, columns]
            begin = end
        return self._times[at], values

    def insert(self, times: Times, rows: Values) -> int:
        """Puts rows of the past, of the width, where they belong; returns how many of them are among the newest `ticks` rows.

        times: none of them is here already or newer than the newest row, of which there must be one.
        """
        here, values = self.read(slice(None))
        if len(self) == self._ticks and times.max() < here[0]:
            return 0
        # The newest row stays the newest, whatever a clock that was set back makes of the others.
        moved = np.concatenate([here[:-1], times])
        order = np.argsort(moved, kind="stable")[max(0, len(moved) + 1 - self._ticks) :]
        self._rows += len(times)
        self._rewrite(
            np.concatenate([moved[order], here[-1:]]),
            np.concatenate([np.concatenate([values[:-1], rows])[order], values[-1:]]),
        )
        return int((order >= len(here) - 1).sum())

    def _places(self) -> Ids:
        return np.arange(self._rows - len(self), self._rows) % self._ticks

    def _begin(self, base: Values, row: Values) -> None:
        """A segment begins: counters are differences to `row`."""
        told = row[: len(self.counters)]
        # Only of what is above 0, so that no value that the segment takes is smaller than its difference.
        counts = self.counters & (told > 0) & (told < np.inf)
        base[: len(told)] = np.where(counts, told, 0.0)
        self._limits[: len(told)] = np.where(counts, told, -np.inf)

    def _rebase(self, base: Values, row: Values) -> None:
        """Counters were reset: in all of the newest segment they are differences to what they have now."""
        columns = np.flatnonzero(row < self._limits)
        at = np.arange(self._rows - self._rows % self._span, self._rows) % self._ticks
        grid = np.ix_(at, columns)
        values = self._differences[grid] + base[columns]
        below = np.maximum(row[columns], 0.0)
        base[columns] = below
        self._limits[columns] = np.where(below > 0, below, -np.inf)
        self._differences[grid] = values - below

    def _rewrite(self, times: Times, values: Values) -> None:
        """The newest rows are these."""
        rows = np.arange(self._rows - len(times), self._rows)
        segments = rows // self._span
        for segment in np.unique(segments).tolist():
            of_segment = segments == segment
            base = self._bases[segment % self._segments]
            self._begin(base, np.fmin.reduce(values[of_segment]))
            at = rows[of_segment] % self._ticks
            self._differences[at] = values[of_segment] - base
            self._times[at] = times[of_segment]
