"""OTLP's metrics, to series and samples of nodes. Pure.

Source: opentelemetry-proto, metrics/v1/metrics.proto. Gauges and sums are taken. Histograms, exponential histograms and summaries are
not: a window holds one number a series, and nothing here would judge a distribution.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, DataPointFlags, Metric, NumberDataPoint

from switchgear.collector.imports.keys import LABELS, node_of, prometheus_label, prometheus_metric, series_key
from switchgear.collector.imports.settings import OtlpImport, chosen
from switchgear.collector.series import SeriesKey

#: Attributes of a resource that tell its series from those of another resource of the node; the others describe it.
_IDENTITY = ("service.namespace", "service.name", "service.instance.id")
#: Series of a large fleet that says the same of each node; beyond it all are read anew.
KEYS_MAX = 65_536
_NO_VALUE = DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
_DELTA = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA


@dataclass(slots=True)
class Points:
    """Samples of one node, as they came. times: ns, 0 where nobody said. deltas: whether the value is to be added to the one before."""

    keys: list[SeriesKey] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    deltas: list[bool] = field(default_factory=list)


class Keys:
    """Keys of series that came before, by what was said of them: nodes that say the same share them."""

    def __init__(self) -> None:
        self._keys: dict[object, SeriesKey | str] = {}

    def of(self, metric: _Metric, point: NumberDataPoint) -> SeriesKey | str:
        """The key, or why there is none."""
        told = tuple([(item.key, item.value.string_value) for item in point.attributes])
        if not all(value for _, value in told):  # numbers and the like
            return _key(metric, ((item.key, _text(item.value)) for item in point.attributes))
        found = self._keys.get((metric, told))
        if found is None:
            if len(self._keys) >= KEYS_MAX:
                self._keys.clear()
            found = self._keys[metric, told] = _key(metric, told)
        return found


class _Metric(NamedTuple):
    name: str
    unit: str
    counter: bool
    #: Labels of the resource.
    own: tuple[tuple[str, str], ...]


def read(
    request: ExportMetricsServiceRequest, settings: OtlpImport, keys: Keys
) -> tuple[dict[str, Points], Counter[str]]:
    """Samples by `nodes/{node}`, and how many points are rejected for which reason."""
    nodes = dict[str, Points]()
    rejected = Counter[str]()
    for resource in request.resource_metrics:
        attributes = {item.key: _text(item.value) for item in resource.resource.attributes}
        node = next((attributes[name] for name in settings.node_attributes if attributes.get(name)), "")
        name = node_of(node)
        own = tuple((prometheus_label(key), attributes[key]) for key in _IDENTITY if attributes.get(key))
        points = nodes.setdefault(name, Points()) if name else Points()
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                if not name:
                    rejected["no_node"] += _count(metric)
                elif chosen(settings.metrics, metric.name):
                    rejected.update(_read(metric, own, points, keys))
    return nodes, rejected


def _read(metric: Metric, own: tuple[tuple[str, str], ...], points: Points, keys: Keys) -> Counter[str]:
    kind = metric.WhichOneof("data")
    found: Any = metric.gauge if kind == "gauge" else metric.sum
    if kind not in {"gauge", "sum"}:
        return Counter({"histogram": _count(metric)})
    rejected = Counter[str]()
    delta = kind == "sum" and found.aggregation_temporality == _DELTA
    named = _Metric(metric.name, metric.unit, kind == "sum" and found.is_monotonic, own)
    for point in found.data_points:
        key = keys.of(named, point)
        if isinstance(key, str):
            rejected[LABELS] += 1
            continue
        points.keys.append(key)
        points.times.append(point.time_unix_nano)
        points.values.append(_value(point))
        points.deltas.append(delta)
    return rejected


def _key(metric: _Metric, attributes: Iterable[tuple[str, str]]) -> SeriesKey | str:
    # A point's own attributes go before those of its resource.
    labels = dict(metric.own) | {prometheus_label(name): value for name, value in attributes}
    return series_key(prometheus_metric(metric.name), metric.unit, labels.items(), counter=metric.counter)


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
