"""Looks on while samples come in, and makes batches of those that are to be sent."""

from __future__ import annotations

import asyncio
import logging
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from switchgear.collector.blocks import Ids, Values
from switchgear.collector.export.rows import Batch, Row, Selection
from switchgear.collector.export.template import SERIES_MAX
from switchgear.collector.windows import NodeWindow, SeriesKey, Times
from switchgear.core.clock import Clock

log = logging.getLogger(__name__)

#: A batch that does not fill up goes out after so long.
BATCH_AGE_S_MAX = 1.0
#: A source that tells nothing for three of its usual intervals has ended, but not before the first of these and at the latest at the second,
#: after which a query of Prometheus does not see it any more in any case.
STALE_S_MIN, STALE_S_MAX = 30.0, 300.0
#: Milliseconds of samples that can be sent: from February 1971 to May 2109, whose varints have six bytes.
TIME_MS_MIN, TIME_MS_MAX = 1 << 35, 1 << 42
#: The NaN with which Prometheus says that a series has ended.
STALE = np.uint64(0x7FF0000000000002)
#: Templates that are made of a source's series, at a millisecond or two each: in the long run one in so many seconds, and as many at once as
#: these seconds have. An agent whose values come and go with each row would cost the collector a core otherwise.
TEMPLATE_S = 0.5
TEMPLATES_AHEAD_S = 60.0
#: Different sets of series in the rows of one outage whose selections are kept.
_LATE_MASKS_MAX = 8
_TICK_S = 0.25
_STALE_CHECK_S = 5.0
_NS_PER_MS = 1_000_000


class Outlet(Protocol):
    """Where batches go: the queue of a target."""

    def put(self, batch: Batch) -> None:
        """Takes a batch, or drops what it has no room for."""

    def dropped(self, samples: int, reason: str) -> None:
        """Counts samples that do not come in a batch."""


@dataclass(frozen=True, slots=True)
class FeedSettings:
    """interval_s: one row of a node in so many seconds, 0: each. keep, drop: of names of metrics, whole; keep "" is all, drop "" is none.

    samples_max: in a batch. lanes: a node's rows are all in one of so many sequences of batches.
    """

    interval_s: float
    keep: str
    drop: str
    samples_max: int
    lanes: int


class _Late:
    """Rows of the past: the series that they come with, and the selections for those of them that are known."""

    __slots__ = ("keys", "selections", "wanted")

    def __init__(self, keys: list[SeriesKey], wants: Callable[[str], bool]) -> None:
        self.keys = keys
        self.wanted = np.array([wants(key.metric) for key in keys], bool)
        self.selections: dict[bytes, list[tuple[Ids, Selection]]] = {}


class _Part:
    """Some of a stream's series: which of them have values now, and the selection of those."""

    __slots__ = ("columns", "known", "mask", "selection")

    def __init__(self, columns: Ids) -> None:
        self.columns = columns
        self.known = columns[:0]
        self.mask = b""
        self.selection: Selection | None = None


class _Stream:
    """What the feed remembers of a window."""

    __slots__ = (
        "ahead_s", "bucket", "gap_s", "heard_s", "lane", "late", "late_bucket", "mask", "parts", "phase_ms", "since_unix_ns", "time_ms", "width",
    )  # fmt: skip

    def __init__(self, window: NodeWindow, lanes: int, now_s: float) -> None:
        number = zlib.crc32(window.node.encode())
        self.lane = number % lanes
        #: Nodes are not sent all at the same moment.
        self.phase_ms = number
        self.heard_s = now_s
        self.gap_s = 0.0
        #: Until when its templates are paid for.
        self.ahead_s = now_s
        self.since_unix_ns = max(window.time_unix_ns, 0)
        self.time_ms = 0
        self.bucket = self.late_bucket = -1
        self.width = 0
        self.mask = b""
        self.parts: list[_Part] = []
        self.late: _Late | None = None

    def heard(self, now_s: float) -> None:
        self.gap_s = max(now_s - self.heard_s, 0.9 * self.gap_s)
        self.heard_s = now_s

    def may_change(self, now_s: float) -> bool:
        return self.ahead_s <= now_s + TEMPLATES_AHEAD_S

    def changed(self, templates: int, now_s: float) -> None:
        self.ahead_s = max(self.ahead_s, now_s) + templates * TEMPLATE_S

    def is_stale(self, now_s: float) -> bool:
        return now_s - self.heard_s > min(max(3 * self.gap_s, STALE_S_MIN), STALE_S_MAX)


