"""Prometheus remote write 2.0: names and labels as numbers into a table of strings that each request brings.

https://prometheus.io/docs/specs/prw/remote_write_spec_2_0/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cramjam
import numpy as np
import numpy.typing as npt

from switchgear.collector.blocks import Ids
from switchgear.collector.export.prometheus import labels_of, own_labels, time_bytes
from switchgear.collector.export.rows import Encoded, Row, Selection
from switchgear.collector.export.template import distinct, field, put_values
from switchgear.collector.windows import Kind

_COUNTER, _GAUGE = b"\x08\x01", b"\x08\x02"
#: A reference is a varint of four bytes whatever its number (268 million at most), so that everything behind it keeps its place.
_REF = b"\x80\x80\x80\x00"
_SAMPLE = b"\x12\x10\x09" + bytes(8) + b"\x10" + bytes(6)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """symbols: the strings; the message of a row with references to nothing, which of the symbols each is and where, and where samples are."""

    symbols: list[str]
    data: bytes
    refs: Ids
    refs_at: Ids
    samples_at: Ids
    kept: Ids


class WriteV2:
    """io.prometheus.write.v2.Request. See `rows.Encoder`."""

    headers: Mapping[str, str] = {
        "Content-Type": "application/x-protobuf;proto=io.prometheus.write.v2.Request",
        "Content-Encoding": "snappy",
        "X-Prometheus-Remote-Write-Version": "2.0.0",
    }

    def __init__(self, external: Mapping[str, str]) -> None:
        self._external = dict(external)

    def prepare(self, selection: Selection) -> _Prepared:
        own = own_labels(selection, self._external)
        labels = [labels_of(key, own) for key in selection.keys]
        kept = distinct(labels)
        table: dict[str, int] = {}
        refs: list[int] = []
        refs_at: list[int] = []
        samples_at: list[int] = []
        data = b""
        for at in kept:
            key = selection.keys[at]
            names = [table.setdefault(text, len(table)) for label in labels[at] for text in label]
            unit = table.setdefault(key.unit, len(table))
            refs_field = field(1, _REF * len(names))
            metadata = field(5, (_COUNTER if key.kind is Kind.COUNTER else _GAUGE) + b"\x20" + _REF)
            message = field(5, refs_field + _SAMPLE + metadata)
            end = len(data) + len(message)
            sample_at = end - len(metadata) - len(_SAMPLE)
            refs += [*names, unit]
            refs_at += range(sample_at - len(_REF) * len(names), sample_at, len(_REF))
            refs_at.append(end - len(_REF))
            samples_at.append(sample_at + 3)
            data += message
        return _Prepared(list(table), data, *(np.array(item, np.int64) for item in (refs, refs_at, samples_at, kept)))

    def encode(self, rows: Sequence[Row]) -> Encoded:
        table = {"": 0}
        parts: list[tuple[_Prepared, Row]] = [(row.selection.prepared(self), row) for row in rows]
        refs = [
            _varints(np.array([table.setdefault(text, len(table)) for text in prepared.symbols]))[prepared.refs]
            for prepared, _ in parts
        ]
        symbols = b"".join(field(4, text.encode()) for text in table)
        out = bytearray().join([symbols, *(prepared.data for prepared, _ in parts)])
        at = np.cumsum([len(symbols), *(len(prepared.data) for prepared, _ in parts)])
        view = np.ndarray((len(out) - 3,), "<u4", buffer=out, strides=(1,))
        view[_joined([prepared.refs_at for prepared, _ in parts], at)] = np.concatenate(refs)
        samples_at = _joined([prepared.samples_at for prepared, _ in parts], at)
        put_values(out, samples_at, np.concatenate([row.values[prepared.kept] for prepared, row in parts]))
        times = np.repeat(
            np.array([np.frombuffer(time_bytes(row.time_unix_ns), "V6")[0] for _, row in parts]),
            [len(prepared.kept) for prepared, _ in parts],
        )
        np.ndarray((len(out) - 5,), "V6", buffer=out, strides=(1,))[samples_at + 9] = times
        return Encoded(bytes(cramjam.snappy.compress_raw(out)), len(samples_at))


def _joined(places: Sequence[Ids], at: Ids) -> Ids:
    return np.concatenate([there + base for there, base in zip(places, at, strict=False)])


def _varints(refs: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    parts = refs & 0x7F | (refs << 1) & 0x7F00 | (refs << 2) & 0x7F0000 | (refs << 3) & 0x7F000000
    return (parts | 0x808080).astype(np.uint32)
