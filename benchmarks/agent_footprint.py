"""What the node agent costs: processor time and memory with 8 GPUs at one sample a second, streaming to a real collector.

    python benchmarks/agent_footprint.py [--seconds 60] [--driver nvml|sim] [--node-exporter PROGRAM] [--json FILE]

Two runs of the real process: scraped every 15 seconds, and every second. The GPUs come from the test double of the driver's library
(`tests/nvml_double`), which the unmodified NVML source reads; `sim`: from the simulation in the agent instead. Debian's
`prometheus-node-exporter`, when it is installed, is scraped at the same time and its figures stand beside. Prints JSON; exit code 1
when a bar is missed: 1 % of one core (2 % when scraped every second) and 60 MB of RSS.

Processor time is what the kernel booked for the process and its children, so other load moves it little; latencies mean something on a
quiet machine only.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from agentbench.processes import agent, free_port, listens, plane, running, wait

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from nvml_double.scenario import Scenario

GPUS = 8
RSS_MB_MAX = 60.0
#: Percent of one core, by seconds between scrapes.
CPU_PERCENT_MAX = {15.0: 1.0, 1.0: 2.0}
#: Longer than the slowest source's period, so that every series is there and all code was loaded.
WARM_UP_S = 20.0


@dataclass(slots=True)
class Scraped:
    """A process with `/metrics`, and what its scrapes took."""

    pid: int
    address: str
    latencies_s: list[float] = field(default_factory=list)
    series: int = 0
    page_bytes: int = 0
    sent_bytes: int = 0
    cpu_start_s: float = 0.0

    def scrape(self) -> None:
        start_s = time.perf_counter()
        # As Prometheus asks.
        request = urllib.request.Request(f"http://{self.address}/metrics", headers={"Accept-Encoding": "gzip"})
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - http, as built above
            sent = response.read()
        self.latencies_s.append(time.perf_counter() - start_s)
        page = gzip.decompress(sent)
        self.series = sum(1 for line in page.splitlines() if line and not line.startswith(b"#"))
        self.page_bytes = len(page)
        self.sent_bytes = len(sent)

    def figures(self, seconds: float) -> dict[str, float]:
        latencies = sorted(self.latencies_s)
        memory = _memory_kb(self.pid)
        return {
            "cpu_percent_of_a_core": round(100 * (_cpu_s(self.pid) - self.cpu_start_s) / seconds, 3),
            "rss_mb": round(memory["Rss"] * 1024 / 1e6, 1),
            "pss_mb": round(memory["Pss"] * 1024 / 1e6, 1),
            "threads": len(os.listdir(f"/proc/{self.pid}/task")),  # noqa: PTH208 - names, not paths
            "series": self.series,
            "page_bytes": self.page_bytes,
            "sent_bytes": self.sent_bytes,
            "scrapes": len(latencies),
            "scrape_ms_median": round(latencies[len(latencies) // 2] * 1e3, 2),
            "scrape_ms_max": round(latencies[-1] * 1e3, 2),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each run (default: %(default)s)")
    parser.add_argument("--warm-up", type=float, default=WARM_UP_S, help="seconds before it (default: %(default)s)")
    parser.add_argument("--driver", choices=("nvml", "sim"), default="nvml", help="default: %(default)s")
    parser.add_argument("--node-exporter", default=shutil.which("prometheus-node-exporter"), metavar="PROGRAM")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go as well")
    args = parser.parse_args()
    figures: dict[str, Any] = {"gpus": GPUS, "driver": args.driver, "interval_s": 1.0, "seconds": args.seconds}
    missed = list[str]()
    for scrape_s, cpu_percent_max in CPU_PERCENT_MAX.items():
        found = run(args, scrape_s)
        figures[f"scraped_every_{scrape_s:g}_s"] = found
        agent = found["agent"]
        for name, bar in (("cpu_percent_of_a_core", cpu_percent_max), ("rss_mb", RSS_MB_MAX)):
            if agent[name] > bar:
                missed.append(f"scraped every {scrape_s:g} s: {name} is {agent[name]}, the bar is {bar}")
    figures["missed"] = missed
    text = json.dumps(figures, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text)
    return 1 if missed else 0


def run(args: argparse.Namespace, scrape_s: float) -> dict[str, Any]:
    """Figures of the agent, and of node_exporter beside it or why there are none."""
    with tempfile.TemporaryDirectory(prefix="switchgear-footprint-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        if args.driver == "sim":
            environment, flags = dict(os.environ), ("--sim-gpus", str(GPUS))
        else:
            environment, flags = Scenario(folder / "nvml", GPUS, moving=True).environment, ()
        # As installed: its code was compiled before, which leaves a process larger.
        with agent(folder, f"127.0.0.1:{free_port()}", environment, *flags) as compiling:
            time.sleep(2)
            Scraped(compiling.pid, compiling.metrics).scrape()
        measured = stack.enter_context(agent(folder, stack.enter_context(plane(folder)), environment, *flags))
        scraped = {"agent": Scraped(measured.pid, measured.metrics)}
        if args.node_exporter:
            scraped["node_exporter"] = stack.enter_context(_node_exporter(args.node_exporter))
        _scrape_for(args.warm_up, scrape_s, list(scraped.values()))
        for process in scraped.values():
            process.latencies_s.clear()
            process.cpu_start_s = _cpu_s(process.pid)
        start_s = time.monotonic()
        _scrape_for(args.seconds, scrape_s, list(scraped.values()))
        seconds = time.monotonic() - start_s
        found: dict[str, Any] = {what: process.figures(seconds) for what, process in scraped.items()}
        found.setdefault("node_exporter", "not installed: apt-get install prometheus-node-exporter")
        return found


def _scrape_for(seconds: float, every_s: float, scraped: Sequence[Scraped]) -> None:
    end_s = time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0:
        for process in scraped:
            process.scrape()
        time.sleep(min(every_s, left_s))


@contextlib.contextmanager
def _node_exporter(program: str) -> Iterator[Scraped]:
    address = f"127.0.0.1:{free_port()}"
    with (
        tempfile.TemporaryDirectory(prefix="switchgear-footprint-") as folder,
        running([program, f"--web.listen-address={address}"], Path(folder) / "log") as process,
    ):
        wait(lambda: listens(address), process, Path(folder) / "log")
        yield Scraped(process.pid, address)


def _cpu_s(pid: int) -> float:
    """Seconds of processor time of the process, its ended children and its living descendants."""
    process = psutil.Process(pid)
    return sum(sum(each.cpu_times()[:4]) for each in (process, *process.children(recursive=True)))


def _memory_kb(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}


if __name__ == "__main__":
    sys.exit(main())
