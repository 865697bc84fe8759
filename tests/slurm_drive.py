"""A control plane that drives a real Slurm, in a folder of a test's own."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurm_cluster import SlurmCluster
from terminal import Terminal, wait_for

from switchgear.cli.demo import proofs
from switchgear.cli.state import read_running
from switchgear.train import progress

#: For interpreters that have nothing of ours.
TRAIN_FOLDER = Path(progress.__file__).parents[2]
LEASE_S = 3.0
MARGIN_S = 3.0
#: A disagreement that lasts for longer is none of the moment between two looks.
AGREE_S = 15.0
_ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")
#: Each step of more than one rank needs all of them: a byte each way, on an interpreter without torch, which starts at once.
TRAIN = """
import json, os, socket, sys, time
from switchgear.train import progress
rank, world, generation = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "SWITCHGEAR_GENERATION"))
folder, resume = os.environ["SWITCHGEAR_CHECKPOINT_DIR"], os.environ["SWITCHGEAR_RESUME_FROM"]
steps = int(sys.argv[2])
at, peers = ("127.0.0.1", int(os.environ["MASTER_PORT"])), []
if world > 1 and rank == 0:
    server = socket.create_server(at)
    peers = [server.accept()[0] for _ in range(world - 1)]
while rank and not peers:
    try:
        peers = [socket.create_connection(at)]
    except OSError:
        time.sleep(0.02)
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
        print(json.dumps([generation, rank, os.environ["SLURMD_NODENAME"], os.environ["CUDA_VISIBLE_DEVICES"], step, begin_ns, time.monotonic_ns()]), file=told)
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
    gpus: str
    step: int
    begin_ns: int
    end_ns: int


class Drive(Terminal):
    """`switchgear up --engine slurm` and the commands of its users."""

    def __init__(self, folder: Path, slurm: SlurmCluster, *options: str) -> None:
        super().__init__(folder)
        self.slurm = slurm
        self.environment |= slurm.environment
        self._options = options
        self._apart_since: dict[str, float] = {}
        (folder / "train.py").write_text(TRAIN)
        self.up()

    def up(self) -> None:
        listen = [part for flag in ("--grpc", "--http", "--metrics", "--router") for part in (flag, "127.0.0.1:0")]
        timing = ("--lease-seconds", str(LEASE_S), "--lease-margin-seconds", str(MARGIN_S))
        self.process = self.start("up", "--engine", "slurm", *listen, *timing, *self._options)
        wait_for(lambda: (found := read_running(self.folder / "state")) and found.pid == self.process.pid)
        wait_for(lambda: len(self.ask("nodes")) == 4)

    def ask(self, *arguments: str) -> Any:
        ended = self.run(*arguments, "--json")
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    def submit(self, job: str, *options: str, steps: int = 10**6, python: str = "") -> None:
        checkpoints = self.folder / job / "checkpoints"
        checkpoints.mkdir(parents=True)
        own = ["--name", job, "--checkpoint-dir", str(checkpoints), "--env", f"PYTHONPATH={TRAIN_FOLDER}"]
        own += ["--python", python] if python else []
        script = ("train.py", str(self.folder / f"{job}.jsonl"), str(steps))
        ended = self.run("run", "--detach", *own, *options, "--", *script)
        assert ended.returncode == 0, ended.stderr

    def job(self, name: str) -> dict[str, Any]:
        return next(one for one in self.ask("jobs") if one["name"] == f"jobs/{name}")

    def state(self, name: str) -> str:
        return str(self.job(name)["state"])

    def steps(self, job: str) -> list[Step]:
        path = self.folder / f"{job}.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [Step(*json.loads(line)) for line in lines if line.endswith("\n")]
