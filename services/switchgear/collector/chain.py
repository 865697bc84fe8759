"""Blocks of one epoch, one after the other, into rows of values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum, auto

import numpy as np

from switchgear.collector.blocks import Block, Decoder, Ids, Values, protocol
from switchgear.collector.series import EMPTY, SeriesKey

#: Names and labels of all series of a node; what an agent sends for eight GPUs is a tenth of it.
TEXT_CHARS_MAX = 4 * 1024 * 1024
REASON_CHARS_MAX = 256
NOT_REPORTED = "not reported yet"
NOT_A_NUMBER = "not a number"


#: Of each series: the row of newest values, and what the decoder keeps.
ROW_BYTES = 42
#: Series are laid out in cache lines.
_ROUND = 8


class Outcome(Enum):
    APPLIED = auto()
    #: It came before; nothing changed.
    DUPLICATE = auto()
    #: What it builds on is missing: nothing can be used until a keyframe comes.
    NEED_KEYFRAME = auto()


class Chain:
    """The newest value of each series of an epoch.

    NaN is unknown; `reasons` says why. After a gap nothing is guessed: rows go on at the next keyframe.
    gaps_lost: whether what is missing before a keyframe counts as lost. An agent that sends a backlog tells itself what it gave up.
    """

    def __init__(self, epoch: str, *, gaps_lost: bool = True) -> None:
        self.epoch = epoch
        self.gaps_lost = gaps_lost
        #: Shared by all windows with the same series.
        self.schema = EMPTY
        self.reasons: dict[int, str] = {}
        #: Of the newest row; 0 before the first.
        self.time_unix_ns = 0
        #: Blocks that the agent made and that are not in the window.
        self.blocks_lost = 0
        self._sequence: int | None = None
        self._in_step = False
        self._decoder = Decoder()
        self._row: Values = np.empty(0)
        #: Which values of the row are unknown, to see at a glance whether reasons change.
        self._unknown = b""

    @property
    def series(self) -> Sequence[SeriesKey]:
        """By id."""
        return self.schema.keys

    @property
    def nbytes(self) -> int:
        """What it takes, as if no other had the same series."""
        return ROW_BYTES * len(self._row) + self.schema.nbytes

    @property
    def newest(self) -> Values:
        """Newest value of each series, shape (series,); NaN where it is unknown. A view: the next row overwrites it."""
        return self._row[: len(self.schema.keys)]

    def latest(self) -> Values:
        """As `newest`, but the caller's own."""
        return self.newest.copy()

    def define(self, first_id: int, keys: Sequence[SeriesKey]) -> None:
        """Adds series from `first_id` on; what is defined already must be the same.

        Raises Invalid (STREAM_PROTOCOL) when ids leave a gap or change their meaning, or beyond TEXT_CHARS_MAX.
        """
        count = len(self.series)
        if not first_id and keys == self.series:
            return
        known = tuple(self.series[first_id : first_id + len(keys)])
        if first_id > count or known != tuple(keys[: len(known)]):
            raise protocol("the dictionary leaves a gap or gives an id another meaning; begin a new epoch for that")
        if len(known) == len(keys):
            return
        schema = self.schema.extended(keys[len(known) :] if known else keys)
        if schema.chars > TEXT_CHARS_MAX:
            raise protocol(f"names and labels of a node's series have more than {TEXT_CHARS_MAX} characters")
        self.reasons.update((series_id, NOT_REPORTED) for series_id in range(count, len(schema.keys)))
        self.schema = schema
        if len(schema.keys) > len(self._row):
            self._widen(capacity(len(schema.keys), len(self._row)))

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
        ids, values = decoded
        if block.keyframe:
            self._row.fill(np.nan)
        self._row[ids] = values
        for series_id in block.unknown:
            self._row[series_id] = np.nan
        self._explain(ids, block.unknown, anew=block.keyframe)
        self._row_came(block.time_unix_ns)
        return Outcome.APPLIED

    def append(self, time_unix_ns: int, ids: Ids, values: Values) -> None:
        """Adds a row: `values` (NaN = unknown) for the series `ids`, the others as they were. For what sends no blocks."""
        self._row[ids] = values
        self._explain(ids, {}, anew=False)
        self._row_came(time_unix_ns)

    def _row_came(self, time_unix_ns: int) -> None:
        self.time_unix_ns = time_unix_ns

    def _widen(self, width: int) -> None:
        """Makes room for so many series."""
        row = np.full(width, np.nan)
        row[: len(self._row)] = self._row
        self._row = row

    def _explain(self, ids: Ids, why: Mapping[int, str], *, anew: bool) -> None:
        """Brings `reasons` up to the row, in which the series `ids` have new values."""
        unknown = np.isnan(self._row).tobytes()
        if unknown == self._unknown and not why and not anew:
            return
        self._unknown = unknown
        before = {} if anew else self.reasons
        told = set(ids.tolist())
        self.reasons = {
            series_id: why.get(series_id)
            or before.get(series_id)
            or (NOT_A_NUMBER if series_id in told else NOT_REPORTED)
            for series_id in np.flatnonzero(np.isnan(self.newest)).tolist()
        }


def capacity(series: int, before: int) -> int:
    """For how many series there is room once there are so many: what is told in small portions grows in larger ones."""
    if series <= before:
        return before
    return -(-max(series, before + before // 8) // _ROUND) * _ROUND
