"""What the collector's windows take: a process with full windows, its resident memory beside what the windows say of themselves.

    python benchmarks/window_memory.py [--nodes 2000] [--series 320] [--own-labels]     (10000 nodes take 8 GB and a few minutes)

Each node gets all rows that fit at full resolution and aggregates of all minutes, so that every page is touched. --own-labels: half of each
node's series have a label that no other node has, as those of GPUs with their UUID. Prints JSON; exit code 1 beyond 2,500 bytes a series.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import zlib

import numpy as np
import psutil

from switchgear.collector.blocks import Block, Deltas
from switchgear.collector.dictionary import dictionary_of
from switchgear.collector.windows import MINUTES, TICKS, Windows
from switchgear.v1alpha import telemetry_service_pb2 as pb

BYTES_A_SERIES_MAX = 2500
_GPUS = 8
_SECOND_NS = 1_000_000_000


def dictionary(series: int, uuid: str) -> pb.Dictionary:
    """Half of them counters, half of GPUs."""
    told = [
        pb.Series(id=at, metric=f"metric_{at}", kind=pb.Series.COUNTER if at % 4 < 2 else pb.Series.GAUGE)
        for at in range(series)
    ]
    for one in told[1::2]:
        gpu = str(one.id // 2 % _GPUS)
        one.labels.update({"gpu": gpu, "modelName": "H100", "UUID": f"GPU-{uuid}-{gpu}"})
    return pb.Dictionary(packed=zlib.compress(pb.Dictionary(series=told).SerializeToString()))


def keyframe(series: int) -> Block:
    """As agents send it, so that the window has all that decoding needs."""
    numbers = np.arange(series)
    deltas = Deltas(b"\xff" * (series // 8), numbers, b"\x13" * series, np.zeros(0, np.uint32))
    return Block(MINUTES * 60 * _SECOND_NS, 1, True, b"", b"", {}, deltas)


def measure(nodes: int, series: int, *, own_labels: bool) -> dict[str, float]:
    values = np.random.default_rng(0).random((TICKS, series)) * 1e12
    ids, first = np.arange(series), keyframe(series)
    windows = Windows(bytes_max=1 << 40)
    gc.collect()
    before = psutil.Process().memory_info().rss
    cpu_s = time.process_time()
    for number in range(nodes):
        window = windows.connect(f"nodes/gpu-{number:05}", "epoch")
        windows.define(window, *dictionary_of(dictionary(series, str(number) if own_labels else "")))
        # A row a minute fills the minutes, then one a second the rows.
        for minute in range(MINUTES):
            window.append(minute * 60 * _SECOND_NS, ids, values[minute % TICKS])
        window.apply(first)
        for tick in range(1, TICKS):
            window.append((MINUTES * 60 + tick) * _SECOND_NS, ids, values[tick])
    cpu_s = time.process_time() - cpu_s
    rss = psutil.Process().memory_info().rss - before
    return {
        "nodes": nodes,
        "series_a_node": series,
        "rss_bytes": rss,
        "process_rss_bytes": rss + before,
        "bytes_a_series": round(rss / nodes / series, 1),
        "said_bytes_a_series": round(windows.nbytes / nodes / series, 1),
        "cpu_us_a_row": round(1e6 * cpu_s / nodes / (MINUTES + TICKS), 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2000)
    parser.add_argument("--series", type=int, default=320)
    parser.add_argument("--own-labels", action="store_true")
    args = parser.parse_args()
    result = measure(args.nodes, args.series, own_labels=args.own_labels)
    print(json.dumps(result, indent=2))
    return int(result["bytes_a_series"] > BYTES_A_SERIES_MAX)


if __name__ == "__main__":
    sys.exit(main())
