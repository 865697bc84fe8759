"""The job of the recovery benchmark: a tiny model on gloo that writes down when each rank made each step. Any launcher runs it."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

STEP_S = 0.05
CHECKPOINT_EVERY = 10


def main() -> None:
    folder, steps, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(64, 64))
    optimizer = torch.optim.AdamW(model.parameters())
    path, step = folder / "newest.pt", 0
    if path.exists():
        state = torch.load(path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    data = iter(DataLoader(TensorDataset(torch.randn(steps + 1, 64)), num_workers=workers))
    out = os.open(folder / f"steps-{rank}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    while step < steps:
        (batch,) = next(data)
        time.sleep(STEP_S)
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
        step += 1
        os.write(out, json.dumps({"pid": os.getpid(), "step": step, "time_ns": time.time_ns()}).encode() + b"\n")
        if rank == 0 and step % CHECKPOINT_EVERY == 0:
            temporary = path.with_suffix(".tmp")
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, temporary)
            temporary.replace(path)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
