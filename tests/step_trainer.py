"""A training script that writes down each of its steps, so that a test can say which generations made steps at once."""

from __future__ import annotations

import json
import venv
from dataclasses import dataclass
from pathlib import Path

from switchgear.train import progress

#: For interpreters that have nothing of ours.
TRAIN_FOLDER = Path(progress.__file__).parents[2]
STEPS_ENDLESS = 10**6
#: Its arguments: a file for its steps, how many it makes, and how. It writes a checkpoint each ten steps.
#: Each step of more than one rank needs all of them. With "torch" it is an all-reduce and an optimizer, else a byte each way and the
#: progress API on an interpreter without torch, which starts at once.
TRAIN = """
import json, os, socket, sys, time
rank, world, generation = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "SWITCHGEAR_GENERATION"))
folder, resume = os.environ["SWITCHGEAR_CHECKPOINT_DIR"], os.environ["SWITCHGEAR_RESUME_FROM"]
steps, node = int(sys.argv[2]), os.environ.get("SLURMD_NODENAME") or os.environ.get("NODE", "")
at = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
def reach():
    while True:
        try:
            return socket.create_connection(at)
        except OSError:
            time.sleep(0.02)
if sys.argv[3] == "torch":
    import torch, torch.distributed as dist
    if rank:
        reach().close()  # torch itself, where rank 0 does not listen yet, waits for half a second, by chance, and all with it
    dist.init_process_group("gloo")
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    def make(step):
        weight.grad = torch.ones(1)
        dist.all_reduce(weight.grad)
        optimizer.step()
else:
    from switchgear.train import progress
    peers = [reach()] if rank else []
    if world > 1 and rank == 0:
        server = socket.create_server(at)
        peers = [server.accept()[0] for _ in range(world - 1)]
    def make(step):
        for peer in peers:
            peer.send(b"x")
        for peer in peers:
            if not peer.recv(1):
                sys.exit("lost its peer")
        progress.step(step)
step = int(open(resume).read()) if resume else 0
with open(sys.argv[1], "a", buffering=1) as told:
    while step < steps:
        begin_ns = time.monotonic_ns()
        step += 1
        make(step)
        print(json.dumps([generation, rank, node, os.environ.get("CUDA_VISIBLE_DEVICES"), step, begin_ns, time.monotonic_ns()]), file=told)
        if rank == 0 and step % 10 == 0:
            with open(f"{folder}/{step}.tmp", "w") as file:
                file.write(str(step))
            os.replace(file.name, f"{folder}/{step}.bin")
        time.sleep(0.03)
"""


@dataclass(frozen=True)
class Step:
    """What a rank wrote of one of its steps; nanoseconds on the machine's monotonic clock."""

    generation: int
    rank: int
    node: str
    gpus: str | None
    step: int
    begin_ns: int
    end_ns: int


def lay_out(folder: Path) -> None:
    """`train.py`, and the interpreter `bare/bin/python`, which has the standard library only."""
    (folder / "train.py").write_text(TRAIN)
    venv.create(folder / "bare", with_pip=False, symlinks=True)


def read_steps(path: Path) -> list[Step]:
    """In the order in which they were written; a last line that is not whole is left out."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [Step(*json.loads(line)) for line in lines if line.endswith("\n")]
