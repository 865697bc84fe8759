"""Bytes and CPU of the telemetry wire, beside what others would send for the same ticks.

    python benchmarks/wire.py [--seconds 600] [--seed 7] [--json FILE]

Each of two seeded recordings of a node with eight H100 in training (their rates of change are printed) goes through the agent's real stream into the real
collector, one block at a time as it would at 1 Hz, with a counting TCP proxy between them: "at the socket" is everything in the TCP stream,
HTTP/2 and gRPC with it. Then the same ticks as OTLP requests over gRPC, each compressed with zstd, through the same proxy, and as remote
write with snappy (body and the head that Prometheus sends, not sent). Each row that the collector gets is compared with the recording bit for bit.
CPU is this process's, for making a message from readings and for taking one in, without the network. Exit code 1 when ours is more than
half of OTLP with zstd or not equal to the recording; whether it meets our goal of 1.4 bytes a sample is said too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from prometheus_client import CollectorRegistry
from wirebench.peers import Otlp, Peer, RemoteWrite1, RemoteWrite2, http_head, zstd_each, zstd_stream
from wirebench.proxy import counting
from wirebench.recording import RECORDINGS, Recording

from switchgear.agent.messages import dictionary_message
from switchgear.agent.outbox import Outbox
from switchgear.agent.sample_spool import SampleSpool
from switchgear.agent.sampler import Sampler
from switchgear.agent.spool import Spool
from switchgear.agent.stream import Identity, TelemetryStream
from switchgear.collector.blocks import Values
from switchgear.collector.dictionary import dictionary_of
from switchgear.collector.event_writer import EventWriter
from switchgear.collector.ingest import Ingest
from switchgear.collector.messages import block_of
from switchgear.collector.metrics import CollectorMetrics
from switchgear.collector.queries import Queries
from switchgear.collector.service import TelemetryApi
from switchgear.collector.sharding import Sharding
from switchgear.collector.siblings import Siblings
from switchgear.collector.windows import NodeWindow, SeriesKey, Times, Windows
from switchgear.core import rpc
from switchgear.core.clock import ManualClock, SystemClock
from switchgear.v1alpha import telemetry_service_pb2 as pb
from switchgear.v1alpha.telemetry_service_pb2_grpc import add_TelemetryServiceServicer_to_server

BYTES_A_SAMPLE_GOAL = 1.4
OTLP_SHARE_MAX = 0.5
NODE = "nodes/gpu-0001"


async def ours(recording: Recording, folder: Path) -> dict[str, Any]:
    """The real agent's stream into the real collector."""
    windows, received = Windows(bytes_max=1 << 30), Received()
    # A second a tick, as it would be: the collector throttles agents that are faster.
    clock = ManualClock()
    ingest = Ingest(
        windows,
        EventWriter(nothing, lambda _: False, lambda: None),
        clock,
        CollectorMetrics(CollectorRegistry()),
        connected=lambda *_: None,
        disconnected=lambda _: None,
        taps=[received],
    )
    server = rpc.Server()
    add_TelemetryServiceServicer_to_server(
        TelemetryApi(ingest, windows, Queries(windows, clock), Siblings(Sharding())), server.grpc
    )
    address = await server.start("127.0.0.1:0", ["switchgear.v1alpha.TelemetryService"])
    samples = SampleSpool(folder / "samples", "epoch")
    spool = Spool(folder / "spool", "boot")
    outbox = Outbox(Sampler(), spool, samples)
    async with counting(address) as counted:
        identity = Identity(NODE, spool.boot_id, "epoch", "benchmark")
        stream = TelemetryStream(counted.address, identity, outbox, SystemClock())
        running = asyncio.create_task(stream.run())
        while not stream.connected:  # noqa: ASYNC110 - the stream tells nobody
            await asyncio.sleep(0.01)
        marks = []
        for number, (time_unix_ns, readings) in enumerate(recording.ticks, 1):
            clock.advance(1.0)
            outbox.put(outbox.sampler.tick(readings, time_unix_ns))
            while len(received.rows) < number:  # noqa: ASYNC110 - a tap tells nobody
                await asyncio.sleep(0.0005)
            marks.append((counted.sent, counted.answered))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    await server.stop(0)
    outbox.close()
    spool.close()
    expected = np.array([[reading.value for reading in readings] for _, readings in recording.ticks])
    ticks = len(marks) - 1
    return {
        # The first tick brings the dictionary: once a connection, so apart.
        "bytes_a_tick": (marks[-1][0] - marks[0][0]) / ticks,
        "bytes_a_tick_back": (marks[-1][1] - marks[0][1]) / ticks,
        "bytes_of_connecting": marks[0][0],
        "equal": np.array(received.rows).tobytes() == expected.tobytes(),
    }


class Received:
    """Each row as the collector's windows, exporters and recordings get it."""

    def __init__(self) -> None:
        self.rows: list[Values] = []

    def row(self, window: NodeWindow) -> None:
        self.rows.append(window.latest())

    def late(self, window: NodeWindow, series: Sequence[SeriesKey], times: Times, rows: Values) -> None:  # noqa: ARG002
        raise AssertionError("nothing comes late here")


async def nothing(*_: object) -> None:
    """Events are not measured here."""


