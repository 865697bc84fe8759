"""A control plane that drives a real Slurm, in a folder of a test's own."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from slurm_cluster import SlurmCluster
from step_trainer import STEPS_ENDLESS, TRAIN_FOLDER, Step, lay_out, read_steps
from terminal import Terminal, wait_for

from switchgear.cli.state import read_running
from switchgear.launcher.state import is_held

LEASE_S = 3.0
MARGIN_S = 3.0
#: A disagreement that lasts for longer is none of the moment between two looks.
AGREE_S = 15.0
_ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")


class Drive(Terminal):
    """`switchgear up --engine slurm` and the commands of its users. All along it is watched that its jobs and Slurm's agree."""

    def __init__(
        self,
        folder: Path,
        slurm: SlurmCluster,
        *options: str,
        path: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """path: a folder whose programs come before those of PATH."""
        super().__init__(folder)
        self.slurm = slurm
        self.environment |= {**slurm.environment, **(environment or {})}
        if path:
            self.environment["PATH"] = f"{path}:{self.environment['PATH']}"
        self._listen = [part for flag in ("--grpc", "--http") for part in (flag, f"127.0.0.1:{free_port()}")] + [
            "--metrics",
            "127.0.0.1:0",
            "--router",
            "127.0.0.1:0",
        ]
        self._options = options
        lay_out(folder)
        self.up()
        self.watch = Watch(self)

    def up(self) -> None:
        timing = ("--lease-seconds", str(LEASE_S), "--lease-margin-seconds", str(MARGIN_S))
        self.process = self.start("up", "--engine", "slurm", *self._listen, *timing, *self._options)
        wait_for(lambda: (found := read_running(self.folder / "state")) and found.pid == self.process.pid)

    def rest(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        http = self._listen[3]
        answer = httpx.request(method, f"http://{http}/v1/{path}", json=body, timeout=20, trust_env=False)
        assert answer.is_success, answer.text
        return answer.json()

    def submit(
        self,
        job: str,
        *options: str,
        steps: int = STEPS_ENDLESS,
        how: str = "plain",
        where: Sequence[str] = ("--detach",),
    ) -> subprocess.Popen[str]:
        checkpoints = self.folder / job / "checkpoints"
        checkpoints.mkdir(parents=True)
        own = ["--name", job, "--checkpoint-dir", str(checkpoints), "--env", f"PYTHONPATH={TRAIN_FOLDER}"]
        own += (
            ["--env", "GLOO_SOCKET_IFNAME=lo"] if how == "torch" else ["--python", str(self.folder / "bare/bin/python")]
        )
        program = ("train.py", str(self.folder / f"{job}.jsonl"), str(steps), how)
        process = self.start("run", *where, *own, *options, "--", *program)
        if "--detach" in where:
            assert process.wait(60) == 0, process.communicate()[0]
        return process

    def job(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.rest("GET", f"jobs/{name}")
        return found

    def alive(self) -> list[str]:
        """Jobs that have not ended."""
        jobs = self.rest("GET", "jobs?pageSize=1000").get("jobs", [])
        return [job["name"].partition("/")[2] for job in jobs if job["state"] not in _ENDED]

    def state(self, name: str) -> str:
        return str(self.job(name)["state"])

    def nodes(self) -> dict[str, dict[str, Any]]:
        return {node["name"].partition("/")[2]: node for node in self.rest("GET", "nodes").get("nodes", [])}

    def nodes_of(self, job: str) -> list[str]:
        return [seat["node"].partition("/")[2] for seat in self.job(job).get("placement", {}).get("nodes", [])]

    def slurm_jobs(self, job: str = "") -> list[SlurmLine]:
        """Of ours, ended ones too, oldest first."""
        text = self.slurm.command("squeue", "--noheader", "--states=all", "--sort=i", "--format=%i|%T|%k")
        lines = [SlurmLine(*line.split("|")) for line in text.splitlines()]
        return [
            line for line in lines if line.comment.startswith("switchgear:") and (not job or f":{job}:" in line.comment)
        ]

    def folder_of(self, job: str, node: str) -> Path:
        return self.folder / "state/slurm/launchers" / f"{job}@{node}"

    def launcher_dirs(self, job: str) -> list[Path]:
        return sorted((self.folder / "state/slurm/launchers").glob(f"{job}@*"))

    def launcher_pid(self, job: str, node: str) -> int:
        return int((self.folder_of(job, node) / "lock").read_text())

    def rank_pids(self, job: str, node: str = "") -> list[int]:
        state = json.loads((self.folder_of(job, node) / "generation.json").read_text())
        return [process["pid"] for process in state["processes"]][:-1]

    def steps(self, job: str) -> list[Step]:
        return read_steps(self.folder / f"{job}.jsonl")

    def goes_on(self, job: str, generation: int = 0, timeout_s: float = 60) -> None:
        """Waits for steps of that generation, or of any, that begin from now on."""
        now_ns = time.monotonic_ns()
        wait_for(
            lambda: any(one.begin_ns > now_ns and generation in (0, one.generation) for one in self.steps(job)),
            timeout_s,
        )

    def cancel(self, *jobs: str) -> None:
        for job in jobs:
            self.rest("POST", f"jobs/{job}:cancel", {})
        wait_for(lambda: not any(is_held(folder) for job in jobs for folder in self.launcher_dirs(job)), 30)

    def close(self) -> None:
        self.watch.end()
        super().close()


@dataclass(frozen=True)
class SlurmLine:
    id: str
    state: str
    comment: str

    @property
    def is_alive(self) -> bool:
        return self.state in ("PENDING", "RUNNING", "SUSPENDED", "CONFIGURING")

    @property
    def seat(self) -> tuple[str, str, str]:
        """Job, placement epoch and node."""
        job, epoch, node = self.comment.split(":")[2:5]
        return job, epoch, node


def disagreements(jobs: Iterable[Mapping[str, Any]], lines: Iterable[SlurmLine]) -> set[str]:
    """Where `switchgear jobs` and `squeue` do not say the same. Each may be of the moment between two looks."""
    seats = {
        (job["name"].partition("/")[2], seat["launcherEpoch"], seat["node"].partition("/")[2]): job["state"]
        for job in jobs
        if job["state"] not in _ENDED
        for seat in job.get("placement", {}).get("nodes", [])
    }
    alive = [line for line in lines if line.is_alive]
    found = {f"{line.seat} is {line.state} in Slurm alone" for line in alive if line.seat not in seats}
    for seat, state in seats.items():
        states = [line.state for line in alive if line.seat == seat]
        if len(states) != 1 or (state == "RUNNING" and states != ["RUNNING"]):
            found.add(f"{seat} is {state} here and {states or 'nothing'} in Slurm")
    return found


class Watch:
    """Asks both sides all the time. What it found is told at the end."""

    def __init__(self, drive: Drive) -> None:
        self._drive = drive
        self._since: dict[str, float] = {}
        self._found: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def check(self) -> None:
        assert not self._found, sorted(set(self._found))

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.3):
            try:
                jobs = self._drive.rest("GET", "jobs?pageSize=1000").get("jobs", [])
                lines = self._drive.slurm_jobs()
            except (httpx.HTTPError, AssertionError):
                self._since.clear()  # one of them is away, which the test knows
                continue
            running = [(line.seat[0], line.seat[2]) for line in lines if line.state == "RUNNING"]
            if len(set(running)) < len(running):
                self._found.append(f"a launcher runs twice: {running}")
            now_s = time.monotonic()
            apart = disagreements(jobs, lines)
            self._since = {what: self._since.get(what, now_s) for what in apart}
            self._found += [what for what, since_s in self._since.items() if now_s - since_s > AGREE_S]


def free_port() -> int:
    """A port that was free a moment ago: `up` must come back on the same one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
