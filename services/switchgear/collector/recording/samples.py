"""Every row of samples on its way into a file, as far as the event loop has it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from switchgear.collector.blocks import Ids, Values
from switchgear.collector.windows import NodeWindow, SeriesKey, Times

#: Samples of a chunk: 16 MiB. Two nodes with 4,096 series of which 64 rows come at once fit.
CHUNK_SAMPLES = 2 * 1024**2
#: Chunks that wait for the disk; beyond them new ones are lost.
CHUNKS_MAX = 4
#: Of one file; it is packed in memory, in twice the 8 bytes of each.
FILE_SAMPLES_MAX = 16 * 1024**2


@dataclass(frozen=True, slots=True)
class Defined:
    """A stream: rows of the same series of one source of a node."""

    number: int
    node: str
    source: str
    series: Sequence[SeriesKey]


@dataclass(slots=True)
class Chunk:
    """begins: whether a file begins with it. defined: streams whose rows are here first. rows: stream, time and values of each."""

    begins: bool
    values: Values
    defined: list[Defined] = field(default_factory=list)
    streams: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    used: int = 0


class _Stream:
    """keys: what a window, or a backlog, has. columns: those of them that are recorded, None for all."""

    __slots__ = ("columns", "keys", "number")

    def __init__(self, number: int, keys: Sequence[SeriesKey], columns: Ids | None) -> None:
        self.number, self.keys, self.columns = number, keys, columns


class SampleTap:
    """See `taps.Tap`. Gathers chunks; `take` hands them over."""

    def __init__(self, keep: str, drop: str) -> None:
        keeps, drops = re.compile(keep or ".*"), re.compile(drop or "(?!)")
        # Names of metrics come from agents: those of many versions fit.
        self._wants = lru_cache(4096)(lambda metric: bool(keeps.fullmatch(metric)) and not drops.fullmatch(metric))
        #: By node, source and whether they are of the past. Those of nodes that are gone leave with the file.
        self._streams: dict[tuple[str, str, bool], _Stream] = {}
        self._number = 0
        self._full: list[Chunk] = []
        self._chunk = Chunk(True, np.empty(CHUNK_SAMPLES))
        #: Of this file.
        self.samples = 0
        #: Since they were asked for.
        self.lost = 0

    def row(self, window: NodeWindow) -> None:
        stream, values = self._stream(window, window.schema.keys, late=False), window.newest
        self._put(stream, window.time_unix_ns, values if stream.columns is None else values[stream.columns])

    def late(self, window: NodeWindow, series: Sequence[SeriesKey], times: Times, rows: Values) -> None:
        for time_unix_ns, values in zip(times.tolist(), rows, strict=True):
            stream = self._stream(window, series, late=True)
            self._put(stream, time_unix_ns, values if stream.columns is None else values[stream.columns])

    @property
    def is_full(self) -> bool:
        return bool(self._full)

    def take(self) -> list[Chunk]:
        """What came since the last time."""
        # First these, or there would be no room for the newest.
        full, self._full = self._full, []
        if self._chunk.streams:
            full.append(self._chunk)
            self._chunk = Chunk(False, np.empty(CHUNK_SAMPLES))
        return full

    @property
    def begins(self) -> bool:
        """Whether what comes now begins a file already."""
        return self._chunk.begins

    def restart(self) -> None:
        """As `begin`, and what was not taken yet is lost."""
        self.lost += self._chunk.used + sum(chunk.used for chunk in self._full)
        self._full.clear()
        self._chunk = Chunk(True, self._chunk.values)
        self._forget()

    def begin(self) -> None:
        """What comes from now on goes into another file, or into one that knows nothing of what came before."""
        if self._chunk.streams:
            self._hand_over()
        self._chunk.begins = True
        self._forget()

    def _forget(self) -> None:
        self._streams.clear()
        self._chunk.defined.clear()
        self.samples = 0

    def _stream(self, window: NodeWindow, keys: Sequence[SeriesKey], *, late: bool) -> _Stream:
        """With room for a row of it in the chunk."""
        if self._chunk.used + len(keys) > CHUNK_SAMPLES:
            self._hand_over()  # which may forget what a stream is
        stream = self._streams.get((window.node, window.source, late))
        return stream if stream is not None and stream.keys is keys else self._define(window, keys, late=late)

    def _define(self, window: NodeWindow, keys: Sequence[SeriesKey], *, late: bool) -> _Stream:
        columns = np.array([at for at, key in enumerate(keys) if self._wants(key.metric)], np.int64)
        self._number += 1
        stream = _Stream(self._number, keys, None if len(columns) == len(keys) else columns)
        self._streams[window.node, window.source, late] = stream
        if len(columns):
            recorded = keys if stream.columns is None else [keys[at] for at in columns]
            self._chunk.defined.append(Defined(stream.number, window.node, window.source, recorded))
        return stream

    def _put(self, stream: _Stream, time_unix_ns: int, values: Values) -> None:
        count = len(values)
        if not count:
            return
        chunk, end = self._chunk, self._chunk.used + count
        chunk.values[chunk.used : end] = values
        chunk.used = end
        chunk.streams.append(stream.number)
        chunk.times.append(time_unix_ns)
        chunk.ends.append(end)
        self.samples += count

    def _hand_over(self) -> None:
        chunk = self._chunk
        if len(self._full) < CHUNKS_MAX:
            self._full.append(chunk)
            self._chunk = Chunk(False, np.empty(CHUNK_SAMPLES))
            return
        # Nobody took them: the disk is too slow. What this one defined is to be told again.
        self.lost += chunk.used
        self._chunk = Chunk(chunk.begins, chunk.values)
        self._forget()
