"""Readings into columnar blocks: a dictionary that only grows, then what changed, as small differences where that loses nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from switchgear.agent.deltas import Encoder
from switchgear.agent.readings import Reading, SeriesKey
from switchgear.v1alpha import telemetry_service_pb2 as pb

#: Bound of the wire format: a collector sizes its windows by it.
SERIES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Block:
    """One tick. series: how many the dictionary had then. message: the serialized `switchgear.v1alpha.Block`, with deltas."""

    time_unix_ns: int
    sequence: int
    keyframe: bool
    series: int
    message: bytes


class Sampler:
    """State of one epoch.

    keyframe_every: ticks from one keyframe to the next; 60 bounds what a lost block can hide to a minute at 1 Hz.
    Series beyond `series_max` are refused and counted in `refused`; the ones that exist go on.
    """

    def __init__(self, *, series_max: int = SERIES_MAX, keyframe_every: int = 60) -> None:
        self._series_max = series_max
        self._keyframe_every = keyframe_every
        self._ids: dict[SeriesKey, int] = {}
        #: The dictionary; the position is the id. It only grows, so another thread may read it.
        self.keys: list[SeriesKey] = []
        self._latest: list[Reading] = []
        self._encoder = Encoder()
        #: Number of the newest block; the first is 1.
        self.sequence = 0
        self._time_unix_ns = 0
        self._ticks_to_keyframe = 0
        self._refused: set[SeriesKey] = set()

    @property
    def refused(self) -> int:
        """Series that did not fit into the dictionary; counted up to `series_max` of them."""
        return len(self._refused)

    def dictionary(self) -> list[SeriesKey]:
        """All series; the position is the id."""
        return list(self.keys)

    def latest(self) -> list[Reading]:
        """Newest reading of every series, in id order. Safe to call from another thread."""
        return list(self._latest)

    def restart(self) -> None:
        """The next block is a keyframe."""
        self._ticks_to_keyframe = 0

    def tick(self, readings: Iterable[Reading], time_unix_ns: int) -> Block:
        """The block of this tick. Ids from `len(dictionary())` before the call on are new."""
        ids, latest = self._ids, self._latest
        changed = dict[int, Reading]()
        for reading in readings:
            series_id = ids.get(reading.key)
            if series_id is None:
                if len(ids) >= self._series_max:
                    if len(self._refused) < self._series_max:
                        self._refused.add(reading.key)
                    continue
                series_id = ids[reading.key] = len(ids)
                self.keys.append(reading.key)
                latest.append(reading)
            elif (before := latest[series_id]) is reading or before == reading:
                continue
            latest[series_id] = reading
            changed[series_id] = reading
        self.sequence += 1
        self._time_unix_ns = time_unix_ns
        keyframe = self._ticks_to_keyframe == 0
        self._ticks_to_keyframe = (self._keyframe_every if keyframe else self._ticks_to_keyframe) - 1
        items = list(enumerate(latest)) if keyframe else sorted(changed.items())
        return self._block(self._encoder.encode(items, len(latest), keyframe=keyframe))

    def keyframe(self) -> Block:
        """The newest block once more, as a keyframe; the next one is a keyframe too."""
        self.restart()
        return self._block(Encoder().encode(enumerate(self._latest), len(self._latest), keyframe=True))

    def _block(self, message: pb.Block) -> Block:
        message.time_unix_ns, message.sequence = self._time_unix_ns, self.sequence
        return Block(
            self._time_unix_ns, self.sequence, message.keyframe, len(self._latest), message.SerializeToString()
        )
