"""GPUs through a driver, under dcgm-exporter's names and in its units."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from switchgear.agent.readings import Kind, Reading, SeriesKey, known, series, unknown


class GpuDevice(Protocol):
    """Identity of a GPU, fixed while the agent runs."""

    @property
    def index(self) -> int: ...
    @property
    def uuid(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def pci_bus_id(self) -> str: ...
    @property
    def simulated(self) -> bool: ...


class GpuDriver(Protocol):
    """How GPUs are found and read. `read` may block: each GPU is read from a thread of its own."""

    def devices(self) -> Sequence[GpuDevice]: ...

    def read(self, index: int) -> Mapping[str, float | str]:
        """For each metric of `METRICS` its value, or a sentence why there is none. A metric left out is not supported."""


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    unit: str
    kind: Kind


#: What every driver is asked for.
METRICS = (
    Metric("DCGM_FI_DEV_SM_CLOCK", "megahertz", Kind.GAUGE),
    Metric("DCGM_FI_DEV_MEM_CLOCK", "megahertz", Kind.GAUGE),
    Metric("DCGM_FI_DEV_GPU_TEMP", "celsius", Kind.GAUGE),
    Metric("DCGM_FI_DEV_MEMORY_TEMP", "celsius", Kind.GAUGE),
    Metric("DCGM_FI_DEV_POWER_USAGE", "watts", Kind.GAUGE),
    Metric("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "millijoules", Kind.COUNTER),
    Metric("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", "", Kind.COUNTER),
    Metric("DCGM_FI_DEV_GPU_UTIL", "percent", Kind.GAUGE),
    Metric("DCGM_FI_DEV_MEM_COPY_UTIL", "percent", Kind.GAUGE),
    Metric("DCGM_FI_DEV_ENC_UTIL", "percent", Kind.GAUGE),
    Metric("DCGM_FI_DEV_DEC_UTIL", "percent", Kind.GAUGE),
    Metric("DCGM_FI_DEV_XID_ERRORS", "", Kind.GAUGE),
    Metric("DCGM_FI_DEV_FB_FREE", "mebibytes", Kind.GAUGE),
    Metric("DCGM_FI_DEV_FB_USED", "mebibytes", Kind.GAUGE),
    Metric("DCGM_FI_DEV_FB_RESERVED", "mebibytes", Kind.GAUGE),
    Metric("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", "", Kind.COUNTER),
    Metric("DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", "", Kind.COUNTER),
    Metric("DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS", "", Kind.COUNTER),
    Metric("DCGM_FI_DEV_ROW_REMAP_FAILURE", "", Kind.GAUGE),
    Metric("DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", "", Kind.COUNTER),
    Metric("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", "", Kind.COUNTER),
    Metric("DCGM_FI_PROF_GR_ENGINE_ACTIVE", "ratio", Kind.GAUGE),
    Metric("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "ratio", Kind.GAUGE),
    Metric("DCGM_FI_PROF_DRAM_ACTIVE", "ratio", Kind.GAUGE),
)


class GpuSource:
    """One GPU: a hanging one must not hide the others."""

    def __init__(self, driver: GpuDriver, device: GpuDevice, hostname: str, deadline_s: float = 0.5) -> None:
        self.name = f"gpu-{device.index}"
        self.gpu = device.index
        self.deadline_s = deadline_s
        self._driver = driver
        labels = (
            ("gpu", str(device.index)),
            ("UUID", device.uuid),
            ("pci_bus_id", device.pci_bus_id),
            ("device", f"nvidia{device.index}"),
            ("modelName", device.model),
            ("hostname", hostname),
        )
        self._keys: dict[str, SeriesKey] = {
            metric.name: series(metric.name, metric.unit, metric.kind, *labels) for metric in METRICS
        }

    def sample(self) -> list[Reading]:
        values = self._driver.read(self.gpu)
        readings = list[Reading]()
        for name, key in self._keys.items():
            value = values.get(name, "not supported")
            readings.append(unknown(key, value) if isinstance(value, str) else known(key, value))
        return readings


_PCI = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})(?:\.[0-7])?", re.IGNORECASE)


def normal_pci(text: str) -> str:
    """`dddd:bb:dd` in lower case from any spelling of a PCI address, with or without domain and function; "" when it is none."""
    match = _PCI.fullmatch(text)
    if match is None:
        return ""
    domain, bus, device = match.groups(default="0000")
    return f"{domain[-4:]}:{bus}:{device}".lower()
