"""A user's terminal: commands of ours in a folder with a state directory of its own, real processes throughout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from switchgear.cli.demo import proofs
from switchgear.cli.demo.stage import example_trainer
from switchgear.core.process import stat_fields

SWITCHGEAR = (sys.executable, "-m", "switchgear.cli.main")
STEPS = 60
RANKS = 2


class Terminal:
    """A folder in which commands are typed; each has its own state directory below it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SWITCHGEAR_STATE_DIR": str(folder / "state")}
        self._started: list[subprocess.Popen[str]] = []

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*SWITCHGEAR, *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False, timeout=60
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*SWITCHGEAR, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._started.append(process)
        return process

    def train(self, name: str, *trainer_options: str) -> subprocess.Popen[str]:
        """The example trainer on two ranks, its files in a folder of that name."""
        return self.start("run", "--standalone", *self.training(name), *trainer_options)

    def training(self, name: str) -> tuple[str, ...]:
        """Options of `run` and the command line of the example trainer."""
        place = self.folder / name
        options = ("--name", name, "--nproc-per-node", str(RANKS), "--checkpoint-dir", str(place / "checkpoints"))
        trainer = (str(example_trainer()), "--steps", str(STEPS), "--checkpoint-every", "10")
        folders = ("--checkpoint-dir", str(place / "checkpoints"), "--log-dir", str(place / "losses"))
        return (*options, "--", *trainer, *folders)

    def rank_pids(self, name: str) -> list[int]:
        state = json.loads((self.folder / "state" / "standalone" / name / "generation.json").read_text())
        return [process["pid"] for process in state["processes"]][:RANKS]

    def losses(self, name: str) -> list[proofs.Loss]:
        return proofs.read_losses(self.folder / name / "losses")

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.terminate()
        for process in self._started:
            process.communicate(timeout=20)


def runs(pid: int) -> bool:
    """A process that has ended and waits for the machine's first process to collect it runs nothing."""
    fields = stat_fields(pid)
    return fields is not None and fields[0] not in "ZX"


def wait_for(reached: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)
