"""The job of the recovery benchmark: a tiny model on gloo that writes down when each rank made each step. Any launcher runs it.

    steps.py FOLDER [--steps N] [--workers N] [--poison STEP]

Faults that only the script can make are asked for by a file `fault-RANK` in FOLDER, whose first word is `raise` or `hang`: it is taken
away and the fault made once, in that rank's next step. With --poison every generation raises in that step.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

STEP_S = 0.05
CHECKPOINT_EVERY = 10


class Told:
    """Lines of this process for the benchmark, each whole. Step 0 is the start of the script."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._steps = os.open(folder / f"steps-{rank}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._faults = folder / "faults.jsonl"

    def step(self, step: int) -> None:
        os.write(self._steps, self._line(step=step))

    def fault(self, kind: str) -> None:
        with self._faults.open("ab", buffering=0) as file:
            file.write(self._line(kind=kind))

    @staticmethod
    def _line(**what: int | str) -> bytes:
        return json.dumps({"pid": os.getpid(), "time_ns": time.time_ns(), **what}).encode() + b"\n"


def stuck() -> None:
    """What a rank does that hangs: its stack must name this function."""
    while True:
        time.sleep(3600)


def break_when_asked(path: Path, told: Told) -> None:
    try:
        wish = path.read_text()
        path.unlink()
    except FileNotFoundError:
        return
    told.fault(wish.split()[0])
    if wish.startswith("hang"):
        stuck()
    raise ValueError(f"this was asked for: {wish}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--poison", type=int, default=0)
    args = parser.parse_args()
    rank = int(os.environ["RANK"])
    told = Told(args.folder, rank)
    told.step(0)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(64, 64))
    optimizer = torch.optim.AdamW(model.parameters())
    path, step = args.folder / "newest.pt", 0
    if path.exists():
        state = torch.load(path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    data = iter(DataLoader(TensorDataset(torch.randn(args.steps + 1, 64)), num_workers=args.workers))
    while step < args.steps:
        (batch,) = next(data)
        time.sleep(STEP_S)
        break_when_asked(args.folder / f"fault-{rank}", told)
        if step + 1 == args.poison and rank == 0:
            told.fault("poison")
            raise ValueError(f"poisoned batch in step {args.poison}")
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
        step += 1
        told.step(step)
        if rank == 0 and step % CHECKPOINT_EVERY == 0:
            temporary = path.with_suffix(".tmp")
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, temporary)
            temporary.replace(path)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
