"""Series under the names and labels that Prometheus knows them by, and its remote write 1.0.

https://prometheus.io/docs/specs/prw/remote_write_spec/
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from switchgear.collector.blocks import Values
from switchgear.collector.export.rows import Encoded, Row, Selection
from switchgear.collector.export.template import Template, compiled, distinct, field, rendered, varint
from switchgear.collector.windows import AGENT, SeriesKey

#: As long as the feed's bounds of time hold, so that each sample has 16 bytes.
_TIME_BYTES = 6
_JOB = "switchgear"

_NO_METRIC = re.compile(r"[^a-zA-Z0-9_:]")
_NO_LABEL = re.compile(r"[^a-zA-Z0-9_]")

Labels = tuple[tuple[str, str], ...]


def job_of(selection: Selection) -> str:
    """Who tells of the node: `switchgear` for its agent, or an import's name."""
    return _JOB if selection.source == AGENT else selection.source.removeprefix("scrape/")


def own_labels(selection: Selection, external: Mapping[str, str]) -> dict[str, str]:
    """The labels that all series of a selection have: node, instance, job and the external ones, which win; an empty value removes one."""
    own = {"node": selection.node, "instance": selection.node, "job": job_of(selection), **external}
    return {name: value for name, value in own.items() if value}


def labels_of(key: SeriesKey, own: Mapping[str, str]) -> Labels:
    """All labels, sorted as remote write wants them (by bytes: capitals before `__name__`).

    A label of the series that `own` has too becomes `exported_…`, as when Prometheus scrapes; two that become one by the characters
    that Prometheus does not take have both values.
    """
    labels = {"__name__": metric_name(key.metric), **own}
    for name, value in key.labels:
        if value:
            name = label_name(name)
            if name in own or name == "__name__":
                name = f"exported_{name}"
            labels[name] = f"{labels[name]};{value}" if name in labels else value
    return tuple(sorted(labels.items()))


@lru_cache(4096)
def metric_name(name: str) -> str:
    """With an underscore for each character that Prometheus' metrics do not have."""
    name = _NO_METRIC.sub("_", name)
    return f"_{name}" if name[:1].isdigit() else name


@lru_cache(4096)
def label_name(name: str) -> str:
    """With an underscore for each character that Prometheus' labels do not have."""
    name = _NO_LABEL.sub("_", name)
    return f"_{name}" if not name or name[0].isdigit() else name


def time_bytes(time_unix_ns: int) -> bytes:
    """The time of a sample, in ms."""
    return varint(time_unix_ns // 1_000_000)


class WriteV1:
    """Remote write 1.0, prometheus.WriteRequest: each sample with all its labels. See `rows.Encoder`."""

    headers: Mapping[str, str] = {
        "Content-Type": "application/x-protobuf",
        "Content-Encoding": "snappy",
        "X-Prometheus-Remote-Write-Version": "0.1.0",
    }

    def __init__(self, external: Mapping[str, str]) -> None:
        self._external = dict(external)

    def prepare(self, selection: Selection) -> tuple[Template, list[int] | None]:
        own = own_labels(selection, self._external)
        labels = [labels_of(key, own) for key in selection.keys]
        kept = distinct(labels)
        heads = [b"".join(map(_label, labels[at])) for at in kept]

        def build(values: Sequence[bytes], time: bytes) -> bytes:
            return b"".join(
                field(1, head + b"\x12\x10\x09" + value + b"\x10" + time)
                for head, value in zip(heads, values, strict=True)
            )

        return compiled(build, len(kept), _TIME_BYTES), kept if len(kept) < len(labels) else None

    def encode(self, rows: Sequence[Row]) -> Encoded:
        parts = [(*row.selection.prepared(self), row) for row in rows]
        kept = [(template, _kept(row.values, at), time_bytes(row.time_unix_ns)) for template, at, row in parts]
        return Encoded(rendered(kept), sum(len(values) for _, values, _ in kept))


def _kept(values: Values, at: list[int] | None) -> Values:
    return values if at is None else values[at]


# Most labels are on many series: of one GPU, one node, or all.
@lru_cache(65536)
def _label(label: tuple[str, str]) -> bytes:
    name, value = label
    return field(1, field(1, name.encode()) + field(2, value.encode()))
