"""What the collector's windows take: a process with full windows, its resident memory beside what the windows say of themselves.

    python benchmarks/window_memory.py [--nodes 2000] [--series 320]     (10000 nodes take 8 GB and a few minutes)

Each node has the series of eight simulated GPUs, with labels that no other node has, and gets all rows that fit at full resolution and aggregates
of all minutes, so that every page is touched. Prints JSON; exit code 1 beyond 2,500 bytes a series.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time

import numpy as np
import psutil

from switchgear.collector.blocks import Block, Deltas
from switchgear.collector.dictionary import dictionary_of
from switchgear.collector.windows import MINUTES, TICKS, Windows
from switchgear.sim.fleet.variant import packed_dictionary
from switchgear.v1alpha import telemetry_service_pb2 as pb

BYTES_A_SERIES_MAX = 2500
_SECOND_NS = 1_000_000_000


def keyframe(series: int) -> Block:
    """As agents send it, so that the window has all that decoding needs."""
    numbers = np.arange(series)
    deltas = Deltas(b"\xff" * (series // 8), numbers, b"\x13" * series, np.zeros(0, np.uint32))
    return Block(MINUTES * 60 * _SECOND_NS, 1, True, b"", b"", {}, deltas)


def measure(nodes: int, series: int) -> dict[str, float]:
    values = np.random.default_rng(0).random((TICKS, series)) * 1e12
    ids, first = np.arange(series), keyframe(series)
    windows = Windows(bytes_max=1 << 40)
    gc.collect()
    before = psutil.Process().memory_info().rss
    cpu_s = time.process_time()
    for number in range(nodes):
        name = f"gpu-{number:05}"
        window = windows.connect(f"nodes/{name}", "epoch")
        windows.define(window, *dictionary_of(pb.Dictionary.FromString(packed_dictionary(name, series))))
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
    args = parser.parse_args()
    result = measure(args.nodes, args.series)
    print(json.dumps(result, indent=2))
    return int(result["bytes_a_series"] > BYTES_A_SERIES_MAX)


if __name__ == "__main__":
    sys.exit(main())
