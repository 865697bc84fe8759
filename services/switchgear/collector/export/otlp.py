"""OpenTelemetry's metrics: a request of one resource for each row.

https://github.com/open-telemetry/opentelemetry-proto/blob/main/opentelemetry/proto/metrics/v1/metrics.proto
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import groupby

import numpy as np

from switchgear.collector.blocks import Ids, Values
from switchgear.collector.export.prometheus import job_of
from switchgear.collector.export.rows import Encoded, Row, Selection
from switchgear.collector.export.template import Template, compiled, distinct, field, plain_of, rendered
from switchgear.collector.series import Kind
from switchgear.core.version import VERSION

_TIME_BYTES = 8
_START, _TIME, _AS_DOUBLE = b"\x11", b"\x19", b"\x21"
_NO_RECORDED_VALUE = b"\x40\x01"
#: aggregation_temporality CUMULATIVE, is_monotonic
_CUMULATIVE = b"\x10\x02\x18\x01"
_SCOPE = field(1, field(1, b"switchgear") + field(2, VERSION.encode()))


class Otlp:
    """opentelemetry.proto.collector.metrics.v1.ExportMetricsServiceRequest: gauges, and counters as cumulative monotonic sums.

    A resource is a node (`host.name`) as one source tells of it (`service.name`). A sum starts when the collector saw its source first; a
    counter that begins anew is seen by its smaller value, as Prometheus does. What has ended gets a point without a value. See `rows.Encoder`.
    """

    headers: Mapping[str, str] = {"Content-Type": "application/x-protobuf"}

    def __init__(self, resource_attributes: Mapping[str, str]) -> None:
        self._resource_attributes = dict(resource_attributes)

    def prepare(self, selection: Selection) -> tuple[Template, Ids]:
        resource = {"host.name": selection.node, "service.name": job_of(selection), **self._resource_attributes}
        head = field(1, b"".join(field(1, _attribute(item)) for item in resource.items()))
        first = distinct([(key.metric, key.unit, key.kind, key.labels) for key in selection.keys])
        # The points of a metric are in one place; values follow them.
        kept = sorted(first, key=lambda at: selection.keys[at].metric)
        keys = [selection.keys[at] for at in kept]
        start = _START + selection.since_unix_ns.to_bytes(8, "little")
        attributes = [b"".join(field(7, _attribute(label)) for label in key.labels) for key in keys]
        counters = [key.kind is Kind.COUNTER for key in keys]

        def build(values: Sequence[bytes], time: bytes) -> bytes:
            if selection.stale:  # without a value: in its place is the start
                rest = [_START + value + _TIME + time + _NO_RECORDED_VALUE for value in values]
            else:
                rest = [
                    (start if counter else b"") + _TIME + time + _AS_DOUBLE + value
                    for counter, value in zip(counters, values, strict=True)
                ]
            points = iter([field(1, labels + point) for labels, point in zip(attributes, rest, strict=True)])
            metrics = []
            for (name, unit, kind), same in groupby(keys, lambda key: (key.metric, key.unit, key.kind)):
                data = b"".join([next(points) for _ in same])
                data = field(7, data + _CUMULATIVE) if kind is Kind.COUNTER else field(5, data)
                metrics.append(field(2, field(1, name.encode()) + field(3, unit.encode()) + data))
            return field(1, head + field(2, _SCOPE + b"".join(metrics)))

        return compiled(build, len(keys), _TIME_BYTES), np.array(kept, np.int64)

    def encode(self, rows: Sequence[Row]) -> Encoded:
        parts: list[tuple[Template, Values, bytes]] = []
        for row in rows:
            template, kept = row.selection.prepared(self)
            values = _starts(row) if row.selection.stale else row.values
            parts.append((template, values[kept], row.time_unix_ns.to_bytes(_TIME_BYTES, "little")))
        return Encoded(plain_of(rendered(parts)), sum(len(values) for _, values, _ in parts))


def _starts(row: Row) -> Values:
    return np.full(len(row.values), row.selection.since_unix_ns, np.uint64).view(np.float64)


@lru_cache(16384)
def _attribute(label: tuple[str, str]) -> bytes:
    name, value = label
    return field(1, name.encode()) + field(2, field(1, value.encode()))
