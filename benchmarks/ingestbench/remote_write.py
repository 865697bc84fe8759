"""Prometheus remote write 1.0 as a sender that encodes labels once, and a sink that keeps what it gets."""

from __future__ import annotations

import http.client
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import cramjam
import numpy as np
import numpy.typing as npt
from wirebench.peers import _bytes

if TYPE_CHECKING:
    from ingestbench.data import Series

_CONNECTIONS = 4
#: Of one request: six nodes have 1,920 samples, and 2,000 are what Prometheus itself sends at once.
NODES_A_REQUEST = 6
_HEADERS = {
    "Content-Encoding": "snappy",
    "Content-Type": "application/x-protobuf",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
    "User-Agent": "switchgear-benchmark",
}
#: Milliseconds of today as protobuf's varint.
_TIME_BYTES = 6


class Template:
    """One request of certain series, of which only values and time change."""

    def __init__(self, series: Sequence[Series]) -> None:
        body = bytearray()
        places = []
        sample = _bytes(2, b"\x09" + bytes(8) + b"\x10" + bytes(_TIME_BYTES))
        for one in series:
            labels = b"".join(
                _bytes(1, _bytes(1, name.encode()) + _bytes(2, value.encode())) for name, value in one.labels
            )
            body += _bytes(1, labels + sample)
            places.append(len(body) - _TIME_BYTES - 1 - 8)
        self._body = np.frombuffer(bytes(body), np.uint8).copy()
        starts = np.array(places)[:, None]
        self._values_at = starts + np.arange(8)
        self._times_at = starts + 9 + np.arange(_TIME_BYTES)

    def request(self, values: npt.NDArray[np.float64], time_unix_ms: int) -> bytes:
        """values: one a series, in their order."""
        self._body[self._values_at] = values.astype("<f8").view(np.uint8).reshape(-1, 8)
        shifts = range(0, 7 * _TIME_BYTES, 7)
        varint = [time_unix_ms >> shift & 0x7F | (0x80 if shift != 7 * (_TIME_BYTES - 1) else 0) for shift in shifts]
        self._body[self._times_at] = np.array(varint, np.uint8)
        return bytes(cramjam.snappy.compress_raw(self._body.tobytes()))


def send(
    address: str,
    path: str,
    nodes: Sequence[Sequence[Series]],
    values: Sequence[npt.NDArray[np.float64]],
    ticks: int,
) -> float:
    """Sends all ticks of all nodes as fast as they are accepted, with times that end now; returns how long it took.

    nodes: the series of each. values: of each recording; see `data.values`. Raises RuntimeError when a request is refused.
    """
    begin_ms = int(time.time() * 1000) - ticks * 1000
    groups = [range(begin, min(begin + NODES_A_REQUEST, len(nodes))) for begin in range(0, len(nodes), NODES_A_REQUEST)]
    failures: list[str] = []

    def work(mine: Sequence[range]) -> None:
        connection = http.client.HTTPConnection(address, timeout=120)
        templates = [(Template([one for node in group for one in nodes[node]]), group) for group in mine]
        for tick in range(ticks):
            for template, group in templates:
                row = np.concatenate([values[node % len(values)][tick] for node in group])
                connection.request("POST", path, template.request(row, begin_ms + tick * 1000), _HEADERS)
                answer = connection.getresponse()
                told = answer.read()
                if answer.status >= 300:
                    failures.append(f"HTTP {answer.status}: {told[:200]!r}")
                    return

    threads = [threading.Thread(target=work, args=(groups[number::_CONNECTIONS],)) for number in range(_CONNECTIONS)]
    start_s = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(f"{address} refused samples: {failures[0]}")
    return time.monotonic() - start_s


def samples_in(body: bytes) -> Iterator[tuple[bytes, float, int]]:
    """Labels as they are encoded, value and time (Unix milliseconds) of each sample of a request."""
    for field, series in _fields(bytes(cramjam.snappy.decompress_raw(body))):
        if field != 1:
            continue
        labels = bytearray()
        for inner, payload in _fields(series):
            if inner == 1:
                labels += _bytes(1, payload)
            elif inner == 2:
                yield bytes(labels), *_sample(payload)


def _sample(payload: bytes) -> tuple[float, int]:
    value, time_ms, at = 0.0, 0, 0
    while at < len(payload):
        if payload[at] == 0x09:
            (value,) = struct.unpack_from("<d", payload, at + 1)
            at += 9
        else:
            time_ms, at = _varint(payload, at + 1)
    return value, time_ms


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Fields of a message that only has messages and strings in it."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        size, at = _varint(data, at)
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
