"""What one source tells of one node, on its way into the node's window."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from switchgear.collector.blocks import Ids, Values
from switchgear.collector.imports.metrics import ImportMetrics
from switchgear.collector.ring import Times
from switchgear.collector.series import SeriesKey
from switchgear.collector.taps import Taps
from switchgear.collector.windows import SERIES_MAX, NodeWindow, Windows
from switchgear.core.errors import SwitchgearError

#: Rows of a window are at least so far apart, or a source that sends in small pieces would push history out.
ROW_NS_MIN = 1_000_000_000
#: A full window begins anew without the series of which nothing came for so long, and at most so often: it loses its history with that.
EPOCH_NS_MIN = 60 * 1_000_000_000
#: How many series must have gone for that; a source that has too many for good gains nothing.
ROOM_MIN = SERIES_MAX // 8
_GROWTH = 64


class _Columns:
    """What is known of each series, by id. seen: when its newest sample came. unwritten: its value is in no row yet."""

    def __init__(self) -> None:
        self.values: Values = np.zeros(0)
        self.times: Times = np.zeros(0, np.int64)
        self.seen: Times = np.zeros(0, np.int64)
        self.unwritten: npt.NDArray[np.bool_] = np.zeros(0, bool)

    def grow(self, count: int) -> None:
        more = -(-(count - len(self.values)) // _GROWTH) * _GROWTH
        if more > 0:
            self.values = np.concatenate([self.values, np.full(more, np.nan)])
            self.times = np.concatenate([self.times, np.zeros(more, np.int64)])
            self.seen = np.concatenate([self.seen, np.zeros(more, np.int64)])
            self.unwritten = np.concatenate([self.unwritten, np.zeros(more, bool)])


class Feed:
    """A window that is written series by series. Times are in ns since the Unix epoch: `time` of a sample, `now` of our clock.

    Ids hold until the next call of `ids`.
    """

    def __init__(self, windows: Windows, taps: Taps, metrics: ImportMetrics, node: str, source: str) -> None:
        self.node, self.source = node, source
        self._windows, self._taps, self._metrics = windows, taps, metrics
        self._window = self._connect()
        self._began_ns = 0
        self._ids = dict[SeriesKey, int]()
        self._columns = _Columns()
        self._asked: list[SeriesKey] = []
        self._answered: Ids = np.zeros(0, np.int64)
        self._unwritten_ns = 0
        self._written_ns = 0
        #: When something came last, by our clock.
        self.seen_unix_ns = 0

    @property
    def series(self) -> int:
        return len(self._ids)

    @property
    def values(self) -> Values:
        """Newest value of each series by id; NaN is unknown."""
        return self._columns.values

    @property
    def times(self) -> Times:
        """Time of the newest sample of each series by id."""
        return self._columns.times

    def ids(self, keys: Sequence[SeriesKey], now_unix_ns: int) -> Ids:
        """The id of each; -1 for one that the window cannot take in any more."""
        if self._asked == keys:  # mostly the same objects as the last time, which costs nothing to see
            return self._answered
        new = self._new(keys)
        if len(self._ids) + len(new) > SERIES_MAX and self._begin_anew(now_unix_ns):
            new = self._new(keys)
        if new:
            self._define(new)
        ids = np.array([self._ids.get(key, -1) for key in keys], np.int64)
        # Those that are refused now may be taken the next time.
        self._asked, self._answered = ([], ids[:0]) if (ids < 0).any() else (list(keys), ids)
        return ids

    def known(self, keys: Iterable[SeriesKey]) -> Ids:
        """The ids of those that have one."""
        return np.array([self._ids[key] for key in keys if key in self._ids], np.int64)

    def put(self, time_unix_ns: int, ids: Ids, values: Values, now_unix_ns: int) -> None:
        """Samples of one moment. They are in a row at once, or, when that would be too soon after the one before, with `flush`."""
        self._columns.values[ids] = values
        self._columns.times[ids] = time_unix_ns
        self._columns.seen[ids] = self.seen_unix_ns = now_unix_ns
        self._wait(ids, time_unix_ns)
        if time_unix_ns >= self._window.time_unix_ns + ROW_NS_MIN:
            self._write(time_unix_ns, now_unix_ns)

    def flush(self, now_unix_ns: int) -> None:
        """Writes what waits for its row, once it is time."""
        # A clock that was set back makes nothing wait for it.
        if self._unwritten_ns and not 0 <= now_unix_ns - self._written_ns < ROW_NS_MIN:
            self._write(max(self._unwritten_ns, self._window.time_unix_ns + ROW_NS_MIN), now_unix_ns)

    def forget_before(self, unix_ns: int, now_unix_ns: int) -> None:
        """What came last before `unix_ns`, by our clock, is unknown from now on."""
        stale = np.flatnonzero((self._columns.seen < unix_ns) & ~np.isnan(self._columns.values))
        if len(stale):
            self._columns.values[stale] = np.nan
            self._wait(stale, now_unix_ns)
            self.flush(now_unix_ns)

    def close(self) -> None:
        """All is unknown from now on. The window stays until its memory is needed."""
        now = max(self._unwritten_ns, self._window.time_unix_ns) + ROW_NS_MIN
        self.forget_before(np.iinfo(np.int64).max, now)
        self._windows.disconnect(self.node, source=self.source)

    def _wait(self, ids: Ids, time_unix_ns: int) -> None:
        self._columns.unwritten[ids] = True
        self._unwritten_ns = max(self._unwritten_ns, time_unix_ns)

    def _write(self, time_unix_ns: int, now_unix_ns: int) -> None:
        ids = np.flatnonzero(self._columns.unwritten)
        self._window.append(time_unix_ns, ids, self._columns.values[ids])
        self._columns.unwritten[:] = False
        self._unwritten_ns, self._written_ns = 0, now_unix_ns
        self._taps.row(self._window)

    def _new(self, keys: Sequence[SeriesKey]) -> list[SeriesKey]:
        return list(dict.fromkeys(key for key in keys if key not in self._ids))

    def _define(self, new: Sequence[SeriesKey]) -> None:
        first = len(self._ids)
        taken = new[: SERIES_MAX - first]
        self._metrics.rejected.labels("series").inc(len(new) - len(taken))
        if not taken:
            return
        try:
            self._windows.define(self._window, first, taken)
        except SwitchgearError:  # the bytes of all windows are used up, or this node's names are too long
            self._metrics.rejected.labels("memory").inc(len(taken))
            return
        self._ids.update((key, first + offset) for offset, key in enumerate(taken))
        self._columns.grow(len(self._ids))

    def _begin_anew(self, now_unix_ns: int) -> bool:
        """Without the series that have gone, when that makes room worth the loss of history."""
        if 0 <= now_unix_ns - self._began_ns < EPOCH_NS_MIN:
            return False
        keys, before = list(self._ids), self._columns
        count = len(keys)
        live = np.flatnonzero(~np.isnan(before.values[:count]) & (before.seen[:count] > now_unix_ns - EPOCH_NS_MIN))
        if count - len(live) < ROOM_MIN:
            return False
        self._window = self._connect()
        self._began_ns, self._ids, self._columns = now_unix_ns, {}, _Columns()
        self._metrics.epochs.inc()
        self._define([keys[series_id] for series_id in live.tolist()])
        kept = live[: len(self._ids)]
        for column, old in (
            (self._columns.values, before.values),
            (self._columns.times, before.times),
            (self._columns.seen, before.seen),
        ):
            column[: len(kept)] = old[kept]
        self._wait(np.arange(len(kept)), now_unix_ns)
        return True

    def _connect(self) -> NodeWindow:
        return self._windows.connect(self.node, uuid.uuid4().hex, source=self.source)
