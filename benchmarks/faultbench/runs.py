"""One run of the benchmark's script under a launcher: started, broken, read and ended."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from faultbench.contenders import RESTARTS_MAX, Contender

SCRIPT = Path(__file__).parents[1] / "steps.py"
#: A start on a busy machine; no launcher needs it all.
TIMEOUT_S = 90.0
#: Steps before a fault: enough that a step time is learned and a checkpoint lies there.
STEPS_BEFORE = 15
POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Line:
    """What a rank wrote at the end of a step; step 0 is its start."""

    pid: int
    step: int
    time_ns: int


class NotInTimeError(RuntimeError):
    """What was waited for did not come; the text has the end of the launcher's output."""


class Book:
    """What the script writes into its folder, and waiting for it."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self.folder, self.ranks = folder, ranks

    def lines(self) -> list[list[Line]]:
        """What each rank has written, oldest first."""
        return [[Line(**entry) for entry in _read(self.folder / f"steps-{r}.jsonl")] for r in range(self.ranks)]

    def fault_ns(self, kind: str) -> int:
        """When the script first made such a fault; 0 when it did not yet."""
        return next((entry["time_ns"] for entry in _read(self.folder / "faults.jsonl") if entry["kind"] == kind), 0)

    def ask(self, kind: str, rank: int) -> None:
        hidden = self.folder / f".fault-{rank}"
        hidden.write_text(kind)
        hidden.rename(self.folder / f"fault-{rank}")

    def pids(self) -> set[int]:
        return {line.pid for rank in self.lines() for line in rank}

    def generations(self) -> int:
        """Starts of rank 0 that came as far as the script."""
        return len({line.pid for line in self.lines()[0]})

    def steady(self) -> list[list[Line]] | None:
        """The lines once every rank has made enough steps, None before."""
        lines = self.lines()
        return lines if all(rank and rank[-1].step >= STEPS_BEFORE for rank in lines) else None

    def first_step_ns(self, old: set[int]) -> int | None:
        """When the first step of processes that are not `old` had been made by all ranks."""
        new = [
            next((line.time_ns for line in rank if line.step and line.pid not in old), None) for rank in self.lines()
        ]
        return None if None in new else max(time_ns for time_ns in new if time_ns)

    def step_s(self) -> float:
        """Median duration of rank 0's steps in its newest process."""
        lines = self.lines()[0]
        ends = [line.time_ns for line in lines if line.pid == lines[-1].pid and line.step]
        steps = sorted(later - earlier for earlier, later in pairwise(ends))
        return steps[len(steps) // 2] / 1e9

    def overlap_s(self, old: set[int]) -> float:
        """How long processes that are `old` went on writing after the first of the others had begun."""
        lines = [line for rank in self.lines() for line in rank]
        began = min((line.time_ns for line in lines if line.pid not in old), default=math.inf)
        return max(0.0, (max(line.time_ns for line in lines if line.pid in old) - began) / 1e9)


def _read(path: Path) -> list[dict[str, Any]]:
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


class Run(Book):
    """A run on this machine, in a folder of its own. Use as a context manager: it leaves no process and no file."""

    def __init__(self, contender: Contender, ranks: int, *options: str, restarts: int = RESTARTS_MAX) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="switchgear-bench-")), ranks)
        before = contender.command(self.folder, ranks, restarts)
        self._command = [*before, str(SCRIPT), str(self.folder), *options]
        state = {"SWITCHGEAR_STATE_DIR": str(self.folder / "state"), "OMP_NUM_THREADS": "1"}
        self._environment = {**os.environ, **state, **contender.environment}
        self._seen: dict[int, psutil.Process] = {}
        self.start()

    def start(self) -> None:
        with (self.folder / "output.log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment
            )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.family()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                pass
        end(self._seen.values())
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def output(self) -> str:
        return (self.folder / "output.log").read_text(errors="replace")

    def family(self) -> list[psutil.Process]:
        """The processes below the launcher; each that was ever returned is ended at last, also when it has lost its parent."""
        found = family(self.process.pid)
        self._seen.update({process.pid: process for process in found})
        return found

    def wait(self, what: str, reached: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
        """Raises NotInTimeError."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if reached():
                return
            if self.process.poll() is not None:
                break
            time.sleep(POLL_S)
        raise NotInTimeError(f"no {what}: {self.output()[-2000:]}")

    def until_steady(self) -> None:
        self.wait(f"{STEPS_BEFORE} steps", self.steady)
        self.family()

    def until_first_step_ns(self, old: set[int], timeout_s: float = TIMEOUT_S) -> float:
        """Infinite when it does not come in time."""
        try:
            self.wait("step after the fault", lambda: self.first_step_ns(old), timeout_s)
        except NotInTimeError:
            return math.inf
        return self.first_step_ns(old) or math.inf


def family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if _alive(process)]


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass


def send(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
