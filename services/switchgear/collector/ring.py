"""The newest rows of a node at full resolution, in half of the memory that float64 takes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from switchgear.collector.blocks import Ids, Values

Times = npt.NDArray[np.int64]
#: What a read takes: the first series, or these.
Columns = slice | Ids
#: Rows of which the counters are kept as differences to the same value.
_SEGMENT = 120
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def within_float32(values: Values) -> Values:
    """The values, those that float32 cannot have unknown; infinities are what they are."""
    try:
        # While they are converted it is seen for little whether there are some.
        with np.errstate(over="raise"):
            values.astype(np.float32)
    except FloatingPointError:
        return np.where(np.isfinite(values) & (np.abs(values) > _FLOAT32_MAX), np.nan, values)
    return values


class Ring:
    """Rows of float32: a gauge as it is, a counter as its difference to its value at the begin of a segment of 120 rows.

    So a value comes back with a relative error of at most 2^-24, and a counter, however large, to 2^-24 of what it rose within the
    segment. Infinities and NaN come back; what is beyond float32 (3.4e38) comes back unknown.
    """

    def __init__(self, ticks: int) -> None:
        self._ticks = ticks
        self._span = min(ticks, _SEGMENT)
        self._segments = -(-ticks // self._span) + 1
        #: Rows that were ever written; the place of row r is r modulo `ticks`.
        self._rows = 0
        self._times: Times = np.zeros(ticks, np.int64)
        self._differences = np.empty((ticks, 0), np.float32)
        #: Ids of the series that are counters.
        self.counters: Ids = np.empty(0, np.int64)
        #: By segment: 0 for gauges, and never below, so that no counter is smaller than its difference.
        self._bases: Values = np.empty((self._segments, 0))

    @staticmethod
    def nbytes(ticks: int, width: int) -> int:
        """What a ring takes for so many series."""
        segments = -(-ticks // min(ticks, _SEGMENT)) + 1
        return 8 * ticks + width * (4 * ticks + 8 * segments)

    def __len__(self) -> int:
        return min(self._rows, self._ticks)

    @property
    def times(self) -> Times:
        """Oldest first, shape (len,)."""
        return self._times[np.arange(self._rows - len(self), self._rows) % self._ticks]

    def widen(self, width: int) -> None:
        """Makes room for so many series, unknown in the rows that are there."""
        have = self._differences.shape[1]
        differences = np.empty((self._ticks, width), np.float32)
        differences[: len(self), have:] = np.nan
        differences[: len(self), :have] = self._differences[: len(self)]
        self._differences = differences
        bases = np.zeros((self._segments, width))
        bases[:, :have] = self._bases
        self._bases = bases

    def write(self, time_unix_ns: int, row: Values, *, others_known: bool = False) -> None:
        """Adds the newest row, of the width. others_known: series may have a value that had none before."""
        at = self._rows % self._ticks
        base = self._bases[self._rows // self._span % self._segments]
        if self._rows % self._span == 0:
            self._begin(base, row)
        elif others_known:
            self._appear(base, row)
        differences = row - base
        if np.count_nonzero(differences < 0):
            differences = self._reset(base, row, differences)
        try:
            with np.errstate(over="raise"):
                self._differences[at] = differences
        except FloatingPointError:
            self._differences[at] = within_float32(differences)
        self._times[at] = time_unix_ns
        self._rows += 1

    def read(self, columns: Columns, newest: int | None = None) -> tuple[Times, Values]:
        """Times, shape (n,), and values, shape (n, columns), oldest first: all rows, or so many of the newest."""
        rows = np.arange(self._rows - (len(self) if newest is None else min(newest, len(self))), self._rows)
        at = rows % self._ticks
        places = at if isinstance(columns, slice) else at[:, None]
        values = self._differences[places, columns].astype(np.float64)
        for segment, part in self._parts(rows):
            values[part] += self._bases[segment, columns]
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

    def _parts(self, rows: Ids) -> Iterator[tuple[int, slice]]:
        """The place of each segment's bases, and which of the rows, one after the other, are its."""
        begin = 0
        while begin < len(rows):
            segment, offset = divmod(int(rows[begin]), self._span)
            yield segment % self._segments, slice(begin, begin + self._span - offset)
            begin += self._span - offset

    def _begin(self, base: Values, row: Values) -> None:
        """A segment begins: counters are differences to `row`."""
        counts = row[self.counters]
        base[:] = 0
        base[self.counters] = np.where((counts > 0) & (counts < np.inf), counts, 0.0)

    def _appear(self, base: Values, row: Values) -> None:
        """Counters of which the newest segment has no value yet are differences to what they have now."""
        counts = row[self.counters]
        there = self.counters[(base[self.counters] == 0) & (counts > 0) & (counts < np.inf)]
        at = np.arange(self._rows - self._rows % self._span, self._rows) % self._ticks
        there = there[np.isnan(self._differences[np.ix_(at, there)]).all(axis=0)]
        base[there] = row[there]

    def _reset(self, base: Values, row: Values, differences: Values) -> Values:
        """Counters that fell were reset: in all of the newest segment they are differences to what they have now."""
        fallen = self.counters[differences[self.counters] < 0]
        at = np.arange(self._rows - self._rows % self._span, self._rows) % self._ticks
        grid = np.ix_(at, fallen)
        values = self._differences[grid] + base[fallen]
        base[fallen] = np.maximum(row[fallen], 0.0)
        self._differences[grid] = within_float32(values - base[fallen])
        return row - base

    def _rewrite(self, times: Times, values: Values) -> None:
        """The newest rows are these."""
        rows = np.arange(self._rows - len(times), self._rows)
        self._times[rows % self._ticks] = times
        for segment, part in self._parts(rows):
            self._begin(self._bases[segment], np.fmin.reduce(values[part]))
            values[part] -= self._bases[segment]
        self._differences[rows % self._ticks] = within_float32(values)
