"""The same ticks in the protocols that others speak: OTLP over gRPC with zstd, Prometheus remote write with snappy.

Each request holds one tick with all its series, as an exporter that samples once a second would send it. Parts that never change (names and
labels) are encoded once, as a good client does, and only patched: what is measured is the wire and not how well a client was written.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Protocol

import cramjam
import zstandard
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as otlp
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2 as metrics

from switchgear.agent.readings import Kind, Reading, SeriesKey

Ticks = Sequence[tuple[int, list[Reading]]]


class Peer(Protocol):
    def request(self, time_unix_ns: int, readings: Sequence[Reading]) -> bytes:
        """The compressed body of one request."""


class Otlp:
    """ExportMetricsServiceRequest; the node is the resource, all other labels are attributes of the points. Integers go as integers."""

    def __init__(self, series: Sequence[SeriesKey], start_unix_ns: int, compress: Callable[[bytes], bytes]) -> None:
        self._compress = compress
        self._message = otlp.ExportMetricsServiceRequest()
        resource = self._message.resource_metrics.add()
        resource.resource.attributes.append(_attribute("host.name", "gpu-0001.example"))
        scope = resource.scope_metrics.add()
        by_name: dict[str, metrics.Metric] = {}
        self._points: list[metrics.NumberDataPoint] = []
        for key in series:
            metric = by_name.get(key.metric)
            if metric is None:
                metric = by_name[key.metric] = scope.metrics.add(name=key.metric, unit=key.unit)
                if key.kind is Kind.COUNTER:
                    metric.sum.aggregation_temporality = metrics.AGGREGATION_TEMPORALITY_CUMULATIVE
                    metric.sum.is_monotonic = True
            points = metric.sum.data_points if key.kind is Kind.COUNTER else metric.gauge.data_points
            point = points.add(attributes=[_attribute(name, value) for name, value in key.labels if name != "hostname"])
            if key.kind is Kind.COUNTER:
                point.start_time_unix_nano = start_unix_ns
            self._points.append(point)

    def request(self, time_unix_ns: int, readings: Sequence[Reading]) -> bytes:
        for point, reading in zip(self._points, readings, strict=True):
            point.time_unix_nano = time_unix_ns
            value = reading.value
            assert value is not None
            if value.is_integer():
                point.as_int = int(value)
            else:
                point.as_double = value
        return self._compress(self._message.SerializeToString())


def zstd_each() -> Callable[[bytes], bytes]:
    """Each request by itself, as the OpenTelemetry collector's `compression: zstd` does."""
    return zstandard.ZstdCompressor(level=3).compress


def zstd_stream() -> Callable[[bytes], bytes]:
    """One zstd stream for the whole connection, which no OTLP exporter has: how far compression alone could go."""
    stream = zstandard.ZstdCompressor(level=3).compressobj()
    return lambda data: stream.compress(data) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)


class RemoteWrite1:
    """prometheus.WriteRequest: each series with all its labels and one sample."""

    def __init__(self, series: Sequence[SeriesKey]) -> None:
        self._labels = [
            b"".join(_bytes(1, _bytes(1, name.encode()) + _bytes(2, value.encode())) for name, value in _labels(key))
            for key in series
        ]

    def request(self, time_unix_ns: int, readings: Sequence[Reading]) -> bytes:
        at = b"\x10" + _varint(time_unix_ns // 1_000_000)
        body = b"".join(
            _bytes(1, labels + _bytes(2, b"\x09" + struct.pack("<d", reading.value) + at))
            for labels, reading in zip(self._labels, readings, strict=True)
        )
        return bytes(cramjam.snappy.compress_raw(body))


class RemoteWrite2:
    """io.prometheus.write.v2.Request: names and labels as numbers into a table of strings, which each request brings."""

    def __init__(self, series: Sequence[SeriesKey]) -> None:
        table = {"": 0}
        self._refs = []
        for key in series:
            refs = [table.setdefault(text, len(table)) for label in _labels(key) for text in label]
            self._refs.append(_bytes(1, b"".join(map(_varint, refs))))
        self._metadata = [_bytes(5, b"\x08" + (b"\x01" if key.kind is Kind.COUNTER else b"\x02")) for key in series]
        self._symbols = b"".join(_bytes(4, text.encode()) for text in table)

    def request(self, time_unix_ns: int, readings: Sequence[Reading]) -> bytes:
        at = b"\x10" + _varint(time_unix_ns // 1_000_000)
        body = b"".join(
            _bytes(5, refs + _bytes(2, b"\x09" + struct.pack("<d", reading.value) + at) + metadata)
            for refs, metadata, reading in zip(self._refs, self._metadata, readings, strict=True)
        )
        return bytes(cramjam.snappy.compress_raw(self._symbols + body))


def http_head(body: bytes, version: str) -> bytes:
    """What Prometheus sends before a remote-write body."""
    protobuf = "application/x-protobuf"
    if version.startswith("2"):
        protobuf += ";proto=io.prometheus.write.v2.Request"
    return (
        f"POST /api/v1/write HTTP/1.1\r\nHost: 127.0.0.1:9090\r\nUser-Agent: Prometheus/3.7.0\r\nContent-Length: {len(body)}\r\n"
        f"Content-Encoding: snappy\r\nContent-Type: {protobuf}\r\nX-Prometheus-Remote-Write-Version: {version}\r\n\r\n"
    ).encode()


def _labels(key: SeriesKey) -> list[tuple[str, str]]:
    return sorted([("__name__", key.metric), ("instance", "gpu-0001.example:9400"), ("job", "gpu"), *key.labels])


def _attribute(name: str, value: str) -> KeyValue:
    return KeyValue(key=name, value=AnyValue(string_value=value))


def _bytes(field: int, payload: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(payload)) + payload


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
