"""Where exporters send to in tests: an HTTP server that keeps what it gets, and windows that are filled by hand."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cramjam
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from prometheus_client import CollectorRegistry

from switchgear.collector.export.exporters import Exporters
from switchgear.collector.export.settings import OtlpExport, RemoteWrite
from switchgear.collector.series import Kind, SeriesKey
from switchgear.collector.windows import AGENT, NodeWindow, Windows
from switchgear.core.clock import ManualClock

START_NS = 1_795_000_000_000_000_000
STALE_BITS = 0x7FF0000000000002

_FIELDS: Mapping[str, Sequence[tuple[str, int, str]]] = {
    # As in prometheus/prompb and io/prometheus/write/v2, without what we do not send; `*` is repeated.
    "Label": [("name", 1, "string"), ("value", 2, "string")],
    "Sample": [("value", 1, "double"), ("timestamp", 2, "int64")],
    "TimeSeries": [("labels", 1, "*Label"), ("samples", 2, "*Sample")],
    "WriteRequest": [("timeseries", 1, "*TimeSeries")],
    "Metadata2": [("type", 1, "uint32"), ("help_ref", 3, "uint32"), ("unit_ref", 4, "uint32")],
    "TimeSeries2": [("labels_refs", 1, "*uint32"), ("samples", 2, "*Sample"), ("metadata", 5, "Metadata2")],
    "Request2": [("symbols", 4, "*string"), ("timeseries", 5, "*TimeSeries2")],
}


def _messages() -> Callable[[str], Any]:
    file = descriptor_pb2.FileDescriptorProto(name="export_world.proto", package="export_world", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind in fields:
            plain = kind.removeprefix("*")
            added = message.field.add(
                name=field_name, number=number, label=kinds.LABEL_REPEATED if kind != plain else kinds.LABEL_OPTIONAL
            )
            if plain in _FIELDS:
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".export_world.{plain}"
            else:
                added.type = kinds.Type.Value(f"TYPE_{plain.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"export_world.{name}"))


_message = _messages()

#: Labels, time in ms, value and its bits.
Sample = tuple[tuple[tuple[str, str], ...], int, float, int]


def _sample(labels: Sequence[tuple[str, str]], sample: Any) -> Sample:
    bits: int = struct.unpack("<Q", struct.pack("<d", sample.value))[0]
    return tuple(labels), sample.timestamp, sample.value, bits


def samples_v1(body: bytes) -> list[Sample]:
    request = _message("WriteRequest").FromString(bytes(cramjam.snappy.decompress_raw(body)))
    return [
        _sample([(label.name, label.value) for label in series.labels], sample)
        for series in request.timeseries
        for sample in series.samples
    ]


def samples_v2(body: bytes) -> list[tuple[Sample, str, int]]:
    """With unit and type of each."""
    request = _message("Request2").FromString(bytes(cramjam.snappy.decompress_raw(body)))
    symbols = request.symbols
    assert symbols[0] == ""
    found = []
    for series in request.timeseries:
        texts = [symbols[ref] for ref in series.labels_refs]
        labels = list(zip(texts[::2], texts[1::2], strict=True))
        metadata = series.metadata
        found += [(_sample(labels, sample), symbols[metadata.unit_ref], metadata.type) for sample in series.samples]
    return found


@dataclass
class Sink:
    """answer: called with each body, returns status, headers and text; always 204 when left out. tls: what makes it speak HTTPS."""

    answer: Callable[[bytes], tuple[int, Mapping[str, str], str]] = lambda _: (204, {}, "")
    bodies: list[bytes] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        sink = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, headers, text = sink.answer(body)
                if status < 300:
                    sink.bodies.append(body)
                    sink.headers.append({name.lower(): value for name, value in self.headers.items()})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if status != 204:
                    self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode() if status != 204 else b"")

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if self.tls is not None:
            # A handshake in the thread of its connection: a client that breaks off holds up no other.
            self._server.socket = self.tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.url = f"{'https' if self.tls else 'http'}://127.0.0.1:{self._server.server_address[1]}/api/v1/write"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def samples(self) -> list[Sample]:
        """Of remote write 1.0, in the order in which they came."""
        return [sample for body in self.bodies for sample in samples_v1(body)]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def key(metric: str, *labels: tuple[str, str], unit: str = "", kind: Kind = Kind.GAUGE) -> SeriesKey:
    return SeriesKey(metric, unit, tuple(sorted(labels)), kind)


def window(
    node: str, *keys: SeriesKey, source: str = AGENT, windows: Windows | None = None, epoch: str = "e"
) -> NodeWindow:
    windows = windows or Windows(bytes_max=1 << 30)
    opened = windows.connect(f"nodes/{node}", epoch, source=source)
    windows.define(opened, 0, keys)
    return opened


def fill(opened: NodeWindow, second: float, *values: float) -> None:
    """A row at so many seconds after START_NS."""
    opened.append(START_NS + round(second * 1e9), np.arange(len(values)), np.array(values, float))


class Exporting:
    """Exporters that run, on a clock that is moved by hand."""

    def __init__(self, *targets: RemoteWrite | OtlpExport) -> None:
        self.clock = ManualClock()
        self.registry = CollectorRegistry()
        self._exporters = Exporters(
            [target for target in targets if isinstance(target, RemoteWrite)],
            [target for target in targets if isinstance(target, OtlpExport)],
            self.clock,
            self.registry,
        )

    async def run(self) -> None:
        await self._exporters.run()

    def tick(self, opened: NodeWindow, second: float, *values: float) -> None:
        fill(opened, second, *values)
        for tap in self._exporters.taps:
            tap.row(opened)

    def late(self, opened: NodeWindow, seconds: Sequence[float], rows: Sequence[Sequence[float]]) -> None:
        times = np.array([START_NS + round(second * 1e9) for second in seconds])
        for tap in self._exporters.taps:
            tap.late(opened, opened.series, times, np.array(rows, float))

    def counted(self, name: str, target: str = "sink", **labels: str) -> float:
        """Of `switchgear_{name}`, the total of those that have these labels."""
        return sum(
            sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == f"switchgear_{name}" and sample.labels.items() >= {"target": target, **labels}.items()
        )

    async def until(self, reached: Callable[[], object], step_s: float = 0.5) -> None:
        """Moves the clock by such steps, so that open batches go out, until it is so. With 0 no series ends meanwhile."""
        async with asyncio.timeout(20):
            while not reached():
                self.clock.advance(step_s)
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def exporting(*targets: RemoteWrite | OtlpExport) -> AsyncIterator[Exporting]:
    """At the end what waits is sent, as when a collector ends."""
    world = Exporting(*targets)
    running = asyncio.create_task(world.run())
    await asyncio.sleep(0)
    try:
        yield world
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
