"""What recording costs the collector: bytes a sample and CPU-seconds a million samples, as JSON.

    python benchmarks/recording.py [--nodes 6] [--seconds 600] [--distinct 6] [--recording noisy|simulated]

Recordings of nodes with eight H100 (474 series, so many of them with values of their own; `benchmarks/wire.py`), each tick of each node through the
tap, the open file and the packing of the ended one, in this thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
from wirebench.recording import RECORDINGS

from switchgear.agent.readings import SeriesKey as Key
from switchgear.collector.recording.files import Reel, left_open
from switchgear.collector.recording.sample_files import OPEN_SCHEMA, batches_of, seal
from switchgear.collector.recording.samples import SampleTap
from switchgear.collector.series import SeriesKey
from switchgear.collector.windows import NodeWindow

#: As `recorder.SAMPLES_S_MAX`.
_WRITTEN_EACH_TICKS = 10


def window_of(number: int, keys: Sequence[Key]) -> NodeWindow:
    """Of a node whose GPUs have identities of their own, as real ones have."""
    window = NodeWindow("epoch", 2, minutes=1, node=f"nodes/gpu-{number:04}")
    labels = {
        pairs: tuple((name, f"{value}-{number}" if name == "UUID" else value) for name, value in pairs)
        for pairs in {tuple(key.labels) for key in keys}
    }
    window.define(0, [SeriesKey(key.metric, key.unit, labels[tuple(key.labels)]) for key in keys])
    return window


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=6)
    parser.add_argument("--seconds", type=int, default=600, help="ticks of each node")
    parser.add_argument("--recording", choices=tuple(RECORDINGS), default="noisy")
    parser.add_argument("--distinct", type=int, default=6, help="nodes whose values differ")
    args = parser.parse_args()
    recordings = [RECORDINGS[args.recording](args.seconds, seed) for seed in range(min(args.nodes, args.distinct))]
    keys = recordings[0].series
    windows = [window_of(number, keys) for number in range(args.nodes)]
    of_recording = [
        [(at, np.array([reading.value for reading in readings])) for at, readings in one.ticks] for one in recordings
    ]
    rows = [of_recording[number % len(recordings)] for number in range(args.nodes)]
    ids, samples = np.arange(len(keys)), args.nodes * args.seconds * len(keys)
    tap_s = write_s = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tap, reel = SampleTap("", ""), Reel(folder, "samples", "run", OPEN_SCHEMA, seal)
        for tick in range(args.seconds):
            for window, of_node in zip(windows, rows, strict=True):
                window.append(of_node[tick][0], ids, of_node[tick][1])
                begin_s = time.thread_time()
                tap.row(window)
                tap_s += time.thread_time() - begin_s
            if tick % _WRITTEN_EACH_TICKS == 0 or tick == args.seconds - 1:
                begin_s = time.process_time()
                for chunk in tap.take():
                    for batch in batches_of(chunk):
                        reel.write(batch, time.time_ns())
                write_s += time.process_time() - begin_s
        open_bytes = sum(path.stat().st_size for path in left_open(folder, "samples"))
        begin_s = time.process_time()
        reel.end()
        seal_s = time.process_time() - begin_s
        (ended,) = folder.iterdir()
        columns = dict[str, int]()
        metadata = pq.read_metadata(ended)
        for group in range(metadata.num_row_groups):
            for at in range(metadata.num_columns):
                column = metadata.row_group(group).column(at)
                columns[column.path_in_schema] = columns.get(column.path_in_schema, 0) + column.total_compressed_size
        assert metadata.num_rows == samples
        print(
            json.dumps(
                {
                    "recording": args.recording,
                    "samples": samples,
                    "tap_us_per_row": round(tap_s / args.nodes / args.seconds * 1e6, 2),
                    "cpu_s_per_million_written": round(write_s / samples * 1e6, 3),
                    "cpu_s_per_million_packed": round(seal_s / samples * 1e6, 3),
                    "bytes_per_sample_open": round(open_bytes / samples, 2),
                    "bytes_per_sample": round(ended.stat().st_size / samples, 2),
                    "bytes_per_sample_of_columns": {name: round(size / samples, 3) for name, size in columns.items()},
                },
                indent=2,
            )
        )


if __name__ == "__main__":
    main()
