"""Dictionaries from the wire into keys of series, at a cost that a whole fleet may ask for at once.

Nodes of the same make differ in their labels alone. So series that refer to sets of labels are read once for all of them and found again by their
bytes; of each node there is no more to read than its sets.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from google.protobuf.message import DecodeError

from switchgear.collector.blocks import protocol
from switchgear.collector.series import Keys, Kind, Labels, Layout, Name, SeriesKey
from switchgear.collector.windows import SERIES_MAX
from switchgear.core import rpc
from switchgear.v1alpha import telemetry_service_pb2 as pb

LABELS_MAX = 32
NAME_CHARS_MAX = 256
#: Makes of nodes that are found again, each at most SERIES_MAX series without labels.
_MAKES_REMEMBERED = 32


class _Told(NamedTuple):
    """What series that refer to sets of labels say. places: the greatest of those that they refer to."""

    first_id: int
    layout: Layout
    places: int


def dictionary_of(dictionary: pb.Dictionary) -> tuple[int, Sequence[SeriesKey]]:
    """The first id, and the series from it on. Raises Invalid (STREAM_PROTOCOL)."""
    if not dictionary.label_sets:
        series = _unpacked(dictionary.packed).series if dictionary.packed else dictionary.series
        return _counted_up(series), tuple(_key_of(item) for item in series)
    told = _packed_told(dictionary.packed) if dictionary.packed else _told(dictionary.series)
    if not told.places <= len(dictionary.label_sets) <= SERIES_MAX:
        raise protocol(
            f"a series refers to labels that its dictionary does not have, or these are more than {SERIES_MAX}"
        )
    return told.first_id, Keys(told.layout, ((), *(_labels_of(item.labels) for item in dictionary.label_sets)))


@lru_cache(_MAKES_REMEMBERED)
def _packed_told(packed: bytes) -> _Told:
    return _told(_unpacked(packed).series)


def _told(series: Sequence[pb.Series]) -> _Told:
    first_id = _counted_up(series)
    if any(item.labels for item in series):
        raise protocol("a series has labels of its own beside those that it refers to")
    layout = Layout(tuple(Name(*_name_of(item), item.label_set) for item in series))
    return _Told(first_id, layout, max((item.label_set for item in series), default=0))


def _unpacked(packed: bytes) -> pb.Dictionary:
    unpacking = zlib.decompressobj()
    try:
        data = unpacking.decompress(packed, rpc.MESSAGE_BYTES_MAX)
        if not unpacking.eof:
            raise protocol(f"a packed dictionary is cut short, or has more than {rpc.MESSAGE_BYTES_MAX} bytes")
        return pb.Dictionary.FromString(data)
    except (zlib.error, DecodeError) as error:
        raise protocol(f"a packed dictionary cannot be read: {error}") from None


def _key_of(series: pb.Series) -> SeriesKey:
    if series.label_set:
        raise protocol("a series refers to labels that its dictionary does not have")
    metric, unit, kind = _name_of(series)
    return SeriesKey(metric, unit, _labels_of(series.labels), kind)


def _name_of(series: pb.Series) -> tuple[str, str, Kind]:
    if not series.metric or len(series.metric) > NAME_CHARS_MAX or len(series.unit) > NAME_CHARS_MAX:
        raise protocol(f"series {series.id} needs a metric; it and its unit have at most {NAME_CHARS_MAX} characters")
    kind = Kind.COUNTER if series.kind == pb.Series.COUNTER else Kind.GAUGE
    # Nodes share the text of their names as long as one of them has it.
    return sys.intern(series.metric), sys.intern(series.unit), kind


def _labels_of(labels: Mapping[str, str]) -> Labels:
    found = sorted(labels.items())
    if len(found) > LABELS_MAX or any(len(name) > NAME_CHARS_MAX or len(text) > NAME_CHARS_MAX for name, text in found):
        raise protocol(f"a series has at most {LABELS_MAX} labels, and texts of at most {NAME_CHARS_MAX} characters")
    return tuple((sys.intern(name), text) for name, text in found)


def _counted_up(series: Sequence[pb.Series]) -> int:
    ids = [item.id for item in series]
    if len(ids) > SERIES_MAX:
        raise protocol(f"a node has at most {SERIES_MAX} series")
    first = ids[0] if ids else 0
    if ids != list(range(first, first + len(ids))):
        raise protocol("series ids of a dictionary must count up by one")
    return first
