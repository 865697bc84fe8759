"""The processes of the ingest benchmark, and what the kernel booked for them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from agentbench.processes import free_port, listens
from prometheus_client.parser import text_string_to_metric_families

BENCHMARKS = Path(__file__).resolve().parents[1]


@dataclass(slots=True)
class Program:
    """A process whose costs are of interest; it may be killed and started again."""

    command: Sequence[str]
    log: Path
    ready: Callable[[], bool]
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self, within_s: float = 120.0) -> None:
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=BENCHMARKS,
                env={**os.environ, **self.environment},
            )
        until(self.ready, within_s, lambda: f"{self.command[:4]} did not come up:\n{self.log.read_text()[-2000:]}")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()

    def cpu_s(self) -> float:
        """User and system time of the process and its children, those that have ended too."""
        process = psutil.Process(self.pid)
        times = process.cpu_times()
        own = times.user + times.system + times.children_user + times.children_system
        return own + sum(
            child.cpu_times().user + child.cpu_times().system for child in process.children(recursive=True)
        )

    def rss_mb(self) -> float:
        return float(psutil.Process(self.pid).memory_info().rss / 1e6)

    def settled_cpu_s(self, quiet_percent: float = 3.0) -> float:
        """CPU time once it has nothing more to do: what it still writes belongs to what it was given."""
        before = self.cpu_s()
        while True:
            time.sleep(2.0)
            now = self.cpu_s()
            if (now - before) / 2.0 < quiet_percent / 100:
                return now
            before = now


@contextlib.contextmanager
def running(program: Program) -> Iterator[Program]:
    """Started, and stopped at the end of the block."""
    try:
        program.start()
        yield program
    finally:
        program.stop()


@dataclass(slots=True)
class Collector:
    program: Program
    grpc: str
    metrics: str

    def page(self) -> dict[str, float]:
        """Its own metrics, each sample by name and labels: `name{label="value"}`."""
        return scrape(self.metrics)


@contextlib.contextmanager
def collector(folder: Path, configuration: str = "") -> Iterator[Collector]:
    """A collector with its state in `folder`. configuration: text of its TOML file."""
    folder.mkdir(parents=True, exist_ok=True)
    grpc, metrics = (f"127.0.0.1:{free_port()}" for _ in range(2))
    command = [sys.executable, "-m", "ingestbench.collector", str(folder), grpc, metrics]
    if configuration:
        (folder / "collector.toml").write_text(configuration)
        command.append(str(folder / "collector.toml"))
    program = Program(command, folder / "collector.log", lambda: listens(grpc) and listens(metrics))
    with running(program):
        yield Collector(program, grpc, metrics)


def fleet_command(collector: str, *flags: object) -> list[str]:
    fixed = [sys.executable, "-m", "switchgear.cli.main", "sim", "fleet", "--collector", collector, "--json"]
    return [*fixed, *map(str, flags)]


@contextlib.contextmanager
def fleet(folder: Path, collector: str, *flags: object) -> Iterator[subprocess.Popen[bytes]]:
    """A simulated fleet in the background; what it says goes to `fleet.log` and `fleet.json`."""
    with (folder / "fleet.log").open("ab") as log, (folder / "fleet.json").open("wb") as out:
        process = subprocess.Popen(fleet_command(collector, *flags), stdin=subprocess.DEVNULL, stdout=out, stderr=log)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def connected(folder: Path) -> int:
    """Nodes that stream now, as the fleet says each second: to ask the collector for its page would be work for it."""
    lines = (folder / "fleet.log").read_text().splitlines()
    found = re.match(r"(\d+) of \d+ connected", lines[-1]) if lines else None
    return int(found[1]) if found else 0


def fleet_summary(folder: Path) -> dict[str, Any]:
    """What the fleet that has ended printed."""
    text = (folder / "fleet.json").read_text()
    if not text:
        sys.exit(f"the fleet failed:\n{(folder / 'fleet.log').read_text()[-2000:]}")
    found: dict[str, Any] = json.loads(text)
    return found


def run_fleet(folder: Path, collector: str, *flags: object) -> dict[str, Any]:
    """A fleet that ends by itself."""
    with fleet(folder, collector, *flags) as process:
        process.wait()
    return fleet_summary(folder)


def scrape(address: str) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    return {
        f"{sample.name}{_labels(sample.labels)}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _labels(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in sorted(labels.items())) + "}" if labels else ""


def until(condition: Callable[[], bool], within_s: float, why: Callable[[], str]) -> None:
    """Waits for what another process does; ends the benchmark with `why` when it does not."""
    end_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > end_s:
            sys.exit(why())
        time.sleep(0.2)