class Feed:
    """A tap: rows of all windows into batches, for all targets that want the same of them. See `taps.Tap`.

    A series whose value is unknown is left out; when it was known before, one row says that it has ended. So does one for all series of
    a source that fell silent, at the time of its last row and a millisecond.
    """

    def __init__(self, settings: FeedSettings, clock: Clock, outlets: Sequence[Outlet]) -> None:
        self._settings = settings
        self._clock = clock
        self._outlets = tuple(outlets)
        self._interval_ms = round(settings.interval_s * 1000)
        keep, drop = re.compile(settings.keep or ".*"), re.compile(settings.drop or "(?!)")
        # Names of metrics come from agents: those of many versions fit.
        self._wants = lru_cache(4096)(lambda metric: bool(keep.fullmatch(metric)) and not drop.fullmatch(metric))
        self._streams: dict[NodeWindow, _Stream] = {}
        self._windows: dict[tuple[str, str], NodeWindow] = {}
        self._open: dict[tuple[int, bool], Batch] = {}

    def row(self, window: NodeWindow) -> None:
        now_s = self._clock.monotonic_s()
        stream = self._streams.get(window)
        if stream is None:
            stream = self._begin(window, now_s)
        stream.heard(now_s)
        time_ms = window.time_unix_ns // _NS_PER_MS
        if self._interval_ms:
            bucket = (time_ms + stream.phase_ms) // self._interval_ms
            if bucket == stream.bucket:
                return
            stream.bucket = bucket
        if not stream.time_ms < time_ms or not TIME_MS_MIN <= time_ms < TIME_MS_MAX:
            self._drop_row(stream, "out_of_order" if time_ms <= stream.time_ms else "bad_time")
            return
        values = window.newest
        mask = np.isnan(values).tobytes()
        if mask != stream.mask and not stream.may_change(now_s):
            self._drop_row(stream, "changes")
            return
        stream.time_ms = time_ms
        if mask != stream.mask:
            self._changed(window, stream, mask, now_s)
        for part in stream.parts:
            if part.selection is not None:
                self._add(stream.lane, Row(part.selection, window.time_unix_ns, values[part.known]), now_s)

    def late(self, window: NodeWindow, series: Sequence[SeriesKey], times: Times, rows: Values) -> None:
        now_s = self._clock.monotonic_s()
        stream = self._streams.get(window)
        if stream is None:
            stream = self._begin(window, now_s)
        keys = list(series)
        late = stream.late
        if late is None or late.keys != keys:
            late = stream.late = _Late(keys, self._wants)
        for time_unix_ns, values in zip(times.tolist(), rows, strict=True):
            time_ms = time_unix_ns // _NS_PER_MS
            if self._interval_ms:
                bucket = (time_ms + stream.phase_ms) // self._interval_ms
                if bucket == stream.late_bucket:
                    continue
                stream.late_bucket = bucket
            known = late.wanted & ~np.isnan(values)
            if not TIME_MS_MIN <= time_ms < TIME_MS_MAX:
                self._drop(int(known.sum()), "bad_time")
                continue
            mask = known.tobytes()
            selections = late.selections.get(mask)
            if selections is None and not stream.may_change(now_s):
                self._drop(int(known.sum()), "changes")
                continue
            if selections is None:
                if len(late.selections) >= _LATE_MASKS_MAX:
                    late.selections.clear()
                selections = late.selections[mask] = [
                    (columns, _selection(window, [keys[at] for at in columns], time_unix_ns))
                    for columns in _split(known.nonzero()[0])
                ]
                stream.changed(len(selections), now_s)
            for columns, selection in selections:
                self._add(stream.lane, Row(selection, time_unix_ns, values[columns]), now_s, late=True)

    async def run(self) -> None:
        """Sees to it that batches go out and that silent sources end, until cancelled."""
        check_s = self._clock.monotonic_s()
        while True:
            await asyncio.sleep(_TICK_S)
            now_s = self._clock.monotonic_s()
            try:
                self.seal(now_s - BATCH_AGE_S_MAX)
                if now_s - check_s >= _STALE_CHECK_S:
                    check_s = now_s
                    self.tidy()
            except Exception:
                log.exception("cannot look after what is sent; trying again")

    def seal(self, opened_s_max: float) -> None:
        """Hands over what was begun at or before `opened_s_max`."""
        for key in [key for key, batch in self._open.items() if batch.opened_s <= opened_s_max]:
            self._hand_over(key)

    def tidy(self) -> None:
        """Ends the series of the sources that have told nothing for too long, and forgets what served rows of the past."""
        now_s = self._clock.monotonic_s()
        for window in [window for window, stream in self._streams.items() if stream.is_stale(now_s)]:
            self._end(window, now_s)
            del self._windows[window.node, window.source]
        for stream in self._streams.values():
            stream.late = None

    def _begin(self, window: NodeWindow, now_s: float) -> _Stream:
        stream = _Stream(window, self._settings.lanes, now_s)
        older = self._windows.get((window.node, window.source))
        if older is not None:
            stream.time_ms = self._end(older, now_s)
        self._windows[window.node, window.source] = window
        self._streams[window] = stream
        return stream

    def _end(self, window: NodeWindow, now_s: float) -> int:
        """Ends all series of a window; returns the newest time that was used for them, in ms."""
        stream = self._streams.pop(window)
        if stream.time_ms:
            stream.time_ms += 1
            for part in stream.parts:
                if part.selection is not None:
                    self._ended(window, stream, part.selection.keys, stream.time_ms * _NS_PER_MS, now_s)
        return stream.time_ms

    def _changed(self, window: NodeWindow, stream: _Stream, mask: bytes, now_s: float) -> None:
        """Other series have a value than in the row before."""
        series, stream.mask = window.series, mask
        if stream.width < len(series):
            more = np.array([at for at in range(stream.width, len(series)) if self._wants(series[at].metric)], np.int64)
            room = SERIES_MAX - len(stream.parts[-1].columns) if stream.parts else 0
            if room:  # sources that find their series one by one must not end with a part for each
                stream.parts[-1].columns = np.concatenate([stream.parts[-1].columns, more[:room]])
            stream.parts += [_Part(columns) for columns in _split(more[room:])]
            stream.width = len(series)
        unknown = np.frombuffer(mask, bool)
        for part in stream.parts:
            part_mask = unknown[part.columns].tobytes()
            if part_mask == part.mask:
                continue
            part.mask = part_mask
            stream.changed(1, now_s)
            before, part.known = part.known, part.columns[~unknown[part.columns]]
            lost = before[unknown[before]]
            if len(lost):
                self._ended(window, stream, [series[at] for at in lost], window.time_unix_ns, now_s)
            keys = [series[at] for at in part.known]
            part.selection = _selection(window, keys, stream.since_unix_ns) if keys else None

    def _ended(
        self, window: NodeWindow, stream: _Stream, keys: Sequence[SeriesKey], time_unix_ns: int, now_s: float
    ) -> None:
        selection = _selection(window, keys, time_unix_ns, stale=True)
        self._add(stream.lane, Row(selection, time_unix_ns, np.full(len(keys), STALE).view(np.float64)), now_s)

    def _add(self, lane: int, row: Row, now_s: float, *, late: bool = False) -> None:
        key = lane, late
        batch = self._open.get(key)
        if batch is not None and batch.samples + len(row.values) > self._settings.samples_max:
            self._hand_over(key)
            batch = None
        if batch is None:
            batch = self._open[key] = Batch(lane, now_s, late)
        batch.add(row)

    def _hand_over(self, key: tuple[int, bool]) -> None:
        batch = self._open.pop(key)
        for outlet in self._outlets:
            outlet.put(batch)

    def _drop_row(self, stream: _Stream, reason: str) -> None:
        """As many samples as its row before had."""
        self._drop(sum(len(part.known) for part in stream.parts), reason)

    def _drop(self, samples: int, reason: str) -> None:
        for outlet in self._outlets:
            outlet.dropped(samples, reason)


def _split(columns: Ids) -> list[Ids]:
    return [columns[begin : begin + SERIES_MAX] for begin in range(0, len(columns), SERIES_MAX)]


def _selection(window: NodeWindow, keys: Sequence[SeriesKey], time_unix_ns: int, *, stale: bool = False) -> Selection:
    node = window.node.partition("/")[2]
    return Selection(node, window.source, keys, since_unix_ns=time_unix_ns, stale=stale)
