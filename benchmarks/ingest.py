"""What it costs to take in telemetry, and what faults cost.

python benchmarks/ingest.py [--part NAME ...] [--nodes 4000] [--seconds 60] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent))
from ingestbench import faults, ingest, peers

PARTS = ("steady", "saturation", "memory", "peers", "kill", "targets")


def run(part: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    match part:
        case "steady":
            return ingest.steady(folder, args.nodes, args.seconds)
        case "saturation":
            return ingest.saturation(folder)
        case "peers":
            return peers.compare(folder, peers.Load(args.peer_nodes, args.ticks))
        case "kill":
            return faults.kill(folder, args.nodes, args.seconds / 4)
        case "targets":
            return faults.targets(folder, args.target_nodes, args.seconds)
        case _:
            return ingest.memory(folder, args.memory_nodes)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="which of them (default: all)")
    parser.add_argument("--nodes", type=int, default=4000)
    parser.add_argument("--memory-nodes", type=int, default=500)
    parser.add_argument("--peer-nodes", type=int, default=500)
    parser.add_argument("--ticks", type=int, default=60)
    parser.add_argument("--target-nodes", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    # What was started is stopped, however this ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    results: dict[str, Any] = {}
    for part in args.part or PARTS:
        with tempfile.TemporaryDirectory(prefix="switchgear-ingest-") as folder:
            load = os.getloadavg()[0]
            results[part] = run(part, Path(folder), args) | {"load_before": load}
        print(json.dumps({part: results[part]}, indent=1), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    return 0 if all(result.get("passed", True) for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
