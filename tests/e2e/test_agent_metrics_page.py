"""The agent's /metrics as its readers see it: on the driver double, scraped by a real Prometheus, with a public dashboard's queries."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from nvml_double.fixtures import scenario_or_skip
from prometheus_stack import Prometheus, program
from terminal import wait_for

from switchgear.core.metrics import ADDRESS_FILE

#: Of "NVIDIA DCGM Exporter Dashboard" (grafana.com 12239), with its variables filled in.
CHOSEN = '{instance=~".+", gpu=~"0|1"}'
PANELS = [
    f"DCGM_FI_DEV_GPU_TEMP{CHOSEN}",
    f"avg(DCGM_FI_DEV_GPU_TEMP{CHOSEN})",
    f"DCGM_FI_DEV_POWER_USAGE{CHOSEN}",
    f"sum(DCGM_FI_DEV_POWER_USAGE{CHOSEN})",
    f"DCGM_FI_DEV_SM_CLOCK{CHOSEN} * 1000000",
    f"DCGM_FI_DEV_GPU_UTIL{CHOSEN}",
    f"DCGM_FI_DEV_FB_USED{CHOSEN}",
    f"DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{CHOSEN}",
]
#: Names and labels that dcgm-exporter and node_exporter chose, in other ways than Prometheus advises; ours stand beside the former.
_NOT_OURS = re.compile(r"DCGM_|node_|switchgear_gpu_")


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of its /metrics."""
    tmp_path = tmp_path_factory.mktemp("agent")
    scenario = scenario_or_skip(tmp_path / "nvml", 2, moving=True)
    path = {"PATH": os.environ["PATH"]}
    rank = subprocess.Popen([sys.executable, "-c", "input()"], env=path | {"SLURM_JOB_ID": "17"}, stdin=subprocess.PIPE)
    scenario.put(0, {"processes": f"{rank.pid}:1000000"})
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "1").write_text("4711\n")
    state = tmp_path / "agent"
    flags = ["--node", "n1", "--state-dir", str(state), "--hpc-job-mapping-dir", str(tmp_path / "jobs")]
    flags += ["--interval", "0.2", "--server", "127.0.0.1:1"]
    command = [sys.executable, "-m", "switchgear.agent", *flags]
    process = subprocess.Popen(command, env=scenario.environment, stderr=subprocess.PIPE)
    address = state / ADDRESS_FILE
    try:
        wait_for(lambda: address.exists() and bool(address.read_text()), 20)
        wait_for(lambda: "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{" in page(address.read_text()), 20)
        yield address.read_text()
    finally:
        process.terminate()
        process.communicate(timeout=20)
        rank.communicate()


def page(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics") as response:
        text: str = response.read().decode()
        return text


def gpus_of(prometheus: Prometheus, job: str) -> set[str]:
    return {series["metric"]["gpu"] for series in prometheus.query(f'DCGM_FI_DEV_GPU_UTIL{{hpc_job="{job}"}}')}


def test_a_public_dashboard_works_unchanged(agent: str, tmp_path: Path) -> None:
    scrape = {
        "job_name": "gpus",
        "scrape_interval": "500ms",
        "scrape_timeout": "500ms",
        "static_configs": [{"targets": [agent]}],
    }
    prometheus = Prometheus(tmp_path, {"scrape_configs": [scrape]})
    try:
        wait_for(lambda: bool(prometheus.query(PANELS[-1])), 20)
        for panel in PANELS:
            found = prometheus.query(panel)
            assert len(found) == (1 if "(" in panel else 2), panel
        assert prometheus.get("label/instance/values?match[]=DCGM_FI_DEV_GPU_TEMP") == [agent]
        assert prometheus.get("label/gpu/values?match[]=DCGM_FI_DEV_GPU_TEMP") == ["0", "1"]
        (clock,) = prometheus.query('DCGM_FI_DEV_SM_CLOCK{gpu="0"}')
        assert 100 < float(clock["value"][1]) < 3000, "megahertz"
        # GPU 0 by the environment of the process that the driver reports, GPU 1 by a prolog's file.
        for gpu, job in (("0", "17"), ("1", "4711")):
            wait_for(lambda gpu=gpu, job=job: gpus_of(prometheus, job) == {gpu}, 20)
        (up,) = prometheus.query("up")
        assert up["value"][1] == "1"
    finally:
        prometheus.close()


def test_promtool_reads_all_of_it_and_complains_of_nothing_but_names_that_others_chose(agent: str) -> None:
    text = page(agent)
    checked = subprocess.run(
        [program("promtool"), "check", "metrics"], input=text, text=True, capture_output=True, check=False
    )
    assert checked.returncode in (0, 3), checked.stderr  # 1: it cannot be parsed
    assert [line for line in checked.stderr.splitlines() if not _NOT_OURS.match(line)] == []
    first = next(line for line in text.splitlines() if line.startswith("DCGM_FI_DEV_GPU_TEMP{"))
    labels = re.findall(r'(\w+)="', first)
    assert labels[:6] == ["gpu", "UUID", "pci_bus_id", "device", "modelName", "hostname"]
