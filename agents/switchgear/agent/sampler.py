"""Readings into columnar blocks: a dictionary that only grows, then the values that changed."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from switchgear.agent.readings import Reading, SeriesKey

#: Bound of the wire format: a collector sizes its windows by it.
SERIES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Block:
    """The values of one tick as they go over the wire; see `switchgear.v1alpha.Block`."""

    time_unix_ns: int
    sequence: int
    keyframe: bool
    series_ids: bytes
    values_f64: bytes
    unknown: tuple[tuple[int, str], ...]


class Sampler:
    """State of one epoch.

    keyframe_every: ticks from one keyframe to the next; 60 bounds what a lost block can hide to a minute at 1 Hz.
    Series beyond `series_max` are refused and counted in `refused`; the ones that exist go on.
    """

    def __init__(self, *, series_max: int = SERIES_MAX, keyframe_every: int = 60) -> None:
        self._series_max = series_max
        self._keyframe_every = keyframe_every
        self._ids: dict[SeriesKey, int] = {}
        self._latest: list[Reading] = []
        self._sequence = 0
        self._ticks_to_keyframe = 0
        self._time_unix_ns = 0
        self._refused: set[SeriesKey] = set()

    @property
    def refused(self) -> int:
        """Series that did not fit into the dictionary; counted up to `series_max` of them."""
        return len(self._refused)

    def dictionary(self) -> list[SeriesKey]:
        """All series; the position is the id."""
        return list(self._ids)

    def latest(self) -> list[Reading]:
        """Newest reading of every series, in id order. Safe to call from another thread."""
        return list(self._latest)

    def tick(self, readings: Iterable[Reading], time_unix_ns: int) -> Block:
        """The block of this tick. Ids from `len(dictionary())` before the call on are new."""
        self._time_unix_ns = time_unix_ns
        changed = dict[int, Reading]()
        for reading in readings:
            series_id = self._ids.get(reading.key)
            if series_id is None:
                if len(self._ids) >= self._series_max:
                    if len(self._refused) < self._series_max:
                        self._refused.add(reading.key)
                    continue
                series_id = self._ids[reading.key] = len(self._ids)
                self._latest.append(reading)
            elif self._latest[series_id] == reading:
                continue
            self._latest[series_id] = reading
            changed[series_id] = reading
        if self._ticks_to_keyframe == 0:
            return self.keyframe()
        self._ticks_to_keyframe -= 1
        return self._block(sorted(changed.items()), keyframe=False)

    def keyframe(self) -> Block:
        """All values as of the last tick."""
        self._ticks_to_keyframe = self._keyframe_every - 1
        return self._block(list(enumerate(self._latest)), keyframe=True)

    def _block(self, items: list[tuple[int, Reading]], *, keyframe: bool) -> Block:
        self._sequence += 1
        values = [(series_id, reading.value) for series_id, reading in items if reading.value is not None]
        unknown = tuple((series_id, reading.reason) for series_id, reading in items if reading.value is None)
        ids = [] if keyframe and not unknown else [series_id for series_id, _ in values]
        return Block(
            time_unix_ns=self._time_unix_ns,
            sequence=self._sequence,
            keyframe=keyframe,
            series_ids=struct.pack(f"<{len(ids)}I", *ids),
            values_f64=struct.pack(f"<{len(values)}d", *(value for _, value in values)),
            unknown=unknown,
        )
