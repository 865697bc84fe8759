"""OTLP's metrics, to series and samples of nodes. Pure.

Source: opentelemetry-proto, metrics/v1/metrics.proto. Gauges and sums are taken. Histograms, exponential histograms and summaries are
not: a window holds one number a series, and nothing here would judge a distribution.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, DataPointFlags, Metric, NumberDataPoint

from switchgear.collector.imports.keys import LABELS, node_of, prometheus_label, prometheus_metric, series_key
from switchgear.collector.imports.settings import OtlpImport, chosen
from switchgear.collector.series import SeriesKey

#: Attributes of a resource that tell its series from those of another resource of the node; the others describe it.
_IDENTITY = ("service.namespace", "service.name", "service.instance.id")
_NO_VALUE = DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
_DELTA = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA


@dataclass(slots=True)
class Points:
    """Samples of one node, as they came. times: ns, 0 where nobody said. deltas: whether the value is to be added to the one before."""

    keys: list[SeriesKey] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    deltas: list[bool] = field(default_factory=list)


def read(request: ExportMetricsServiceRequest, settings: OtlpImport) -> tuple[dict[str, Points], Counter[str]]:
    """Samples by `nodes/{node}`, and how many points are rejected for which reason."""
    nodes = dict[str, Points]()
    rejected = Counter[str]()
    for resource in request.resource_metrics:
        attributes = {item.key: _text(item.value) for item in resource.resource.attributes}
        node = next((attributes[name] for name in settings.node_attributes if attributes.get(name)), "")
        name = node_of(node)
        own = [(prometheus_label(key), attributes[key]) for key in _IDENTITY if attributes.get(key)]
        points = nodes.setdefault(name, Points()) if name else Points()
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                if not name:
                    rejected["no_node"] += _count(metric)
                elif chosen(settings.metrics, metric.name):
                    rejected.update(_read(metric, own, points))
    return nodes, rejected


def _read(metric: Metric, own: Sequence[tuple[str, str]], points: Points) -> Counter[str]:
    kind = metric.WhichOneof("data")
    found: Any = metric.gauge if kind == "gauge" else metric.sum
    if kind not in {"gauge", "sum"}:
        return Counter({"histogram": _count(metric)})
    rejected = Counter[str]()
    name = prometheus_metric(metric.name)
    delta = kind == "sum" and found.aggregation_temporality == _DELTA
    counter = kind == "sum" and found.is_monotonic
    for point in found.data_points:
        key = series_key(name, metric.unit, _labels(own, point.attributes), counter=counter)
        if isinstance(key, str):
            rejected[LABELS] += 1
            continue
        points.keys.append(key)
        points.times.append(point.time_unix_nano)
        points.values.append(_value(point))
        points.deltas.append(delta)
    return rejected


def _labels(own: Sequence[tuple[str, str]], attributes: Iterable[KeyValue]) -> Iterable[tuple[str, str]]:
    """A point's own attributes go before those of its resource."""
    labels = dict(own)
    for item in attributes:
        value = item.value
        labels[prometheus_label(item.key)] = value.string_value or _text(value)
    return labels.items()


def _value(point: NumberDataPoint) -> float:
    if point.flags & _NO_VALUE:
        return math.nan
    return point.as_double if point.WhichOneof("value") == "as_double" else float(point.as_int)


def _text(value: AnyValue) -> str:
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value
        case "bool_value":
            return "true" if value.bool_value else "false"
        case "int_value":
            return str(value.int_value)
        case "double_value":
            return repr(value.double_value)
        case _:  # lists, maps and bytes name nothing
            return ""


def _count(metric: Metric) -> int:
    kind = metric.WhichOneof("data")
    return len(getattr(metric, kind).data_points) if kind else 0
