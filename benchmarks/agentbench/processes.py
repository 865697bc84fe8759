"""The processes of the agent's benchmarks: a control plane, an agent, and whatever stands beside it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Agent:
    """metrics: HOST:PORT of its /metrics."""

    pid: int
    metrics: str


@contextlib.contextmanager
def plane(folder: Path) -> Iterator[str]:
    """A control plane, of which the agent needs collector and scheduler; its address."""
    address = f"127.0.0.1:{free_port()}"
    listening = [f"--{name}=127.0.0.1:{free_port()}" for name in ("http", "router", "machines")]
    command = ["switchgear.cli.main", "up", "--no-agent", "--state-dir", str(folder / "plane"), "--grpc", address]
    with running([sys.executable, "-m", *command, *listening], folder / "plane.log") as process:
        wait(lambda: listens(address), process, folder / "plane.log")
        yield address


@contextlib.contextmanager
def agent(folder: Path, server: str, environment: Mapping[str, str], *flags: str) -> Iterator[Agent]:
    """A node agent in that folder, its code compiled there."""
    state, log = folder / "agent", folder / "agent.log"
    command = [
        sys.executable,
        "-m",
        "switchgear.agent",
        "--server",
        server,
        "--node",
        "n1",
        "--state-dir",
        str(state),
        *flags,
    ]
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "compiled")}
    address = state / "metrics-address"
    address.unlink(missing_ok=True)
    with running(command, log, {**environment, **compiled}) as process:
        wait(lambda: address.exists() and bool(address.read_text()), process, log)
        yield Agent(process.pid, address.read_text())


@contextlib.contextmanager
def running(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, within_s: float = 60.0) -> None:
    end_s = time.monotonic() + within_s
    while not condition():
        if process.poll() is not None or time.monotonic() > end_s:
            sys.exit(f"{process.args} did not come up:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)


def listens(address: str) -> bool:
    host, _, port = address.partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
