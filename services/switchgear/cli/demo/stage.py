"""The processes of the demo: a control plane, three agents with simulated GPUs, and a way to end them all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import switchgear.train
from switchgear.cli.state import Running, read_running
from switchgear.core.errors import FailedPrecondition, Reason
from switchgear.launcher.state import is_held

NODES = ("gpu-01", "gpu-02", "spare-03")
GPUS_PER_NODE = 2
#: A launcher leaves its ranks five seconds after SIGTERM.
LAUNCHERS_END_S = 8.0
T = TypeVar("T")


def example_trainer() -> Path:
    """`train_gpt.py`: in the wheel beside `switchgear.train`, in a checkout beside the workloads."""
    package = Path(next(iter(switchgear.train.__path__)))
    for folder in (package.parent / "examples", package.parent.parent / "examples"):
        if (folder / "train_gpt.py").is_file():
            return folder / "train_gpt.py"
    raise FailedPrecondition(
        "the example trainer is not installed; install the whole distribution: pip install 'switchgear[server,train]'",
        Reason.MISSING_EXTRA,
    )


def wait_for(what: str, found: Callable[[], T | None], timeout_s: float, alive: Callable[[], None]) -> T:
    """The first answer of `found` that is not None; `alive` raises when waiting is in vain."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (answer := found()) is not None:
            return answer
        alive()
        time.sleep(0.05)
    raise FailedPrecondition(
        f"waited {timeout_s:.0f} s in vain for {what}; the logs are in the demo's folder", Reason.INTERNAL
    )


class Stage:
    """Everything under one folder; each process writes its log there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.control_dir = folder / "control"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def agent_dir(self, node: str) -> Path:
        return self.folder / "agents" / node

    def start_control(self) -> Running:
        """Starts `switchgear up` on free ports."""
        # Without GPUs to offer of its own: the nodes are the three agents.
        self._start(
            "up",
            "up",
            "--no-agent",
            "--state-dir",
            str(self.control_dir),
            "--grpc",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
        )
        pid = self._processes["up"].pid

        def running() -> Running | None:
            found = read_running(self.control_dir)
            return found if found and found.pid == pid else None

        self.running = wait_for("the control plane", running, 30, self.check)
        return self.running

    def start_agents(self, server: str) -> None:
        for node in NODES:
            state_dir = str(self.agent_dir(node))
            self._start(
                node,
                "agent",
                "--node",
                node,
                "--server",
                server,
                "--state-dir",
                state_dir,
                "--sim-gpus",
                str(GPUS_PER_NODE),
            )

    def check(self) -> None:
        """Raises FailedPrecondition when one of the processes has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                log = (self.folder / f"{name}.log").read_text(errors="replace").strip().splitlines()
                raise FailedPrecondition(
                    f"{name} ended with {process.returncode}: {log[-1] if log else 'it wrote nothing'}", Reason.INTERNAL
                )

    def launcher_dirs(self) -> list[Path]:
        """State directories of the launchers of the agents."""
        return [path for node in NODES for path in (self.agent_dir(node) / "launchers").glob("*") if path.is_dir()]

    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self._processes.items()}

    def close(self) -> None:
        """Ends everything. Launchers come last: they outlive agents and control plane by design, and would be started again."""
        for name in [*NODES, "up"]:
            process = self._processes.get(name)
            if process and process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._signal_launchers(signal.SIGTERM)
        deadline = time.monotonic() + LAUNCHERS_END_S
        while any(is_held(folder) for folder in self.launcher_dirs()) and time.monotonic() < deadline:
            time.sleep(0.05)
        self._signal_launchers(signal.SIGKILL)  # its zygote ends the ranks

    def _signal_launchers(self, number: int) -> None:
        for folder in self.launcher_dirs():
            if is_held(folder):
                os.kill(int((folder / "lock").read_text()), number)

    def _start(self, name: str, *arguments: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "switchgear.cli.main", *arguments, "--log-level", "info"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal is for the demo, which then ends its processes in order.
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
