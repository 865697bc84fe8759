"""What is read from GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from switchgear.agent.sources.gpu import GpuSource, Value
from switchgear.core.clock import ManualClock
from switchgear.sim.gpus import SimulatedGpus


class PartialDriver(SimulatedGpus):
    """A driver that supports two metrics only."""

    def read(self, index: int, *, slow: bool) -> Iterator[Value]:
        yield "DCGM_FI_DEV_GPU_TEMP", (), 41.0
        yield "DCGM_FI_DEV_POWER_USAGE", (), "permission denied"


def test_a_gpu_has_the_metrics_that_its_driver_supports_known_or_unknown_with_a_reason(tmp_path: Path) -> None:
    driver = PartialDriver("n1", 1, tmp_path, ManualClock())
    readings = {r.key.metric: r for r in GpuSource(driver, driver.devices()[0], "n1").sample()}
    assert len(readings) == 2
    assert readings["DCGM_FI_DEV_GPU_TEMP"].value == 41.0
    assert readings["DCGM_FI_DEV_POWER_USAGE"].reason == "permission denied"


def test_a_gpu_carries_the_labels_that_dcgm_dashboards_ask_for(tmp_path: Path) -> None:
    driver = SimulatedGpus("n1", 3, tmp_path, ManualClock())
    labels = dict(GpuSource(driver, driver.devices()[2], "n1").sample()[0].key.labels)
    assert (labels["gpu"], labels["device"], labels["hostname"]) == ("2", "nvidia2", "n1")
    assert {"UUID", "pci_bus_id", "modelName"} <= labels.keys()