def cpu_of_ours(recording: Recording) -> dict[str, float]:
    """Microseconds of CPU a tick: readings to serialized message, and message to row of the window."""
    sampler = Sampler()
    window = NodeWindow("epoch")
    messages = []
    made_s = time.process_time()
    for time_unix_ns, readings in recording.ticks:
        block = sampler.tick(readings, time_unix_ns)
        messages.append(pb.AgentMessage(block=pb.Block.FromString(block.message)).SerializeToString())
    made_s = time.process_time() - made_s
    keys = sampler.dictionary()
    window.define(*dictionary_of(dictionary_message(keys, 0, len(keys))))
    taken_s = time.process_time()
    for data in messages:
        window.apply(block_of(pb.AgentMessage.FromString(data).block))
    taken_s = time.process_time() - taken_s
    return {"cpu_us_a_tick": 1e6 * made_s / len(messages), "cpu_us_a_tick_collector": 1e6 * taken_s / len(messages)}


def requests(peer: Peer, recording: Recording) -> tuple[list[bytes], float]:
    """All requests, and microseconds of CPU for each."""
    start_s = time.process_time()
    bodies = [peer.request(time_unix_ns, readings) for time_unix_ns, readings in recording.ticks]
    return bodies, 1e6 * (time.process_time() - start_s) / len(bodies)


async def over_grpc(bodies: list[bytes]) -> float:
    """Bytes a request at the socket, as unary calls of one channel with the path and headers of OTLP."""

    async def export(_request: bytes, _context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        return b""

    handler: Any = grpc.unary_unary_rpc_method_handler(export)
    name = "opentelemetry.proto.collector.metrics.v1.MetricsService"
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"Export": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with counting(f"127.0.0.1:{port}") as counted, grpc.aio.insecure_channel(counted.address) as channel:
        call: Any = channel.unary_unary(f"/{name}/Export")
        await call(bodies[0])
        begin = counted.sent
        for body in bodies[1:]:
            await call(body)
        sent = counted.sent - begin
    await server.stop(0)
    return float(sent / (len(bodies) - 1))


async def compare(recording: Recording) -> dict[str, dict[str, Any]]:
    series, start_ns = recording.series, recording.ticks[0][0] - 3600 * 10**9
    with tempfile.TemporaryDirectory(prefix="switchgear-wire-") as folder:
        rows: dict[str, dict[str, Any]] = {"switchgear": await ours(recording, Path(folder)) | cpu_of_ours(recording)}
    bodies, cpu_us = requests(Otlp(series, start_ns, zstd_each()), recording)
    rows["otlp, zstd"] = {"bytes_a_tick": await over_grpc(bodies), "cpu_us_a_tick": cpu_us}
    bodies, cpu_us = requests(Otlp(series, start_ns, zstd_stream()), recording)
    rows["otlp, one zstd stream"] = {"bytes_a_tick": await over_grpc(bodies), "cpu_us_a_tick": cpu_us}
    writers: list[tuple[str, Callable[[], Peer], str]] = [
        ("remote write 1.0, snappy", lambda: RemoteWrite1(series), "0.1.0"),
        ("remote write 2.0, snappy", lambda: RemoteWrite2(series), "2.0.0"),
    ]
    for name, peer, version in writers:
        bodies, cpu_us = requests(peer(), recording)
        size = sum(len(http_head(body, version)) + len(body) for body in bodies) / len(bodies)
        rows[name] = {"bytes_a_tick": size, "cpu_us_a_tick": cpu_us}
    for row in rows.values():
        row["bytes_a_sample"] = row["bytes_a_tick"] / len(series)
        row["bytes_a_changed_sample"] = row["bytes_a_sample"] / recording.changed_share
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = {name: measure(make(args.seconds, args.seed), name) for name, make in RECORDINGS.items()}
    text = json.dumps(results, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text)
    return 0 if all(result["passed"] for result in results.values()) else 1


def measure(recording: Recording, name: str) -> dict[str, Any]:
    """All wires on one recording, with a table on stderr."""
    rows = asyncio.run(compare(recording))
    mine, otlp = rows["switchgear"], rows["otlp, zstd"]
    share = mine["bytes_a_sample"] / otlp["bytes_a_sample"]
    result = {
        "series": len(recording.series),
        "ticks": len(recording.ticks),
        "changed_share": recording.changed_share,
        "wires": rows,
        "share_of_otlp_zstd": share,
        "goal_met": mine["bytes_a_sample"] <= BYTES_A_SAMPLE_GOAL,
        "passed": mine["equal"] and share <= OTLP_SHARE_MAX,
    }
    what = f"{name}: {len(recording.series)} series, {len(recording.ticks)} ticks, {recording.changed_share:.1%} of the samples change"
    print(
        f"\n{what}\n{'':26}{'bytes/sample':>14}{'/changed':>10}{'bytes/tick':>12}{'CPU µs/tick':>13}", file=sys.stderr
    )
    for wire, row in rows.items():
        sizes = f"{row['bytes_a_sample']:14.2f}{row['bytes_a_changed_sample']:10.2f}{row['bytes_a_tick']:12.0f}"
        print(f"{wire:26}{sizes}{row['cpu_us_a_tick']:13.0f}", file=sys.stderr)
    return result


if __name__ == "__main__":
    sys.exit(main())
