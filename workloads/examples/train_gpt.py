"""Trains a small GPT on the sources of Python's standard library: a plain script that knows torch and nothing else.

    torchrun --nproc-per-node 2 train_gpt.py --steps 200
    switchgear run --standalone --nproc-per-node 2 -- train_gpt.py --steps 200

It runs on CPU (gloo) or GPU (nccl) and is deterministic: a run that was interrupted and resumed at the same world size has, bit for
bit, the losses of a run that was not. Each rank writes its losses to `<log-dir>/loss-rank<R>.jsonl`, so that this can be checked.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

CONTEXT = 64
WIDTH = 96
HEADS = 4
LAYERS = 2
VOCABULARY = 256  # bytes
DROPOUT = 0.1
LEARNING_RATE = 1e-3
CORPUS_BYTES_MAX = 1_000_000


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--steps", type=int, default=200, help="train until this step; it also shapes the learning rate"
    )
    parser.add_argument("--batch-size", type=int, default=4, help="sequences a rank and step")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--checkpoint-dir", type=Path, default=Path("checkpoints"))
    parser.add_argument("--checkpoint-every", type=int, default=20, metavar="STEPS")
    parser.add_argument("--keep", type=int, default=5, metavar="N", help="checkpoints that are kept")
    parser.add_argument("--log-dir", type=Path, default=Path("logs"))
    parser.add_argument("--data-workers", type=int, default=0, metavar="N", help="processes that prepare data; 0: none")
    parser.add_argument("--step-sleep", type=float, default=0.0, metavar="SECONDS", help="stretch each step")
    # Forgets the random numbers and the optimizer on resume: shows that a comparison of losses notices.
    parser.add_argument("--break-resume", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(batch, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.out(attended.transpose(1, 2).reshape(batch, length, WIDTH)))
        return x + self.dropout(self.down(functional.gelu(self.up(self.norm_2(x)))))


class Gpt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy; both arguments have the shape (batch, CONTEXT)."""
        return functional.cross_entropy(self.logits(tokens).flatten(0, 1), targets.flatten())

    def logits(self, tokens: Tensor) -> Tensor:
        """Of each place's next token; the argument has the shape (batch, at most CONTEXT)."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.blocks(self.dropout(self.token(tokens) + self.position(places)))
        return self.head(self.norm(x))


class Corpus(Dataset[Tensor]):
    """Sample i is the same bytes whoever reads it and whenever."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        text = bytearray()
        for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
            text += path.read_bytes()
            if len(text) >= CORPUS_BYTES_MAX:
                break
        self.text = torch.frombuffer(text[:CORPUS_BYTES_MAX], dtype=torch.uint8)

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_000_007 + index)
        start = int(torch.randint(len(self.text) - CONTEXT, (), generator=generator))
        return self.text[start : start + CONTEXT + 1].long()


def batches(args: argparse.Namespace, position: int, steps: int, rank: int, world_size: int) -> Iterator[Tensor]:
    """This rank's batch of each of the next `steps` steps; `position` counts the samples that all ranks have consumed."""
    size = args.batch_size
    first = (position + (step * world_size + rank) * size for step in range(steps))
    indices = [list(range(start, start + size)) for start in first]
    # Its own generator: the loader must not draw from the one that dropout uses.
    own = torch.Generator().manual_seed(args.seed)
    return iter(DataLoader(Corpus(args.seed), batch_sampler=indices, num_workers=args.data_workers, generator=own))


def newest_checkpoint(directory: Path) -> str:
    """The checkpoint to start from; empty: from the beginning."""
    chosen = os.environ.get("SWITCHGEAR_RESUME_FROM", "")
    return chosen or max((str(path) for path in directory.glob("step-*.pt")), default="")


