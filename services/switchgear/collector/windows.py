"""The recent samples of each node: rings of numpy rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
import numpy.typing as npt

from switchgear.collector.blocks import Block, Decoder, Ids, Values, protocol
from switchgear.collector.minutes import Minutes
from switchgear.core.errors import Reason, ResourceExhausted
from switchgear.v1alpha import telemetry_service_pb2 as pb

SERIES_MAX = 4096
#: Names and labels of all series of a node; what an agent sends for eight GPUs is a tenth of it.
TEXT_CHARS_MAX = 4 * 1024 * 1024
REASON_CHARS_MAX = 256
#: A ring grows by this many series at a time.
_GROWTH = 64
NOT_REPORTED = "not reported yet"
NOT_A_NUMBER = "not a number"
#: The source of windows that agents of ours fill; an import names its own: `otlp`, `scrape/{name}`.
AGENT = "agent"

Times = npt.NDArray[np.int64]


class Kind(Enum):
    GAUGE = auto()
    #: It only rises, but for resets.
    COUNTER = auto()


@dataclass(frozen=True, slots=True)
class SeriesKey:
    """labels: in the order of their names."""

    metric: str
    unit: str
    labels: tuple[tuple[str, str], ...]
    kind: Kind = Kind.GAUGE

    @property
    def chars(self) -> int:
        return len(self.metric) + len(self.unit) + sum(len(name) + len(value) for name, value in self.labels)


class Outcome(Enum):
    APPLIED = auto()
    #: It came before; nothing changed.
    DUPLICATE = auto()
    #: What it builds on is missing: nothing can be used until a keyframe comes.
    NEED_KEYFRAME = auto()


class NodeWindow:
    """One node's samples of the newest `ticks` ticks, from one source and in one epoch.

    NaN is unknown; for the newest tick `reasons` says why. After a gap nothing is guessed: rows go on at the next keyframe.
    gaps_lost: whether what is missing before a keyframe counts as lost. An agent that sends a backlog tells itself what it gave up.
    """

    def __init__(self, epoch: str, ticks: int, *, node: str = "", source: str = AGENT, gaps_lost: bool = True) -> None:
        self.node = node
        self.source = source
        self.epoch = epoch
        self.gaps_lost = gaps_lost
        self.series: list[SeriesKey] = []
        self.reasons: dict[int, str] = {}
        self.time_unix_ns = 0
        #: Blocks that the agent made and that are not in the window.
        self.blocks_lost = 0
        #: Who uses the node's GPUs, as its agent said at last.
        self.associations: tuple[pb.Association, ...] = ()
        self._ticks = ticks
        self._chars = 0
        self._rows = 0
        self._sequence: int | None = None
        self._in_step = False
        self._decoder = Decoder()
        self._times: Times = np.zeros(ticks, np.int64)
        self._values: Values = np.empty((ticks, 0))

    @property
    def nbytes(self) -> int:
        return self._values.nbytes + self._times.nbytes

    def nbytes_with(self, series: int) -> int:
        """What the window takes once it holds so many series."""
        width = max(_capacity(series), self._values.shape[1])
        return int(self._times.nbytes + self._ticks * width * self._values.itemsize)

    def define(self, first_id: int, keys: Sequence[SeriesKey]) -> None:
        """Adds series from `first_id` on; what is defined already must be the same.

        Raises Invalid (STREAM_PROTOCOL) when ids leave a gap or change their meaning, or beyond TEXT_CHARS_MAX.
        """
        known = self.series[first_id : first_id + len(keys)]
        if first_id > len(self.series) or known != list(keys[: len(known)]):
            raise protocol("the dictionary leaves a gap or gives an id another meaning; begin a new epoch for that")
        new = keys[len(known) :]
        self._chars += sum(key.chars for key in new)
        if self._chars > TEXT_CHARS_MAX:
            raise protocol(f"names and labels of a node's series have more than {TEXT_CHARS_MAX} characters")
        self.reasons.update((len(self.series) + offset, NOT_REPORTED) for offset in range(len(new)))
        self.series += new
        width = _capacity(len(self.series))
        if width > self._values.shape[1]:
            grown = np.full((self._ticks, width), np.nan)
            grown[:, : self._values.shape[1]] = self._values
            self._values = grown

    def apply(self, block: Block) -> Outcome:
        """Takes in one block. Raises Invalid (STREAM_PROTOCOL) when it contradicts itself or the dictionary."""
        if self._sequence is not None and block.sequence <= self._sequence:
            return Outcome.DUPLICATE
        # A window that has seen nothing cannot know what was sent before it: it counts from here.
        skipped = block.sequence - self._sequence - 1 if self._sequence is not None else 0
        usable = block.keyframe or (self._in_step and not skipped)
        # A plain block means the same whatever came before: what is wrong with it is said in any case.
        decoded = self._decoder.decode(block, len(self.series)) if usable or block.deltas is None else None
        self._sequence = block.sequence
        self._in_step = usable
        if self.gaps_lost:
            self.blocks_lost += skipped
        if decoded is None or not usable:
            self.blocks_lost += 1
            return Outcome.NEED_KEYFRAME
        self._write(block, *decoded)
        return Outcome.APPLIED

    def merge(self, times: Times, rows: Values, columns: Ids) -> int:
        """Puts rows of the past where they belong; returns how many of them the window has now and had not.

        times: ns, shape (n,), all different. rows: shape (n, k). columns: series id of each of the k columns, -1 for what is no series here.
        What is older than the window reaches back, or newer than its newest row, is left out.
        """
        count = min(self._rows, self._ticks)
        at = np.arange(self._rows - count, self._rows) % self._ticks
        here = self._times[at]
        if not count:
            return 0
        new = (times < here[-1]) & ~np.isin(times, here)
        if count == self._ticks:
            new &= times > here[0]
        more = int(new.sum())
        if not more:
            return 0
        known = len(self.series)
        past = np.full((more, known), np.nan)
        past[:, columns[columns >= 0]] = rows[new][:, columns >= 0]
        # What is older than all of them stays where it is: of a window of megabytes only its newest part moves.
        begin = int((here > times[new].min()).argmax())
        # The newest row stays the newest, whatever a clock that was set back makes of the others.
        moved = np.concatenate([here[begin:-1], times[new]])
        order = np.argsort(moved, kind="stable")[max(0, len(moved) + 1 - self._ticks) :]
        values = np.concatenate([self._values[at[begin:-1], :known], past])[order]
        newest = self._values[at[-1:], :known]
        self._rows += more
        places = np.arange(self._rows - len(order) - 1, self._rows) % self._ticks
        self._times[places] = [*moved[order], here[-1]]
        self._values[places, :known] = np.concatenate([values, newest])
        return int((order >= count - 1 - begin).sum())

    def append(self, time_unix_ns: int, ids: Ids, values: Values) -> None:
        """Adds a row: `values` (NaN = unknown) for the series `ids`, the others as they were. For what sends no blocks."""
        row = self._values[self._rows % self._ticks]
        row[:] = self._values[(self._rows - 1) % self._ticks] if self._rows else np.nan
        row[ids] = values
        self._values_came(ids, values, row)
        self._added(time_unix_ns)

    @property
    def newest(self) -> Values:
        """As `latest`, but a view: the next row may overwrite it."""
        if self._rows == 0:
            return np.full(len(self.series), np.nan)
        return self._values[(self._rows - 1) % self._ticks, : len(self.series)]

    def latest(self) -> Values:
        """Newest value of each series; NaN where it is unknown."""
        return self.newest.copy()

    def minutes(self) -> Minutes:
        """Aggregates of the minutes that have passed."""
        none = np.zeros((0, len(self.series)), np.float32)
        return Minutes(np.zeros(0, np.int64), none, none, none, none)

    def history(self) -> tuple[Times, Values]:
        """Times in ns, shape (n,), and values, shape (n, series), oldest first; n is at most `ticks`."""
        count = min(self._rows, self._ticks)
        order = np.arange(self._rows - count, self._rows) % self._ticks
        return self._times[order], self._values[order, : len(self.series)]

    def _write(self, block: Block, ids: Ids, values: Values) -> None:
        row = self._values[self._rows % self._ticks]
        if block.keyframe:
            row[:] = np.nan
        else:
            row[:] = self._values[(self._rows - 1) % self._ticks]
        row[ids] = values
        if block.keyframe:
            missing = np.flatnonzero(np.isnan(row[: len(self.series)]))
            self.reasons = dict.fromkeys(missing.tolist(), NOT_REPORTED)
        self._values_came(ids, values, row)
        for series_id, reason in block.unknown.items():
            row[series_id] = np.nan
            self.reasons[series_id] = reason
        self._added(block.time_unix_ns)

    def _values_came(self, ids: Ids, values: Values, row: Values) -> None:
        if self.reasons:
            self.reasons = {series_id: reason for series_id, reason in self.reasons.items() if np.isnan(row[series_id])}
        if np.isnan(values).any():
            self.reasons.update((series_id, NOT_A_NUMBER) for series_id in ids[np.isnan(values)].tolist())

    def _added(self, time_unix_ns: int) -> None:
        self.time_unix_ns = time_unix_ns
        self._times[self._rows % self._ticks] = time_unix_ns
        self._rows += 1


class Windows:
    """The windows of all nodes, within `bytes_max` bytes together. A node has one for each source that tells of it."""

    def __init__(self, *, ticks: int, bytes_max: int) -> None:
        self._ticks = ticks
        self._bytes_max = bytes_max
        #: By node and source; the order is the order of the newest connection.
        self._windows: dict[tuple[str, str], NodeWindow] = {}
        self._connected: set[tuple[str, str]] = set()

    def get(self, node: str) -> NodeWindow | None:
        """What the node's agent told."""
        return self._windows.get((node, AGENT))

    def of(self, node: str) -> list[NodeWindow]:
        """All windows of a node, its agent's and those of imports."""
        return [window for window in self._windows.values() if window.node == node]

    def all(self) -> list[NodeWindow]:
        return list(self._windows.values())

    def connect(self, node: str, epoch: str, *, source: str = AGENT) -> NodeWindow:
        """The window for what a source tells of `nodes/{node}`: as it was when only the connection was lost, empty in a new epoch."""
        window = self._windows.pop((node, source), None)
        if window is None or window.epoch != epoch:
            window = NodeWindow(epoch, self._ticks, node=node, source=source)
        self._windows[node, source] = window
        self._connected.add((node, source))
        return window

    def disconnect(self, node: str, *, source: str = AGENT) -> None:
        self._connected.discard((node, source))

    def define(self, window: NodeWindow, first_id: int, keys: Sequence[SeriesKey]) -> None:
        """As `NodeWindow.define`; forgets nodes that are gone when memory is short.

        Raises ResourceExhausted when it does not suffice, or beyond 4,096 series of one node.
        """
        total = first_id + len(keys)
        if total > SERIES_MAX:
            raise ResourceExhausted(
                f"{total} series are more than a node may have ({SERIES_MAX}); report fewer",
                Reason.LIMIT_EXCEEDED,
                series=str(total),
            )
        needed = window.nbytes_with(total) - window.nbytes
        if needed:
            self._make_room(needed)
        window.define(first_id, keys)

    def _make_room(self, needed: int) -> None:
        used = sum(window.nbytes for window in self._windows.values())
        for key in [key for key in self._windows if key not in self._connected]:
            if used + needed <= self._bytes_max:
                return
            used -= self._windows.pop(key).nbytes
        if used + needed > self._bytes_max:
            raise ResourceExhausted(
                f"{len(self._windows)} windows fill the {self._bytes_max} bytes that they may have; "
                "raise window_bytes_max or run another collector",
                Reason.LIMIT_EXCEEDED,
            )


def _capacity(series: int) -> int:
    return -(-series // _GROWTH) * _GROWTH
