"""What is read from the host, its network and its GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from switchgear.agent.readings import Reading
from switchgear.agent.sources.gpu import GpuSource, Value
from switchgear.agent.sources.host import FilesystemSource, HostSource
from switchgear.agent.sources.network import NetworkSource
from switchgear.core.clock import ManualClock
from switchgear.sim.gpus import SimulatedGpus


def by_name(readings: list[Reading]) -> Mapping[str, Reading]:
    return {f"{reading.key.metric}{dict(reading.key.labels)}": reading for reading in readings}


def test_the_host_has_cpu_memory_and_load() -> None:
    readings = by_name(HostSource().sample())
    assert readings["node_cpu_seconds_total{'mode': 'user'}"].value
    total, available = (
        readings["node_memory_MemTotal_bytes{}"].value,
        readings["node_memory_MemAvailable_bytes{}"].value,
    )
    assert total is not None
    assert available is not None
    assert 0 < available < total
    assert readings["node_load1{}"].value is not None


def test_a_file_system_has_room_up_to_its_size() -> None:
    readings = FilesystemSource().sample()
    sizes = [reading.value for reading in readings if reading.key.metric == "node_filesystem_size_bytes"]
    available = [reading.value for reading in readings if reading.key.metric == "node_filesystem_avail_bytes"]
    assert all(a is None or s is None or a <= s for a, s in zip(available, sizes, strict=True))


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    for device in ("eth0", "veth12ab", "ib0"):
        statistics = tmp_path / device / "statistics"
        statistics.mkdir(parents=True)
        for direction in ("rx", "tx"):
            for what in ("bytes", "packets", "errors", "dropped"):
                (statistics / f"{direction}_{what}").write_text("5\n")
        (tmp_path / device / "operstate").write_text("up\n")
        (tmp_path / device / "speed").write_text("400000\n")
    (tmp_path / "ib0" / "speed").write_text("-1\n")
    (tmp_path / "ib0" / "statistics" / "rx_bytes").unlink()
    return tmp_path


def test_interfaces_have_traffic_state_and_speed_in_bytes(sysfs: Path) -> None:
    readings = by_name(NetworkSource(sysfs).sample())
    assert readings["node_network_receive_bytes_total{'device': 'eth0'}"].value == 5
    assert readings["node_network_up{'device': 'eth0'}"].value == 1
    assert readings["node_network_speed_bytes{'device': 'eth0'}"].value == 50e9
    assert not any("veth" in name for name in readings)


def test_what_an_interface_does_not_tell_is_unknown_and_not_zero(sysfs: Path) -> None:
    readings = by_name(NetworkSource(sysfs).sample())
    speed = readings["node_network_speed_bytes{'device': 'ib0'}"]
    received = readings["node_network_receive_bytes_total{'device': 'ib0'}"]
    assert (speed.value, speed.reason) == (None, "no link speed")
    assert (received.value, received.reason) == (None, "rx_bytes: No such file or directory")


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
