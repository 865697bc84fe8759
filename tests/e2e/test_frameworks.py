"""Plain scripts of others' frameworks, killed in the middle: nothing in them knows of Switchgear."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from terminal import Terminal, wait_for

FSDP = """
import json, os, time
import torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 4))
for layer in model:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters())
start, folder = 0, "checkpoints"
done = [int(name[5:]) for name in os.listdir(folder) if name.startswith("step-") and os.path.exists(f"{folder}/{name}/.metadata")]
if done:
    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments}
    dcp.load(state, checkpoint_id=f"{folder}/step-{max(done)}")
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    start = max(done)
out = os.open(f"losses-{dist.get_rank()}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for step in range(start + 1, 31):
    loss = model(torch.full((2, 8), float(step + dist.get_rank()))).square().mean()
    optimizer.zero_grad()
    loss.backward()
    os.write(out, (json.dumps([start, step, loss.item().hex()]) + "\\n").encode())
    optimizer.step()
    if step % 10 == 0:
        weights, moments = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=f"{folder}/step-{step}")
    time.sleep(0.02)
dist.barrier()
dist.destroy_process_group()
"""

ACCELERATE = """
import json, os, time
import torch
from accelerate import Accelerator
accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
model = torch.nn.Linear(8, 4)
optimizer = torch.optim.AdamW(model.parameters())
data = torch.utils.data.DataLoader([torch.full((8,), float(i)) for i in range(120)], batch_size=2)
model, optimizer, data = accelerator.prepare(model, optimizer, data)
start, folder = 0, "checkpoints"
done = [int(name[5:]) for name in os.listdir(folder) if name.startswith("step-")]
if done:
    accelerator.load_state(f"{folder}/step-{max(done)}")
    start = max(done)
    data = accelerator.skip_first_batches(data, start)
out = os.open(f"losses-{accelerator.process_index}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for step, batch in enumerate(data, start + 1):
    loss = model(batch).square().mean()
    optimizer.zero_grad()
    accelerator.backward(loss)
    os.write(out, (json.dumps([start, step, loss.item().hex()]) + "\\n").encode())
    optimizer.step()
    if step % 10 == 0:
        accelerator.save_state(f"{folder}/.step-{step}")
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            os.rename(f"{folder}/.step-{step}", f"{folder}/step-{step}")
    time.sleep(0.02)
accelerator.end_training()
"""

WORKERS = """
import os, time
import torch
from torch.utils.data import DataLoader

class Samples(torch.utils.data.Dataset):
    def __len__(self):
        return 1000
    def __getitem__(self, index):
        open(f"workers/{os.environ['SWITCHGEAR_GENERATION']}-{os.getpid()}", "a").close()
        time.sleep(0.01)
        return torch.ones(4)

if __name__ == "__main__":
    if os.environ["SWITCHGEAR_GENERATION"] == "1":
        model = torch.nn.Linear(4, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loaders = [
            DataLoader(Samples(), num_workers=1, persistent_workers=True, multiprocessing_context=how)
            for how in ("fork", "spawn")
        ]
        for batches in zip(*loaders):
            model(sum(batches)).sum().backward()
            optimizer.step()
"""


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    terminal.environment["OMP_NUM_THREADS"] = "1"
    (tmp_path / "checkpoints").mkdir()
    yield terminal
    terminal.close()


def kill_in_the_middle(terminal: Terminal, script: str, *options: str) -> str:
    """Two ranks to their end, the second killed when a checkpoint lies there and some steps after it were made; what was told."""
    (terminal.folder / "train.py").write_text(script)
    shape = ("--nproc-per-node", "2", "--name", "framework", "--checkpoint-dir", "checkpoints")
    process = terminal.start("run", "--standalone", *shape, *options, "--", "train.py")
    wait_for(lambda: any(step >= 15 for _, step, _ in losses(terminal, 1)) or process.poll() is not None)
    assert process.poll() is None, process.stdout and process.stdout.read()
    os.kill(terminal.rank_pids("framework")[1], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return output


def losses(terminal: Terminal, rank: int) -> list[tuple[int, int, str]]:
    """Of each step: the step that its generation started from, its number, the loss."""
    path = terminal.folder / f"losses-{rank}"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [tuple(json.loads(line)) for line in lines if line.endswith("\n")]


def resumed_bit_for_bit(terminal: Terminal, steps: int) -> None:
    for rank in range(2):
        made = losses(terminal, rank)
        assert {start for start, _, _ in made} == {0, 10}
        assert {step for _, step, _ in made} == set(range(1, steps + 1))
        # A step that was made again has the loss that it had before.
        assert len({(step, loss) for _, step, loss in made}) == steps


def test_sharded_training_resumes_from_its_distributed_checkpoint(terminal: Terminal) -> None:
    output = kill_in_the_middle(
        terminal, FSDP, "--preload", "torch.distributed.fsdp", "--preload", "torch.distributed.checkpoint"
    )
    resumed_bit_for_bit(terminal, 30)
    assert re.search(
        r"Rank 1 on nodes/\S+ was killed by SIGKILL after step 1\d .*verified checkpoint .*step 10\b", output
    )


def test_accelerate_resumes_from_its_own_state(terminal: Terminal) -> None:
    output = kill_in_the_middle(terminal, ACCELERATE, "--preload", "accelerate")
    resumed_bit_for_bit(terminal, 30)
    assert re.search(r"Rank 1 on nodes/\S+ was killed by SIGKILL after step 1\d ", output)


def test_no_data_loader_worker_outlives_its_rank(terminal: Terminal) -> None:
    (terminal.folder / "train.py").write_text(WORKERS)
    folder = terminal.folder / "workers"
    folder.mkdir()
    process = terminal.start("run", "--standalone", "--name", "framework", "--", "train.py")
    wait_for(lambda: len(list(folder.iterdir())) == 2 or process.poll() is not None)
    workers = [int(path.name.partition("-")[2]) for path in folder.iterdir()]
    assert len([pid for pid in workers if Path(f"/proc/{pid}").exists()]) == 2
    os.kill(terminal.rank_pids("framework")[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert [pid for pid in workers if Path(f"/proc/{pid}").exists()] == []
