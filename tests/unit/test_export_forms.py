"""Series and rows in the forms of Prometheus and OpenTelemetry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from export_world import STALE_BITS, START_NS, key, samples_v1, samples_v2
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from switchgear.collector.export.otlp import Otlp
from switchgear.collector.export.prometheus import WriteV1
from switchgear.collector.export.rows import Encoder, Row, Selection
from switchgear.collector.export.write_v2 import WriteV2
from switchgear.collector.series import Kind, SeriesKey
from switchgear.collector.windows import AGENT

VALUES = (0.0, -0.0, 1.5, float("inf"), 5e-324, 2.0**63)


def row(second: int, keys: Sequence[SeriesKey], values: Sequence[float], node: str = "n1", source: str = AGENT) -> Row:
    selection = Selection(node, source, keys, since_unix_ns=START_NS)
    return Row(selection, START_NS + second * 10**9, np.array(values, float))


def ended(second: int, keys: Sequence[SeriesKey]) -> Row:
    selection = Selection("n1", AGENT, keys, since_unix_ns=START_NS, stale=True)
    return Row(selection, START_NS + second * 10**9, np.full(len(keys), STALE_BITS, np.uint64).view(np.float64))


def labels_v1(one: SeriesKey, external: dict[str, str] | None = None, source: str = AGENT) -> dict[str, str]:
    sample = samples_v1(WriteV1(external or {}).encode([row(0, [one], [1], source=source)]).body)[0]
    assert [name for name, _ in sample[0]] == sorted(name for name, _ in sample[0])
    return dict(sample[0])


def test_a_series_has_its_labels_its_node_and_who_told_of_it() -> None:
    one = key("DCGM_FI_DEV_GPU_TEMP", ("UUID", "GPU-1"), ("gpu", "0"), ("empty", ""))
    expected = {"__name__": "DCGM_FI_DEV_GPU_TEMP", "UUID": "GPU-1", "gpu": "0", "node": "n1", "instance": "n1"}
    assert labels_v1(one) == {**expected, "job": "switchgear"}
    assert labels_v1(one, source="scrape/dcgm") == {**expected, "job": "dcgm"}
    assert labels_v1(one, source="otlp") == {**expected, "job": "otlp"}


def test_external_labels_come_beside_ours_or_instead_and_an_empty_one_removes() -> None:
    external = {"cluster": "a", "job": "gpu", "instance": ""}
    assert labels_v1(key("m"), external) == {"__name__": "m", "cluster": "a", "job": "gpu", "node": "n1"}


def test_a_label_of_a_series_does_not_hide_ours() -> None:
    found = labels_v1(key("m", ("node", "other"), ("job", "theirs")))
    assert (found["node"], found["exported_node"], found["exported_job"]) == ("n1", "other", "theirs")


@pytest.mark.parametrize(
    ("metric", "label", "names"),
    [
        ("http.server-duration", "k8s.pod.name", {"http_server_duration", "k8s_pod_name"}),
        ("9lives", "9x", {"_9lives", "_9x"}),
        ("ns:rule", "a:b", {"ns:rule", "a_b"}),
        ("größe", "größe", {"gr__e"}),
        ("m", "", {"m", "_"}),
    ],
)
def test_names_have_the_characters_that_prometheus_takes(metric: str, label: str, names: set[str]) -> None:
    found = labels_v1(key(metric, (label, "1")))
    assert names <= {found["__name__"], *found}


def test_labels_that_become_one_have_both_values() -> None:
    assert labels_v1(key("m", ("a.b", "1"), ("a_b", "2")))["a_b"] == "1;2"


@pytest.mark.parametrize("encoder", [WriteV1({}), WriteV2({})])
def test_remote_write_has_each_value_bit_for_bit_and_its_time(encoder: Encoder) -> None:
    keys = [key("m", ("at", str(at))) for at in range(len(VALUES))]
    rows = [row(0, keys, VALUES), row(1, keys, VALUES[::-1]), row(2, keys[:2], VALUES[:2], node="other")]
    encoded = encoder.encode(rows)
    body = encoded.body
    found = samples_v1(body) if isinstance(encoder, WriteV1) else [sample for sample, _, _ in samples_v2(body)]
    assert encoded.samples == len(found) == 14
    expected = [
        (one.selection.node, f"{at}", one.time_unix_ns // 10**6, bits)
        for one in rows
        for at, bits in enumerate(one.values.view(np.uint64).tolist())
    ]
    assert [(dict(labels)["node"], dict(labels)["at"], ms, bits) for labels, ms, _, bits in found] == expected


def test_remote_write_2_has_units_and_kinds_and_each_text_once() -> None:
    keys = [
        key("energy", unit="joules", kind=Kind.COUNTER),
        key("power", unit="watts"),
        key("errors", kind=Kind.COUNTER),
    ]
    found = samples_v2(WriteV2({}).encode([row(0, keys, [1, 2, 3]), row(1, keys, [1, 2, 3])]).body)
    assert [(dict(sample[0])["__name__"], unit, kind) for sample, unit, kind in found[:3]] == [
        ("energy", "joules", 1),
        ("power", "watts", 2),
        ("errors", "", 1),
    ]


@pytest.mark.parametrize("encoder", [WriteV1({}), WriteV2({}), Otlp({})])
def test_a_series_that_is_there_twice_is_sent_once(encoder: Encoder) -> None:
    encoded = encoder.encode([row(0, [key("m"), key("m"), key("n")], [1, 2, 3])])
    assert encoded.samples == 2


def test_the_end_of_a_series_is_prometheus_own_marker() -> None:
    for encoder in (WriteV1({}), WriteV2({})):
        body = encoder.encode([ended(3, [key("m"), key("n")])]).body
        found = samples_v1(body) if isinstance(encoder, WriteV1) else [sample for sample, _, _ in samples_v2(body)]
        assert {(ms, bits) for _, ms, _, bits in found} == {((START_NS + 3 * 10**9) // 10**6, STALE_BITS)}


def test_opentelemetry_gets_a_resource_for_each_row_gauges_and_sums_with_their_start() -> None:
    keys = [
        key("power", ("gpu", "0"), unit="W"),
        key("errors", ("gpu", "0"), kind=Kind.COUNTER),
        key("power", ("gpu", "1"), unit="W"),
    ]
    body = Otlp({"cluster": "a"}).encode([row(5, keys, [1.5, 7, 2.5]), row(6, keys, [1.5, 8, 2.5])]).body
    request = ExportMetricsServiceRequest.FromString(body)
    assert len(request.resource_metrics) == 2
    resource = request.resource_metrics[0]
    assert {item.key: item.value.string_value for item in resource.resource.attributes} == {
        "host.name": "n1",
        "service.name": "switchgear",
        "cluster": "a",
    }
    assert resource.scope_metrics[0].scope.name == "switchgear"
    errors, power = resource.scope_metrics[0].metrics
    assert (errors.name, errors.sum.is_monotonic, errors.sum.aggregation_temporality) == ("errors", True, 2)
    point = errors.sum.data_points[0]
    assert (point.as_double, point.start_time_unix_nano, point.time_unix_nano) == (7, START_NS, START_NS + 5 * 10**9)
    assert (power.name, power.unit) == ("power", "W")
    assert [(point.attributes[0].value.string_value, point.as_double) for point in power.gauge.data_points] == [
        ("0", 1.5),
        ("1", 2.5),
    ]


def test_opentelemetry_is_told_of_an_end_by_a_point_without_a_value() -> None:
    request = ExportMetricsServiceRequest.FromString(
        Otlp({}).encode([ended(3, [key("m"), key("n", kind=Kind.COUNTER)])]).body
    )
    gauge, total = request.resource_metrics[0].scope_metrics[0].metrics
    for point in (gauge.gauge.data_points[0], total.sum.data_points[0]):
        assert (point.flags, point.WhichOneof("value"), point.time_unix_nano) == (1, None, START_NS + 3 * 10**9)
        assert point.start_time_unix_nano == START_NS
