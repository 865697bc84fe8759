"""The same samples into our windows, and into the stores that others have."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentbench.processes import free_port, listens

from ingestbench import data, remote_write
from ingestbench.ingest import SERIES
from ingestbench.processes import Program, collector, run_fleet, running, scrape
from ingestbench.sinks import sink

_INSTALL = "apt-get install -y --no-install-recommends prometheus victoria-metrics"
#: Of the windows that scrapes are measured in: the first ones build the index.
_SCRAPES_BEFORE_S = 10.0


@dataclass(frozen=True, slots=True)
class Load:
    """nodes of 320 series, so many ticks a second apart."""

    nodes: int
    ticks: int

    @property
    def samples(self) -> int:
        return self.nodes * SERIES * self.ticks


def compare(folder: Path, load: Load) -> dict[str, Any]:
    """CPU seconds of the receiver for a million samples, one after the other."""
    rows: dict[str, dict[str, Any]] = {
        "windows": ours(folder / "windows", load),
        "windows and remote write": forwarding(folder / "forwarding", load),
        "prometheus, remote write": prometheus_write(folder, load),
        "victoria-metrics, remote write": victoria_write(folder, load),
        "prometheus, scrape": prometheus_scrape(folder, load),
    }
    better = min(
        row["cpu_s_a_million"] for name, row in rows.items() if name.startswith(("prom", "vict")) and row["complete"]
    )
    mine, forwarded = (rows[name]["cpu_s_a_million"] for name in ("windows", "windows and remote write"))
    return {
        "nodes": load.nodes,
        "series": SERIES,
        "ticks": load.ticks,
        "receivers": rows,
        "better_peer_over_windows": better / mine,
        "better_peer_over_forwarding": better / forwarded,
        "passed": better / mine >= 5 and better / forwarded > 1,
    }


def ours(folder: Path, load: Load) -> dict[str, Any]:
    with collector(folder) as target:
        cpu_s = target.program.cpu_s()
        told = run_fleet(folder, target.grpc, "--nodes", load.nodes, "--series", SERIES, "--flood", load.ticks)
        cpu_s = target.program.settled_cpu_s() - cpu_s
        return _row(told["blocks_acked"] * SERIES, load, cpu_s, told["flood_s"], target.program)


def forwarding(folder: Path, load: Load) -> dict[str, Any]:
    """With every sample to one target, by remote write 1.0; the queue has room for all, so that nothing is spared."""
    with sink(folder, "ok") as store:
        configuration = (
            f'[[remote_write]]\nname = "sink"\nurl = "http://{store.address}/api/v1/write"\ninterval_s = 0\n'
            f"queue_bytes_max = {8 * 2 * load.samples + 1024**2}\n"
        )
        with collector(folder, configuration) as target:
            cpu_s = target.program.cpu_s()
            told = run_fleet(folder, target.grpc, "--nodes", load.nodes, "--series", SERIES, "--flood", load.ticks)
            cpu_s = target.program.settled_cpu_s() - cpu_s
            page = target.page()
            row = _row(told["blocks_acked"] * SERIES, load, cpu_s, told["flood_s"], target.program)
        decoded = store.decoded()
    sent = page.get('switchgear_remote_write_samples_total{outcome="sent",target="sink"}', 0.0)
    complete = decoded["samples"] == sent == load.samples
    return row | {"sink": decoded, "samples_sent": sent, "complete": row["complete"] and complete}


def prometheus_write(folder: Path, load: Load) -> dict[str, Any]:
    with _prometheus(folder / "prometheus-write", "", "--web.enable-remote-write-receiver") as (program, address):
        return _written(program, address, load, lambda: _prometheus_samples(address)) | {
            "version": _version("prometheus")
        }


def victoria_write(folder: Path, load: Load) -> dict[str, Any]:
    address = f"127.0.0.1:{free_port()}"
    home = folder / "victoria"
    home.mkdir()
    command = [
        _installed("victoria-metrics"),
        f"-storageDataPath={home}",
        f"-httpListenAddr={address}",
        "-retentionPeriod=1",
    ]
    with running(Program(command, folder / "victoria.log", lambda: listens(address))) as program:

        def samples() -> float:
            with urllib.request.urlopen(f"http://{address}/internal/force_flush", timeout=120):
                pass
            return scrape(address)['vm_rows_inserted_total{type="promremotewrite"}']

        return _written(program, address, load, samples) | {"version": _version("victoria-metrics")}


def prometheus_scrape(folder: Path, load: Load) -> dict[str, Any]:
    """At 1 Hz, since a scrape has its own pace: CPU of so many seconds as there are ticks, once all series are known."""
    port = free_port()
    arguments = (str(port), str(load.nodes), str(SERIES), "60")
    pages = Program(
        [sys.executable, "-m", "ingestbench.exposition", *arguments],
        folder / "exposition.log",
        lambda: listens(f"127.0.0.1:{port}"),
    )
    targets = "".join(
        f'      - targets: ["127.0.0.1:{port}"]\n'
        f'        labels: {{__metrics_path__: "/{node}", instance: "sim-{node + 1:04}:9400"}}\n'
        for node in range(load.nodes)
    )
    configuration = (
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
        f"scrape_configs:\n  - job_name: switchgear\n    static_configs:\n{targets}"
    )
    with running(pages), _prometheus(folder / "prometheus-scrape", configuration) as (program, address):
        time.sleep(_SCRAPES_BEFORE_S)
        before, cpu_s, start_s = _prometheus_samples(address), program.cpu_s(), time.monotonic()
        time.sleep(load.ticks)
        samples, cpu_s = _prometheus_samples(address) - before, program.cpu_s() - cpu_s
        row = _row(samples, load, cpu_s, time.monotonic() - start_s, program)
    return row | {"complete": samples >= 0.95 * load.samples, "version": _version("prometheus")}


def _written(program: Program, address: str, load: Load, samples: Callable[[], float]) -> dict[str, Any]:
    nodes = [data.series_of(f"sim-{ordinal:04}", SERIES) for ordinal in range(1, load.nodes + 1)]
    values = data.values(SERIES, load.ticks)
    before, cpu_s = samples(), program.cpu_s()
    took_s = remote_write.send(address, "/api/v1/write", nodes, values, load.ticks)
    samples()
    cpu_s = program.settled_cpu_s() - cpu_s
    return _row(samples() - before, load, cpu_s, took_s, program)


def _row(samples: float, load: Load, cpu_s: float, took_s: float, program: Program) -> dict[str, Any]:
    return {
        "samples": samples,
        "complete": samples == load.samples,
        "cpu_s": cpu_s,
        "cpu_s_a_million": 1e6 * cpu_s / samples if samples else None,
        "seconds": took_s,
        "rss_mb": program.rss_mb(),
    }


@contextmanager
def _prometheus(home: Path, configuration: str, *flags: str) -> Iterator[tuple[Program, str]]:
    home.mkdir()
    address = f"127.0.0.1:{free_port()}"
    (home / "prometheus.yml").write_text(configuration or "global: {}\n")
    command = [
        _installed("prometheus"),
        f"--config.file={home / 'prometheus.yml'}",
        f"--storage.tsdb.path={home / 'data'}",
        f"--web.listen-address={address}",
        *flags,
    ]
    with running(Program(command, home / "log", lambda: listens(address))) as program:
        yield program, address


def _prometheus_samples(address: str) -> float:
    return sum(
        value
        for name, value in scrape(address).items()
        if name.startswith("prometheus_tsdb_head_samples_appended_total")
    )


def _installed(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        sys.exit(f"{name} is not installed; on Debian: {_INSTALL}")
    return path


def _version(name: str) -> str:
    """Of the Debian package: not every program of theirs tells it."""
    command = ["dpkg-query", "--show", "--showformat=${Version}", name]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "not of a Debian package"
