"""Dictionaries from the wire into keys of series, at a cost that a whole fleet may ask for at once.

Nodes of a fleet tell the same series again and again, and the series of a GPU differ in their metric alone. So what was read once is found
again by its bytes, and nodes share the objects.
"""

from __future__ import annotations

import zlib
from functools import lru_cache

from google.protobuf.message import DecodeError

from switchgear.collector.blocks import protocol
from switchgear.collector.windows import SERIES_MAX, Kind, SeriesKey
from switchgear.core import rpc
from switchgear.v1alpha import telemetry_service_pb2 as pb

LABELS_MAX = 32
NAME_CHARS_MAX = 256
#: Different series that are found again: those that all nodes share, and all of some fifty that do not, in 6 MB. The keys live as long as a
#: window has them. Of a fleet in which each GPU has its UUID, a longer memory finds no more and takes a hundred bytes a series.
_SERIES_REMEMBERED = 16_384
_LABELS_REMEMBERED = 8192
_NAMES_REMEMBERED = 16_384

# Tags of `pb.Dictionary.series`, and of `pb.Series`: id, metric, unit, kind, labels.
_SERIES, _ID, _METRIC, _UNIT, _KIND, _LABELS = 0x0A, 0x08, 0x12, 0x1A, 0x20, 0x2A

Labels = tuple[tuple[str, str], ...]


def dictionary_of(dictionary: pb.Dictionary) -> tuple[int, list[SeriesKey]]:
    """The first id, and the series from it on. Raises Invalid (STREAM_PROTOCOL)."""
    if dictionary.packed:
        data = _unpacked(dictionary.packed)
        if (found := _walked(data)) is not None:
            return found
        try:
            dictionary = pb.Dictionary.FromString(data)
        except DecodeError as error:
            raise protocol(f"a packed dictionary cannot be read: {error}") from None
    if len(dictionary.series) > SERIES_MAX:
        raise protocol(f"a node has at most {SERIES_MAX} series")
    return _counted_up([series.id for series in dictionary.series]), [_series_of(item) for item in dictionary.series]


def _unpacked(packed: bytes) -> bytes:
    unpacking = zlib.decompressobj()
    try:
        data = unpacking.decompress(packed, rpc.MESSAGE_BYTES_MAX)
    except zlib.error as error:
        raise protocol(f"a packed dictionary cannot be read: {error}") from None
    if not unpacking.eof:
        raise protocol(f"a packed dictionary is cut short, or has more than {rpc.MESSAGE_BYTES_MAX} bytes")
    return data


def _walked(data: bytes) -> tuple[int, list[SeriesKey]] | None:
    """As our agents write it, series by series; None when it is written in another way."""
    ids, keys, at, end = list[int](), list[SeriesKey](), 0, len(data)
    try:
        while at < end:
            tag, length = data[at], data[at + 1]
            at += 2
            if length > 0x7F:
                length += (data[at] - 1) << 7
                at += 1
            series_id, begin = 0, at
            if data[at] == _ID:
                series_id, begin = data[at + 1], at + 2
                if series_id > 0x7F:
                    series_id += (data[at + 2] - 1) << 7
                    begin = at + 3
            at += length
            # A third byte of a number is no length of a series and no id that we take.
            if tag != _SERIES or at > end or length > 0x3FFF or series_id > 0x3FFF or len(ids) == SERIES_MAX:
                return None
            ids.append(series_id)
            keys.append(_key_of(data[begin:at]))
    except (IndexError, DecodeError):
        return None
    return _counted_up(ids), keys


@lru_cache(_SERIES_REMEMBERED)
def _key_of(data: bytes) -> SeriesKey:
    """data: a Series without its id."""
    # In the order in which protobuf writes them; what is written in another is read by protobuf.
    at, end = 0, len(data) - 1
    if at < end and data[at] == _METRIC and data[1] < 0x80:
        at += 2 + data[1]
    if at < end and data[at] == _UNIT and data[at + 1] < 0x80:
        at += 2 + data[at + 1]
    if at < end and data[at] == _KIND:
        at += 2
    if at < end and data[at] == _LABELS:
        labels = _labels_of(data[at:])
        if labels is not None:
            metric, unit, kind = _name_of(data[:at])
            return SeriesKey(metric, unit, labels, kind)
    return _series_of(pb.Series.FromString(data))


@lru_cache(_NAMES_REMEMBERED)
def _name_of(data: bytes) -> tuple[str, str, Kind]:
    """data: a Series without id and labels."""
    key = _series_of(pb.Series.FromString(data))
    return key.metric, key.unit, key.kind


@lru_cache(_LABELS_REMEMBERED)
def _labels_of(data: bytes) -> Labels | None:
    """data: the labels of a Series; None when other fields are among them."""
    series = pb.Series.FromString(data)
    if series.metric or series.unit or series.kind or series.id:
        return None
    series.metric = "any"
    return _series_of(series).labels


def _series_of(series: pb.Series) -> SeriesKey:
    texts = [series.metric, series.unit, *series.labels, *series.labels.values()]
    if not series.metric or len(series.labels) > LABELS_MAX or any(len(text) > NAME_CHARS_MAX for text in texts):
        raise protocol(
            f"series {series.id} needs a metric, at most {LABELS_MAX} labels and texts of at most {NAME_CHARS_MAX} characters"
        )
    kind = Kind.COUNTER if series.kind == pb.Series.COUNTER else Kind.GAUGE
    return SeriesKey(series.metric, series.unit, tuple(sorted(series.labels.items())), kind)


def _counted_up(ids: list[int]) -> int:
    first = ids[0] if ids else 0
    if ids != list(range(first, first + len(ids))):
        raise protocol("series ids of a dictionary must count up by one")
    return first
