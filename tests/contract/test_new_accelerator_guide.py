"""The guide's own driver, as it stands in the guide: found, read, labelled, exported, among the GPUs of other vendors."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from switchgear.agent.amd.readings import FAST
from switchgear.agent.events import Events
from switchgear.agent.exporter import Exporter
from switchgear.agent.sources.gpu import GpuDevice, GpuDriver, GpuSource
from switchgear.agent.sources.gpu_metrics import METRICS
from switchgear.agent.spool import Spool
from switchgear.agent.vendors import Opening, open_gpus
from switchgear.core.clock import ManualClock
from switchgear.sim.gpus import SimulatedGpus

GUIDE = (Path(__file__).parents[2] / "docs/new-accelerator.md").read_text()


@pytest.fixture
def guide() -> ModuleType:
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    module = ModuleType("quoll")
    sys.modules["quoll"] = module  # dataclasses look their module up
    exec(compile(code, "docs/new-accelerator.md", "exec"), module.__dict__)  # noqa: S102 - our own documentation
    return module


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    root = tmp_path / "quoll"
    for number in range(2):
        folder = root / f"quoll{number}"
        folder.mkdir(parents=True)
        files = {
            "serial": f"Q-{number}",
            "address": f"0000:a{number}:00.0",
            "memory_bytes": 2**34,
            "temp_millicelsius": 51_500,
            "power_microwatts": 300_250_000,
            "busy_permille": 875,
            "memory_used_bytes": 3 * 2**20,
            "corrected_errors": 4,
        }
        for name, content in files.items():
            (folder / name).write_text(f"{content}\n")
    return root


@pytest.fixture
def found(guide: ModuleType, cards: Path, tmp_path: Path) -> Iterator[list[tuple[GpuDriver, GpuDevice]]]:
    clock = ManualClock()
    spool = Spool(tmp_path / "spool", "boot")
    events = Events(spool, {}, clock, lambda: None, simulated=False)

    @contextmanager
    def two_others(_: Opening) -> Iterator[GpuDriver]:
        yield SimulatedGpus("n1", 2, tmp_path, clock)

    @contextmanager
    def not_here(_: Opening) -> Iterator[None]:
        yield None

    def quoll(opening: Opening) -> Any:
        return guide.quoll_gpus(opening, cards)

    with open_gpus(events, clock, kernel_log=True, vendors=(two_others, not_here, quoll)) as gpus:
        yield gpus
    spool.close()


def test_each_gpu_of_the_node_has_an_index_of_its_own(found: list[tuple[GpuDriver, GpuDevice]]) -> None:
    assert [(device.index, device.device_file) for _, device in found] == [
        (0, "nvidia0"),
        (1, "nvidia1"),
        (2, "quoll0"),
        (3, "quoll1"),
    ]


def test_the_guides_driver_is_exported_under_names_that_dashboards_know(
    found: list[tuple[GpuDriver, GpuDevice]],
) -> None:
    driver, device = found[2]
    readings = [reading for slow in (False, True) for reading in GpuSource(driver, device, "n1", slow=slow).sample()]
    page = Exporter(lambda: readings, CollectorRegistry()).page().decode()
    labels = 'gpu="2",UUID="Q-0",pci_bus_id="0000:a0:00.0",device="quoll0",modelName="Quoll Q1",hostname="n1"'
    assert [line for line in page.splitlines() if not line.startswith("#")] == [
        f"DCGM_FI_DEV_GPU_TEMP{{{labels}}} 51.5",
        f"DCGM_FI_DEV_POWER_USAGE{{{labels}}} 300.25",
        f"DCGM_FI_DEV_GPU_UTIL{{{labels}}} 87.5",
        f"DCGM_FI_DEV_FB_USED{{{labels}}} 3.0",
        f"DCGM_FI_DEV_ECC_SBE_VOL_TOTAL{{{labels}}} 4.0",
    ]


def test_what_the_guides_driver_cannot_read_is_unknown_and_what_a_card_lacks_is_left_out(
    found: list[tuple[GpuDriver, GpuDevice]], cards: Path
) -> None:
    (cards / "quoll1/busy_permille").write_text("rubbish")
    (cards / "quoll1/power_microwatts").unlink()
    driver, device = found[3]
    values = {reading.key.metric: reading for reading in GpuSource(driver, device, "n1").sample()}
    assert "busy_permille" in values["DCGM_FI_DEV_GPU_UTIL"].reason
    assert "DCGM_FI_DEV_POWER_USAGE" not in values
    assert values["DCGM_FI_DEV_GPU_TEMP"].value == 51.5


def test_the_guides_table_of_amd_has_every_metric_that_is_read_there() -> None:
    named = set(re.findall(r"`((?:DCGM_FI|switchgear_gpu)_[A-Za-z0-9_]+)`", GUIDE.partition("## AMD")[2]))
    assert named <= METRICS.keys()
    assert {entry.metric for entry in FAST} <= named
    fields = {field for entry in FAST for field in entry.fields if not field.endswith("_residency_acc")}
    assert {field for field in fields if f"`{field}`" not in GUIDE} == set()
