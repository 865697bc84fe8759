"""Older samples, a row of aggregates for each minute."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from switchgear.collector.blocks import Values
from switchgear.collector.ring import Columns, Times, within_float32

MINUTE_NS = 60_000_000_000
#: Of a place that is free.
_NEVER = -(2**31)
_ROWS_MAX = 2**16 - 1
#: Places of the aggregates of one minute.
_MIN, _MEAN, _MAX, _LAST = range(4)
Aggregates = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Minutes:
    """Of each minute, oldest first; a minute without a value of a series is NaN.

    times: begin of the minute in ns, shape (t,). The others: shape (t, series).
    """

    times: Times
    min: Aggregates
    mean: Aggregates
    max: Aggregates
    last: Aggregates


class MinuteRing:
    """The aggregates of the newest `minutes` minutes.

    Each minute has its place, so those of an outage find theirs later. Parts of a minute that come apart are put together: the mean weighs
    each by its rows, as if no value of it were unknown, and `last` is of the newest.
    """

    def __init__(self, minutes: int) -> None:
        self._size = minutes
        self._newest = _NEVER
        #: Since 1970.
        self._minutes = np.full(minutes, _NEVER, np.int32)
        #: At most _ROWS_MAX.
        self._rows = np.zeros(minutes, np.uint16)
        #: Within the minute, of its newest row.
        self._last_ms = np.zeros(minutes, np.uint16)
        # Never written whole: pages come from the kernel as minutes pass.
        self._values = np.empty((minutes, 4, 0), np.float32)

    @staticmethod
    def nbytes(minutes: int, width: int) -> int:
        """What a ring takes for so many series once it is full."""
        return minutes * (8 + 16 * width)

    def widen(self, width: int) -> None:
        have = self._values.shape[2]
        if width == have:
            return
        values = np.empty((self._size, 4, width), np.float32)
        used = np.flatnonzero(self._minutes > _NEVER)
        values[used, :, have:] = np.nan
        values[used, :, :have] = self._values[used]
        self._values = values

    def add(self, times: Times, rows: Values, *, live: bool) -> None:
        """Takes in rows, shape (t, width), in the order of their times. live: the newest that there are, by whatever clock."""
        minutes, rows = times // MINUTE_NS, within_float32(rows)
        bounds = [0, *(np.flatnonzero(np.diff(minutes)) + 1).tolist(), len(times)]
        for begin, end in pairwise(bounds):
            minute = int(minutes[begin])
            if live:
                self._newest = minute
            if live or self._newest - self._size < minute <= self._newest:
                self._put(minute, int(times[end - 1]) % MINUTE_NS // 1_000_000, rows[begin:end])

    def read(self, columns: Columns) -> Minutes:
        """The minutes that there are, in order."""
        there = np.flatnonzero((self._minutes > self._newest - self._size) & (self._minutes <= self._newest))
        at = there[np.argsort(self._minutes[there])]
        values = (
            self._values[at, :, columns]
            if isinstance(columns, slice)
            else self._values[at[:, None, None], np.arange(4)[:, None], columns]
        )
        return Minutes(
            times=self._minutes[at].astype(np.int64) * MINUTE_NS,
            min=values[:, _MIN],
            mean=values[:, _MEAN],
            max=values[:, _MAX],
            last=values[:, _LAST],
        )

    def _put(self, minute: int, last_ms: int, rows: Values) -> None:
        at = minute % self._size
        width = rows.shape[1]
        place = self._values[at, :, :width]
        count = len(rows)
        with np.errstate(over="ignore", invalid="ignore"):
            part = _aggregate(rows)
            if self._minutes[at] == minute:
                before = int(self._rows[at])
                count += before
                part = _joined(place, part, before / count, newer=last_ms >= self._last_ms[at])
                last_ms = max(last_ms, int(self._last_ms[at]))
            else:
                self._values[at, :, width:] = np.nan
            self._minutes[at], self._rows[at], self._last_ms[at] = minute, min(count, _ROWS_MAX), last_ms
            place[:] = part


def _aggregate(rows: Values) -> Values:
    """Shape (4, series): minimum, mean, maximum and last of what is known in each column."""
    mean = rows.mean(axis=0)
    last = rows[-1].copy()
    # Unknown values are rare: only columns that have some pay for them.
    if len(gaps := np.flatnonzero(np.isnan(mean))):
        some = rows[:, gaps]
        known = ~np.isnan(some)
        mean[gaps] = np.where(known, some, 0.0).sum(axis=0) / known.sum(axis=0)
        last[gaps] = some[len(rows) - 1 - known[::-1].argmax(axis=0), np.arange(len(gaps))]
    return np.stack([np.fmin.reduce(rows), mean, np.fmax.reduce(rows), last])


def _joined(old: Aggregates, new: Values, share: float, *, newer: bool) -> Values:
    """The aggregates of two parts of a minute. share: of the rows that are in the old part. newer: the new part ends later."""
    mean = share * old[_MEAN] + (1 - share) * new[_MEAN]
    mean = np.where(np.isnan(old[_MEAN]), new[_MEAN], np.where(np.isnan(new[_MEAN]), old[_MEAN], mean))
    earlier, later = (old[_LAST], new[_LAST]) if newer else (new[_LAST], old[_LAST])
    last = np.where(np.isnan(later), earlier, later)
    return np.stack([np.fmin(old[_MIN], new[_MIN]), mean, np.fmax(old[_MAX], new[_MAX]), last])
