"""What watching costs a training step: the same loop in a rank under Switchgear and in plain Python, in turns.

    python benchmarks/hook.py [--rounds 7] [--steps 20000] [--json FILE]

The loop is the smallest that is a training step (forward, backward, SGD of a layer of 8), so that the difference shows. A round is one
process of each; its figure is the median step of that process. Exit code 1 when the median difference exceeds 20 µs a step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch

US_MAX = 20.0
WARM_UP_STEPS = 500
LOOP_TIMEOUT_S = 300


def loop(steps: int, out: Path) -> None:
    """Writes the median duration of a step in µs, measured from the end of one to the end of the next."""
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batch = torch.randn(4, 8)
    ends = []
    for _ in range(WARM_UP_STEPS + steps):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
        ends.append(time.perf_counter_ns())
    used = ends[WARM_UP_STEPS - 1 :]
    out.write_text(str(statistics.median(b - a for a, b in pairwise(used)) / 1e3))


def measure(folder: Path, steps: int, *, watched: bool) -> float:
    out = folder / "median"
    run = [sys.executable]
    if watched:
        run += ["-m", "switchgear.cli.main", "run", "--standalone", "--name", "hook", "--checkpoint-dir", str(folder)]
        run += ["--max-restarts", "0", "--"]
    subprocess.run(
        [*run, __file__, "--loop", str(out), "--steps", str(steps)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "SWITCHGEAR_STATE_DIR": str(folder / "state")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=LOOP_TIMEOUT_S,
    )
    return float(out.read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--loop", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.loop:
        loop(args.steps, args.loop)
        return 0
    pairs = []
    for number in range(args.rounds):
        with tempfile.TemporaryDirectory(prefix="switchgear-hook-") as folder:
            plain, watched = (measure(Path(folder), args.steps, watched=which) for which in (False, True))
        pairs.append((plain, watched))
        print(
            f"round {number + 1}  plain {plain:6.1f} µs  watched {watched:6.1f} µs  {watched - plain:+6.1f} µs",
            flush=True,
        )
    cost = statistics.median(watched - plain for plain, watched in pairs)
    held = cost <= US_MAX
    print(
        f"watching costs {cost:.1f} µs a step, median of {args.rounds} pairs of {args.steps} steps; "
        f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f}; bar ≤ {US_MAX:g} µs: {'held' if held else 'MISSED'}"
    )
    if args.json:
        args.json.write_text(json.dumps({"pairs_us": pairs, "cost_us": cost, "held": held}, indent=2) + "\n")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
