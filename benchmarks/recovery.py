"""Time from the SIGKILL of a rank to the first step that all ranks of the new generation have made, beside torchrun, in one run.

    python benchmarks/recovery.py [--rounds 5] [--ranks 2] [--json FILE]

Both launchers run the same script in turns. Times come from the script itself, not from a launcher. A second table kills the
launcher and counts the processes of the job that are alive one second later, a data-loader worker a rank included.
Exit code 1 when a bar is missed: median ≤ 1 s and ≤ 1/3 of torchrun's; nothing alive after the launcher's death.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

SCRIPT = Path(__file__).parent / "steps.py"
#: Enough for any fault; a run is ended as soon as it has told what it was started for.
STEPS = 100_000
TIMEOUT_S = 90.0
FIRST_STEP_S_MAX = 1.0
SHARE_OF_TORCHRUN_MAX = 1 / 3


@dataclass(frozen=True)
class Contender:
    name: str
    command: Callable[[Path, int], list[str]]


def switchgear(folder: Path, ranks: int) -> list[str]:
    command = [sys.executable, "-m", "switchgear.cli.main", "run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*command, "--name", "bench", "--checkpoint-dir", str(folder), "--"]


def torchrun(folder: Path, ranks: int) -> list[str]:  # noqa: ARG001
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*command, "--max-restarts", "10", "--monitor-interval", "0.1"]


CONTENDERS = (Contender("switchgear", switchgear), Contender("torchrun", torchrun))


class Run:
    """One run of the script under a launcher, in a folder of its own."""

    def __init__(self, contender: Contender, ranks: int, workers: int = 0) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="switchgear-bench-"))
        self.ranks = ranks
        command = [*contender.command(self.folder, ranks), str(SCRIPT), str(self.folder), str(STEPS), str(workers)]
        env = {**os.environ, "SWITCHGEAR_STATE_DIR": str(self.folder / "state"), "OMP_NUM_THREADS": "1"}
        with (self.folder / "output.log").open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)

    def lines(self) -> list[list[dict[str, int]]]:
        """What each rank has written, oldest first."""
        found = []
        for rank in range(self.ranks):
            path = self.folder / f"steps-{rank}.jsonl"
            text = path.read_text() if path.exists() else ""
            found.append([json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")])
        return found

    def wait(self, what: str, reached: Callable[[list[list[dict[str, int]]]], bool]) -> list[list[dict[str, int]]]:
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            lines = self.lines()
            if reached(lines):
                return lines
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise RuntimeError(f"no {what}: {(self.folder / 'output.log').read_text()[-2000:]}")

    def close(self) -> None:
        family = [self.process.pid, *(child.pid for child in _family(self.process.pid))]
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                pass
        _end(family)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _end(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def first_step_s(contender: Contender, ranks: int) -> float:
    """Seconds from the SIGKILL of the last rank to the first step of all ranks after it; infinite when there was none."""
    run = Run(contender, ranks)
    try:
        lines = run.wait("15 steps", lambda lines: all(len(rank) >= 15 for rank in lines))
        old = {entry["pid"] for rank in lines for entry in rank}
        killed_ns = time.time_ns()
        os.kill(lines[-1][-1]["pid"], signal.SIGKILL)
        try:
            lines = run.wait(
                "step after the kill",
                lambda lines: all(any(entry["pid"] not in old for entry in rank) for rank in lines),
            )
        except RuntimeError:
            return math.inf  # it happens to torchrun: its restart meets the old ranks' connections, and it gives up
        first = [next(entry["time_ns"] for entry in rank if entry["pid"] not in old) for rank in lines]
        return (max(first) - killed_ns) / 1e9
    finally:
        run.close()


def alive_after_launcher_death(contender: Contender, ranks: int) -> int:
    """Processes of the job (ranks, their data-loader workers, helpers) that live 1 s after SIGKILL of the launcher."""
    run = Run(contender, ranks, workers=1)
    family: list[psutil.Process] = []
    try:
        run.wait("5 steps", lambda lines: all(len(rank) >= 5 for rank in lines))
        family = _family(run.process.pid)
        if len(family) < 2 * ranks:
            raise RuntimeError(f"expected {ranks} ranks and as many data-loader workers, found {family}")
        workers = [process for process in family if process.ppid() in {rank[-1]["pid"] for rank in run.lines()}]
        if len(workers) < ranks:
            raise RuntimeError(f"expected a data-loader worker for each of {ranks} ranks, found {workers}")
        run.process.kill()
        time.sleep(1.0)
        return sum(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)
    finally:
        _end([process.pid for process in family if process.is_running()])
        run.close()


def _or_null(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    times: dict[str, list[float]] = {contender.name: [] for contender in CONTENDERS}
    for number in range(args.rounds):
        for contender in CONTENDERS:
            times[contender.name].append(first_step_s(contender, args.ranks))
            told = f"{times[contender.name][-1]:6.2f} s" if math.isfinite(times[contender.name][-1]) else "never"
            print(f"round {number + 1}  {contender.name:10}  {told}", flush=True)
    left = {contender.name: alive_after_launcher_death(contender, args.ranks) for contender in CONTENDERS}
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    share = medians["switchgear"] / medians["torchrun"] if math.isfinite(medians["switchgear"]) else math.inf
    load = os.getloadavg()[0]
    print(f"\n{args.ranks} ranks, gloo on CPU, torch {torch.__version__}, {os.cpu_count()} cores, load {load:.1f}")
    print(
        f"{'launcher':12}{'SIGKILL of a rank to first step, median of ' + str(args.rounds):>52}{'alive 1 s after launcher died':>34}"
    )
    for name, median in medians.items():
        told = f"{median:.2f} s" if math.isfinite(median) else "never"
        print(f"{name:12}{told:>52}{left[name]:>34}")
    held = medians["switchgear"] <= FIRST_STEP_S_MAX and share <= SHARE_OF_TORCHRUN_MAX and left["switchgear"] == 0
    ratio = f"{share:.3f}" if math.isfinite(medians["torchrun"]) else "none (torchrun's median round never came back)"
    print(
        f"switchgear / torchrun = {ratio}; bars (≤ {FIRST_STEP_S_MAX:g} s, ≤ 1/3, none alive): {'held' if held else 'MISSED'}"
    )
    if args.json:
        report = {
            "seconds": {name: [_or_null(value) for value in found] for name, found in times.items()},
            "medians": {name: _or_null(value) for name, value in medians.items()},
            "alive": left,
            "held": held,
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