def save_checkpoint(directory: Path, step: int, state: dict[str, Any], keep: int) -> None:
    """Whole or not at all: the name appears once the content is on the disk."""
    path = directory / f"step-{step:08d}.pt"
    temporary = path.with_suffix(".pt.tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(directory, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    for old in sorted(directory.glob("step-*.pt"))[:-keep]:
        old.unlink(missing_ok=True)


def rng_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def main() -> None:
    args = arguments()
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if "MASTER_ADDR" not in os.environ:  # plain `python train_gpt.py`
        os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic cuBLAS
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    torch.use_deterministic_algorithms(True)
    args.checkpoint_dir.mkdir(parents=True, exist_ok=True)
    args.log_dir.mkdir(parents=True, exist_ok=True)

    resume_from = newest_checkpoint(args.checkpoint_dir)
    loaded = torch.load(resume_from, map_location="cpu", weights_only=True) if resume_from else None
    step = loaded["step"] if loaded else 0
    position = loaded["data_position"] if loaded else 0
    # Before the process group: a worker that inherits its sockets would hide this rank's death from the others.
    data = batches(args, position, args.steps - step, rank, world_size)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    starts: list[int] = [0] * world_size
    dist.all_gather_object(starts, step)
    if len(set(starts)) > 1:
        raise RuntimeError(f"the ranks start from different checkpoints: steps {starts}")

    torch.manual_seed(args.seed)
    model = Gpt().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    warm_up = min(20, max(1, args.steps // 10))

    def rate(at: int) -> float:
        if at < warm_up:
            return (at + 1) / warm_up
        return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, (at - warm_up) / max(1, args.steps - warm_up))))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    if loaded:
        model.load_state_dict(loaded["model"])
        schedule.load_state_dict(loaded["schedule"])
        if not args.break_resume:
            optimizer.load_state_dict(loaded["optimizer"])
    parallel = DistributedDataParallel(model)
    # DDP regroups the gradients after the first backward, and sums of another grouping round otherwise: let that be over before
    # the first step, or a resumed run would differ from one that was not interrupted.
    nothing = torch.zeros(1, CONTEXT, dtype=torch.long, device=device)
    parallel(nothing, nothing).backward()
    model.zero_grad()
    torch.manual_seed(args.seed * 1_000_003 + step * world_size + rank)
    if loaded and loaded["world_size"] == world_size and not args.break_resume:
        restore_rng(loaded["rng"][rank], device)
    if rank == 0:
        print(
            f"rank 0 of {world_size} on {device}: from step {step}{f' ({resume_from})' if loaded else ''}", flush=True
        )

    generation = int(os.environ.get("SWITCHGEAR_GENERATION") or 0)
    losses = os.open(args.log_dir / f"loss-rank{rank}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for batch in data:
        tokens = batch.to(device)
        loss = parallel(tokens[:, :-1], tokens[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        # Before the step counts: a step that is done has its line, whenever this process is killed.
        line = {"step": step + 1, "loss": loss.item().hex(), "generation": generation}
        os.write(losses, (json.dumps(line) + "\n").encode())
        optimizer.step()
        schedule.step()
        step += 1
        position += args.batch_size * world_size
        if rank == 0 and step % 10 == 0:
            print(f"step {step:6d}  loss {loss.item():.4f}  lr {schedule.get_last_lr()[0]:.2e}", flush=True)
        if step % args.checkpoint_every == 0 or step == args.steps:
            states: list[Any] | None = [None] * world_size if rank == 0 else None
            dist.gather_object(rng_state(device), states)
            if rank == 0:
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "rng": states,
                    "data_position": position,
                    "step": step,
                    "world_size": world_size,
                }
                save_checkpoint(args.checkpoint_dir, step, state, args.keep)
        time.sleep(args.step_sleep)
    dist.barrier()  # nobody leaves while rank 0 writes the last checkpoint
    # The reducer in here must not be the last that holds the process group: it would end it with the interpreter's lock held, and
    # wait for gloo's thread, which needs that lock to let go of the barrier (seen in torch 2.13: a rank that never ends).
    del parallel
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
