"""What watching costs a training step: a rank under Switchgear in which the hook is taken away and put back, block by block.

    python benchmarks/hook.py [--rounds 3] [--blocks 200] [--json FILE]

The loop is the smallest that is a training step (forward, backward, SGD of a layer of 8), so that the difference shows; nothing else
of Switchgear runs in a step. A block is 100 steps, with the hook and without it in turns, so that a busy machine slows both alike; a
round is one process, and its figure is the difference of the medians. Exit code 1 when the median round exceeds 20 µs a step.
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
from pathlib import Path

import torch
from torch.optim import optimizer as hooks

US_MAX = 20.0
STEPS = 100
#: The first steps of a process load code.
WARM_UP_BLOCKS = 4


def loop(blocks: int, out: Path) -> None:
    """Writes the median durations of a step in µs, without the hook and with it."""
    tables = (hooks._global_optimizer_pre_hooks, hooks._global_optimizer_post_hooks)
    kept = [dict(table) for table in tables]
    if not all(kept):
        raise RuntimeError("no hook watches this process")
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batch = torch.randn(4, 8)
    found: dict[bool, list[int]] = {False: [], True: []}
    for number in range(WARM_UP_BLOCKS + 2 * blocks):
        watched = number % 2 == 1
        for table, entries in zip(tables, kept, strict=True):
            table.clear()
            table.update(entries if watched else {})
        for _ in range(STEPS):
            start_ns = time.perf_counter_ns()
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
            if number >= WARM_UP_BLOCKS:
                found[watched].append(time.perf_counter_ns() - start_ns)
    out.write_text(json.dumps([statistics.median(found[watched]) / 1e3 for watched in (False, True)]))


def measure(blocks: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(prefix="switchgear-hook-") as folder:
        out = Path(folder) / "medians"
        run = [
            sys.executable,
            "-m",
            "switchgear.cli.main",
            "run",
            "--standalone",
            "--max-restarts",
            "0",
            "--name",
            "hook",
        ]
        ended = subprocess.run(
            [*run, "--checkpoint-dir", folder, "--", __file__, "--loop", str(out), "--blocks", str(blocks)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "SWITCHGEAR_STATE_DIR": str(Path(folder) / "state")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode:
            raise RuntimeError(ended.stderr[-2000:])
        plain, watched = json.loads(out.read_text())
        return plain, watched


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=200)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--loop", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.loop:
        loop(args.blocks, args.loop)
        return 0
    pairs = []
    for number in range(args.rounds):
        plain, watched = measure(args.blocks)
        pairs.append((plain, watched))
        print(
            f"round {number + 1}  plain {plain:6.1f} µs  watched {watched:6.1f} µs  {watched - plain:+6.1f} µs",
            flush=True,
        )
    cost = statistics.median(watched - plain for plain, watched in pairs)
    held = cost <= US_MAX
    print(
        f"watching costs {cost:.1f} µs a step, median of {args.rounds} rounds of {args.blocks * STEPS} steps each way; "
        f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f}; bar ≤ {US_MAX:g} µs: {'held' if held else 'MISSED'}"
    )
    if args.json:
        args.json.write_text(json.dumps({"pairs_us": pairs, "cost_us": cost, "held": held}, indent=2) + "\n")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
