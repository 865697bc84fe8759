"""What it costs the collector to forward every sample by remote write: CPU-seconds a million samples, as JSON.

    python benchmarks/remote_write.py [--nodes 500] [--seconds 20] [--protocol 1.0|2.0|otlp] [--samples-max 20000]

The noisy recording of a node with eight H100 (474 series; `benchmarks/wire.py`) as so many nodes, each tick of each node into a real window
and from there through the real exporter (interval 0) to a sink in a process of its own, which reads requests and answers 204. As fast as the
sink takes them. CPU is this process's, with the exporter and without; the difference is what forwarding costs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from prometheus_client import CollectorRegistry
from wirebench.recording import Recording, noisy

from switchgear.collector.export.exporters import Exporters
from switchgear.collector.export.settings import OtlpExport, RemoteWrite
from switchgear.collector.series import Kind, SeriesKey
from switchgear.collector.windows import NodeWindow, Windows
from switchgear.core.clock import SystemClock

_ANSWER = b"HTTP/1.1 204 No Content\r\nX-Prometheus-Remote-Write-Samples-Written: 1\r\n\r\n"


def sink(ready: Connection) -> None:
    """Reads requests and answers them; at the end tells how many bytes came."""
    received = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                writer.close()
                return
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            received += length
            writer.write(_ANSWER)

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 22)
        ready.send(server.sockets[0].getsockname()[1])
        await asyncio.to_thread(ready.recv)
        ready.send(received)

    asyncio.run(main())


def windows_of(recording: Recording, nodes: int) -> list[NodeWindow]:
    """Windows of nodes whose GPUs have identities of their own, as real ones have."""
    windows = Windows(bytes_max=1 << 40)
    opened = []
    for number in range(nodes):
        window = windows.connect(f"nodes/gpu-{number:04d}", "epoch")
        keys = [
            SeriesKey(
                key.metric,
                key.unit,
                tuple(sorted((name, f"{value}-{number}" if name == "UUID" else value) for name, value in key.labels)),
                Kind[key.kind.name],
            )
            for key in recording.series
        ]
        windows.define(window, 0, keys)
        opened.append(window)
    return opened


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def run(args: argparse.Namespace, recording: Recording, port: int | None) -> dict[str, float]:
    """port: None for windows alone."""
    windows = windows_of(recording, args.nodes)
    registry = CollectorRegistry()
    common = {"url": f"http://127.0.0.1:{port}/", "name": "sink", "interval_s": 0, "samples_max": args.samples_max}
    remote_write = () if args.protocol == "otlp" or port is None else (RemoteWrite(protocol=args.protocol, **common),)
    otlp = (OtlpExport(protocol="http", **common),) if args.protocol == "otlp" and port is not None else ()
    exporters = Exporters(remote_write, otlp, SystemClock(), registry)
    ids = np.arange(len(recording.series))
    rows = [(at, np.array([reading.value for reading in readings])) for at, readings in recording.ticks]
    running = asyncio.create_task(exporters.run())
    # The first ticks make templates: once a node, so apart from what a sample costs.
    at_first_s, first_s, begin_s = cpu_s(), 0.0, 0.0
    for number, (time_unix_ns, values) in enumerate(rows):
        if number == 2:
            await _quiet(registry)
            first_s, begin_s = cpu_s() - at_first_s, cpu_s()
        for window in windows:
            window.append(time_unix_ns, ids, values)
            for tap in exporters.taps:
                tap.row(window)
        while _queued(registry) > 16 * 2**20:  # noqa: ASYNC110 - what is seen from outside
            await asyncio.sleep(0)
        await asyncio.sleep(0)
    await _quiet(registry)
    used_s = cpu_s() - begin_s
    prefix = "switchgear_otlp_export" if otlp else "switchgear_remote_write"
    sent = registry.get_sample_value(f"{prefix}_samples_total", {"target": "sink", "outcome": "sent"})
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return {"cpu_s": used_s, "first_s": first_s, "sent": sent or 0}


def _queued(registry: CollectorRegistry) -> float:
    return sum(
        registry.get_sample_value(f"switchgear_{name}_queue_bytes", {"target": "sink"}) or 0.0
        for name in ("remote_write", "otlp_export")
    )


async def _quiet(registry: CollectorRegistry) -> None:
    await asyncio.sleep(1.5)  # longer than a batch stays open
    while _queued(registry):  # noqa: ASYNC110 - what is seen from outside
        await asyncio.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=500)
    parser.add_argument("--seconds", type=int, default=20, help="ticks of each node")
    parser.add_argument("--protocol", choices=("1.0", "2.0", "otlp"), default="1.0")
    parser.add_argument("--samples-max", type=int, default=20_000, help="in a request")
    args = parser.parse_args()
    recording = noisy(args.seconds + 2, 7)
    samples = args.nodes * args.seconds * len(recording.series)
    alone = asyncio.run(run(args, recording, None))
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=sink, args=(theirs,))
    process.start()
    forwarding = asyncio.run(run(args, recording, ours.recv()))
    ours.send(None)
    received = ours.recv()
    process.join()
    all_samples = args.nodes * len(recording.ticks) * len(recording.series)
    print(
        json.dumps(
            {
                "protocol": args.protocol,
                "nodes": args.nodes,
                "series": len(recording.series),
                "samples": samples,
                "all_sent": forwarding["sent"] == all_samples,
                "bytes_per_sample": round(received / all_samples, 2),
                "cpu_s_per_million": round((forwarding["cpu_s"] - alone["cpu_s"]) / samples * 1e6, 3),
                "cpu_ms_per_node_once": round((forwarding["first_s"] - alone["first_s"]) / args.nodes * 1e3, 2),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
