"""The recent samples of each node: two minutes as they came, hours as aggregates of minutes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from zlib import crc32

import numpy as np

from switchgear.collector.blocks import Ids, Values
from switchgear.collector.chain import NOT_REPORTED, REASON_CHARS_MAX, ROW_BYTES, Chain, Outcome, capacity
from switchgear.collector.minutes import MinuteRing, Minutes
from switchgear.collector.ring import Columns, Ring, Times
from switchgear.collector.series import Kind, Layout, Schema, SeriesKey
from switchgear.core.errors import Reason, ResourceExhausted, SwitchgearError
from switchgear.v1alpha import telemetry_service_pb2 as pb

__all__ = [
    "AGENT",
    "NOT_REPORTED",
    "REASON_CHARS_MAX",
    "SERIES_MAX",
    "Kind",
    "Minutes",
    "NodeWindow",
    "Outcome",
    "SeriesKey",
    "Times",
    "Windows",
]

SERIES_MAX = 4096
#: The source of windows that agents of ours fill; an import names its own: `otlp`, `scrape/{name}`.
AGENT = "agent"
#: Rows at full resolution: two minutes at 1 Hz.
TICKS = 120
#: Minutes of which there are aggregates: two hours but for six, which leaves room below 2,500 bytes a series.
MINUTES = 114
#: Rows become a part of their minutes by so many at a time, or when somebody looks.
_FOLD_ROWS = 60
#: Of a window beside what grows with its series: its objects and the node's name.
_WINDOW_BYTES = 6 * 1024


class NodeWindow(Chain):
    """What one source told of one node in one epoch: the newest `ticks` rows, and aggregates of the newest `minutes` minutes."""

    def __init__(
        self,
        epoch: str,
        ticks: int = TICKS,
        *,
        minutes: int = MINUTES,
        node: str = "",
        source: str = AGENT,
        gaps_lost: bool = True,
    ) -> None:
        super().__init__(epoch, gaps_lost=gaps_lost)
        self.node = node
        self.source = source
        #: Who uses the node's GPUs, as its agent said at last.
        self.associations: tuple[pb.Association, ...] = ()
        self._ticks, self._minutes_kept = ticks, minutes
        self._ring = Ring(ticks)
        self._minutes = MinuteRing(minutes)
        self._fold_rows = min(_FOLD_ROWS, ticks)
        # Nodes that came together do not fold together.
        self._unfolded = 0
        #: The same object as long as the same series are known.
        self._unknown_before = self._unknown
        self._fold_at = 1 + crc32(node.encode()) % self._fold_rows

    @property
    def nbytes(self) -> int:
        """What the window may take with its series, once its rings are full."""
        return self.nbytes_with(len(self.series))

    def nbytes_with(self, series: int) -> int:
        """As `nbytes`, once the window has so many series."""
        width = capacity(series, len(self._row))
        rings = Ring.nbytes(self._ticks, width) + MinuteRing.nbytes(self._minutes_kept, width)
        return _WINDOW_BYTES + rings + ROW_BYTES * width

    def define(self, first_id: int, keys: Sequence[SeriesKey]) -> None:
        """As `Chain.define`."""
        super().define(first_id, keys)
        self._ring.counters = self.schema.counters

    def merge(self, times: Times, rows: Values, columns: Ids) -> int:
        """Puts rows of the past where they belong; returns how many of them are now at full resolution and were not.

        times: ns, shape (n,), rising. rows: shape (n, k). columns: series id of each of the k columns, -1 for what is no series here.
        What is older than the rows at full resolution becomes a part of its minute; what is newer than the newest row is left out.
        """
        if not len(self._ring):
            return 0
        self._fold()
        have = self._ring.times
        new = (times < have[-1]) & ~np.isin(times, have)
        past = np.full((int(new.sum()), len(self._row)), np.nan)
        past[:, columns[columns >= 0]] = rows[new][:, columns >= 0]
        if not len(past):
            return 0
        self._minutes.add(times[new], past[:, : len(self.series)], live=False)
        return self._ring.insert(times[new], past)

    @property
    def full(self) -> bool:
        """Whether there are rows that are only in the minutes."""
        return len(self._ring) == self._ticks

    def history(self, columns: Ids | None = None) -> tuple[Times, Values]:
        """Times in ns, shape (n,), and values, shape (n, series), oldest first; n is at most `ticks`. columns: of these series alone."""
        return self._ring.read(self._columns(columns))

    def minutes(self, columns: Ids | None = None) -> Minutes:
        """Aggregates of each minute, the newest so far. columns: of these series alone."""
        self._fold()
        return self._minutes.read(self._columns(columns))

    def _columns(self, columns: Ids | None) -> Columns:
        return slice(len(self.series)) if columns is None else columns

    def _row_came(self, time_unix_ns: int) -> None:
        self.time_unix_ns = time_unix_ns
        self._ring.write(time_unix_ns, self._row, others_known=self._unknown is not self._unknown_before)
        self._unknown_before = self._unknown
        self._unfolded += 1
        if self._unfolded >= self._fold_at:
            self._fold()
            self._fold_at = self._fold_rows

    def _fold(self) -> None:
        if self._unfolded:
            self._minutes.add(*self._ring.read(slice(len(self.series)), self._unfolded), live=True)
            self._unfolded = 0

    def _widen(self, width: int) -> None:
        super()._widen(width)
        self._ring.widen(width)
        self._minutes.widen(width)


class Windows:
    """The windows of all nodes, within `bytes_max` bytes together. A node has one for each source that tells of it.

    What a window may come to take is set aside when its series are told, so a collector that has taken a node in has room for it.
    """

    def __init__(self, *, ticks: int = TICKS, minutes: int = MINUTES, bytes_max: int) -> None:
        self._ticks, self._minutes = ticks, minutes
        self.bytes_max = bytes_max
        #: In all windows.
        self.series = 0
        self._by_node: dict[str, dict[str, NodeWindow]] = {}
        #: Without a connection, the longest gone first.
        self._gone: dict[tuple[str, str], None] = {}
        self._nbytes = 0
        #: How many windows have each.
        self._used: Counter[Schema | Layout] = Counter()

    @property
    def nbytes(self) -> int:
        """What is set aside."""
        return self._nbytes

    @property
    def nodes(self) -> int:
        """How many nodes have a window."""
        return len(self._by_node)

    def get(self, node: str) -> NodeWindow | None:
        """What the node's agent told."""
        return self._by_node.get(node, {}).get(AGENT)

    def of(self, node: str) -> list[NodeWindow]:
        """All windows of a node, its agent's and those of imports."""
        return list(self._by_node.get(node, {}).values())

    def all(self) -> list[NodeWindow]:
        return [window for windows in self._by_node.values() for window in windows.values()]

    def connect(self, node: str, epoch: str, *, source: str = AGENT) -> NodeWindow:
        """The window for what a source tells of `nodes/{node}`: as it was when only the connection was lost, empty in a new epoch."""
        window = self._by_node.get(node, {}).get(source)
        if window is None or window.epoch != epoch:
            if window is not None:
                self._forget(window)
            window = NodeWindow(epoch, self._ticks, minutes=self._minutes, node=node, source=source)
            # Never refused: it is small, and as soon as the node is gone it makes room for others.
            self._make_room(window.nbytes)
            self._nbytes += window.nbytes
            self._uses(window.schema, 1)
            self._by_node.setdefault(node, {})[source] = window
        self._gone.pop((node, source), None)
        return window

    def disconnect(self, node: str, *, source: str = AGENT) -> None:
        """The window stays until its memory is needed."""
        if source in self._by_node.get(node, {}):
            self._gone[node, source] = None

    def define(self, window: NodeWindow, first_id: int, keys: Sequence[SeriesKey]) -> None:
        """As `NodeWindow.define`; forgets windows that are gone when memory is short.

        Raises ResourceExhausted when it does not suffice, or beyond 4,096 series of one window.
        """
        total = first_id + len(keys)
        if total > SERIES_MAX:
            raise ResourceExhausted(
                f"{total} series are more than a node may have ({SERIES_MAX}); report fewer",
                Reason.LIMIT_EXCEEDED,
                series=str(total),
            )
        if self._by_node.get(window.node, {}).get(window.source) is not window:
            # Of a stream that another has replaced: it is about to end.
            return
        before, schema = window.nbytes, window.schema
        self.set_aside(more := window.nbytes_with(max(total, len(window.series))) - before)
        try:
            window.define(first_id, keys)
        except SwitchgearError:
            self.give_back(more)
            raise
        self.series += len(window.series) - len(schema.keys)
        self._uses(window.schema, 1)
        self._uses(schema, -1)

    def set_aside(self, nbytes: int) -> None:
        """For what else belongs to the streams; `give_back` ends it. Raises ResourceExhausted when there is not so much."""
        if nbytes > 0 and not self._make_room(nbytes):
            raise ResourceExhausted(
                f"the windows of {len(self._by_node)} nodes fill the {self.bytes_max} bytes that they may have; "
                "raise memory_gib in [windows] of --collector-config, or run another collector",
                Reason.LIMIT_EXCEEDED,
            )
        self._nbytes += nbytes

    def give_back(self, nbytes: int) -> None:
        self._nbytes -= nbytes

    def _make_room(self, nbytes: int) -> bool:
        """Forgets windows that are gone until there is so much; whether there is."""
        while self._gone and self._nbytes + nbytes > self.bytes_max:
            node, source = next(iter(self._gone))
            self._forget(self._by_node[node][source])
        return self._nbytes + nbytes <= self.bytes_max

    def _forget(self, window: NodeWindow) -> None:
        self._gone.pop((window.node, window.source), None)
        windows = self._by_node[window.node]
        del windows[window.source]
        if not windows:
            del self._by_node[window.node]
        self._nbytes -= window.nbytes
        self.series -= len(window.series)
        self._uses(window.schema, -1)

    def _uses(self, shared: Schema | Layout, change: int) -> None:
        """What several windows share counts once."""
        before = self._used[shared]
        self._used[shared] += change
        if not before:
            self._nbytes += shared.nbytes
        elif not self._used[shared]:
            del self._used[shared]
            self._nbytes -= shared.nbytes
        if isinstance(shared, Schema) and shared.layout is not None:
            self._uses(shared.layout, change)
