"""The processes of the demo: a control plane in one process or apart, three agents with simulated GPUs, and a way to end them all."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import switchgear.train
from switchgear.core.errors import FailedPrecondition, Reason
from switchgear.launcher.state import is_held

NODES = ("gpu-01", "gpu-02", "spare-03")
GPUS_PER_NODE = 2
SERVICES = ("collector", "scheduler", "recovery", "autoscaler", "gateway")
#: What `kill` and `--kill` may name when the services run apart.
KILLABLE = (*SERVICES, "router", *NODES)
#: A launcher leaves its ranks five seconds after SIGTERM.
LAUNCHERS_END_S = 8.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the control plane of the demo is. grpc: for people and programs, also for the agents when it is one process."""

    grpc: str
    http: str
    router: str


def example(name: str) -> Path:
    """A script of the examples: in the wheel beside `switchgear.train`, in a checkout beside the workloads."""
    package = Path(next(iter(switchgear.train.__path__)))
    for folder in (package.parent / "examples", package.parent.parent / "examples"):
        if (folder / name).is_file():
            return folder / name
    raise FailedPrecondition(
        f"the example {name} is not installed; install the whole distribution: pip install 'switchgear[server,train]'",
        Reason.MISSING_EXTRA,
    )


def example_trainer() -> Path:
    return example("train_gpt.py")


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
    """Everything under one folder; each process writes its log there. database_url: services run apart on this PostgreSQL."""

    def __init__(self, folder: Path, database_url: str = "") -> None:
        self.folder = folder
        self._database_url = database_url
        self._commands: dict[str, Sequence[str]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        # Chosen here, since who is killed has to come back at the same place.
        self._at = _free_addresses((*SERVICES, "up", "http", "router"))
        self.addresses = Addresses(self._at["gateway" if self.apart else "up"], self._at["http"], self._at["router"])

    @property
    def apart(self) -> bool:
        return bool(self._database_url)

    def agent_dir(self, node: str) -> Path:
        return self.folder / "agents" / node

    def start_control(self) -> None:
        """Starts `switchgear up`, or the five services and a router, and waits until all of them listen."""
        http, router = self._at["http"], self._at["router"]
        if not self.apart:
            # Without GPUs to offer of its own: the nodes are the three agents.
            # A database of the environment is somebody's own.
            where = ("--database-url=", "--grpc", self._at["up"], "--http", http, "--router", router)
            self._start("up", "up", "--no-agent", "--state-dir", str(self.folder / "control"), *where)
        else:
            known = [word for name in SERVICES for word in (f"--{name}", self._at[name])]
            for name in SERVICES:
                own = ["--grpc", self._at[name], "--database-url", self._database_url]
                own += ["--state-dir", str(self.folder / "control")]
                own += ["--http", http] if name == "gateway" else []
                self._start(name, "serve", name, *own, *known)
            self._start("router", "router", "--autoscaler", self._at["autoscaler"], "--listen", router)
        waiting = ["http", "router", *(SERVICES if self.apart else ["up"])]

        def listening() -> bool | None:
            while waiting and _accepts(self._at[waiting[-1]]):
                waiting.pop()
            return None if waiting else True

        wait_for("the control plane", listening, 60, self.check)

    def start_agents(self) -> None:
        services = ("collector", "scheduler", "recovery", "autoscaler")
        where = (
            [word for name in services for word in (f"--{name}", self._at[name])]
            if self.apart
            else ["--server", self._at["up"]]
        )
        for node in NODES:
            state_dir = str(self.agent_dir(node))
            gpus = str(GPUS_PER_NODE)
            self._start(node, "agent", "--node", node, *where, "--state-dir", state_dir, "--sim-gpus", gpus)

    def kill(self, name: str) -> None:
        """SIGKILL, and the same command again, as a service manager would do it."""
        process = self._processes[name]
        process.kill()
        process.wait()
        self._start(name, *self._commands[name])

    def check(self) -> None:
        """Raises FailedPrecondition when one of the processes has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                log = (self.folder / f"{name}.log").read_text(errors="replace").strip().splitlines()
                raise FailedPrecondition(
                    f"{name} ended with {process.returncode}: {log[-1] if log else 'it wrote nothing'}", Reason.INTERNAL
                )

    def launcher_dirs(self, job: str = "*") -> list[Path]:
        """State directories of the launchers of the agents, or of those of one job."""
        return [path for node in NODES for path in (self.agent_dir(node) / "launchers").glob(job) if path.is_dir()]

    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self._processes.items()}

    def close(self) -> None:
        """Ends everything. Launchers come last: they outlive agents and control plane by design, and would be started again."""
        # Those who hold others' work first, those who would notice last.
        for name in sorted(self._processes, key=lambda name: name not in NODES):
            process = self._processes[name]
            if process.poll() is None:
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
        self._commands[name] = arguments
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "switchgear.cli.main", *arguments, "--log-level", "info"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal is for the demo, which then ends its processes in order.
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )


def _free_addresses(names: Sequence[str]) -> dict[str, str]:
    with ExitStack() as stack:  # all are held until the last is chosen, or two could be the same
        probes = {name: stack.enter_context(socket.create_server(("127.0.0.1", 0))) for name in names}
        return {name: f"127.0.0.1:{probe.getsockname()[1]}" for name, probe in probes.items()}


def _accepts(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True
