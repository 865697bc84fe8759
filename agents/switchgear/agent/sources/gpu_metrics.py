"""Every metric of a GPU: its name, unit and kind, and how often it is read. dcgm-exporter's names and units where it has one."""

from __future__ import annotations

from dataclasses import dataclass

from switchgear.agent.readings import Kind


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    unit: str
    kind: Kind


_GAUGES = (
    ("DCGM_FI_DEV_SM_CLOCK", "megahertz"),
    ("DCGM_FI_DEV_MEM_CLOCK", "megahertz"),
    ("DCGM_FI_DEV_GPU_TEMP", "celsius"),
    ("DCGM_FI_DEV_MEMORY_TEMP", "celsius"),
    ("DCGM_FI_DEV_POWER_USAGE", "watts"),
    ("DCGM_FI_DEV_GPU_UTIL", "percent"),
    ("DCGM_FI_DEV_MEM_COPY_UTIL", "percent"),
    ("DCGM_FI_DEV_ENC_UTIL", "percent"),
    ("DCGM_FI_DEV_DEC_UTIL", "percent"),
    ("DCGM_FI_DEV_XID_ERRORS", ""),
    ("DCGM_FI_DEV_FB_FREE", "mebibytes"),
    ("DCGM_FI_DEV_FB_USED", "mebibytes"),
    ("DCGM_FI_DEV_FB_RESERVED", "mebibytes"),
    ("DCGM_FI_DEV_ROW_REMAP_FAILURE", ""),
    ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", "ratio"),
    ("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "ratio"),
    ("DCGM_FI_PROF_DRAM_ACTIVE", "ratio"),
)
_COUNTERS = (
    ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "millijoules"),
    ("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", ""),
    ("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", ""),
    ("DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", ""),
    ("DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS", ""),
    ("DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", ""),
    ("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", ""),
)

#: By name. A driver may report any of these and nothing else.
METRICS = {
    name: Metric(name, unit, kind)
    for kind, table in ((Kind.GAUGE, _GAUGES), (Kind.COUNTER, _COUNTERS))
    for name, unit in table
}
