"""A simulated GPU as AMD's library tells it, under the names that the agent gives its values (`agent.amd`)."""

from __future__ import annotations

from collections.abc import Iterator

from switchgear.sim.faults import FaultKind
from switchgear.sim.signals import GpuSignals, Value
from switchgear.sim.workloads import Rate

#: The firmware looks at its limits so often a second.
_TICKS_PER_S = 1_000
_REASONS = ("processor_hot", "power", "socket_thermal", "vr_thermal", "hbm_thermal")


def fast(gpu: GpuSignals, time_s: float) -> Iterator[Value]:
    """At each tick."""
    profile, now = gpu.profile, gpu.at(time_s)
    linked = now.done[Rate.LINK] * profile.links * profile.link_bytes_per_s
    throttled_s = {"power": now.done[Rate.CAPPED]}
    throttled_s["socket_thermal"] = gpu.history.lasted_s(FaultKind.THERMAL_THROTTLE, time_s)
    yield "DCGM_FI_DEV_SM_CLOCK", (), float(now.clock_mhz)
    yield "DCGM_FI_DEV_MEM_CLOCK", (), float(profile.memory_clock_mhz)
    yield "DCGM_FI_DEV_GPU_TEMP", (), float(round(now.temperature_c))
    yield "DCGM_FI_DEV_MEMORY_TEMP", (), float(round(now.temperature_c - 6 + 6 * now.mean[Rate.DRAM]))
    yield "DCGM_FI_DEV_POWER_USAGE", (), float(round(now.power_w * now.jitter(4, 0.008)))
    yield "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", (), float(int(now.energy_j * 1000))
    yield "DCGM_FI_DEV_GPU_UTIL", (), float(round(100 * now.mean[Rate.BUSY]))
    yield "DCGM_FI_DEV_MEM_COPY_UTIL", (), float(round(100 * now.mean[Rate.DRAM]))
    for metric in (
        "DCGM_FI_DEV_PCIE_REPLAY_COUNTER",
        "switchgear_gpu_pcie_recoveries_total",
        "switchgear_gpu_pcie_naks_sent_total",
        "switchgear_gpu_pcie_naks_received_total",
    ):
        yield metric, (), 0.0
    yield "switchgear_gpu_xgmi_read_bytes_total", (), float(int(linked * gpu.spread(15) / 1024) * 1024)
    yield "switchgear_gpu_xgmi_write_bytes_total", (), float(int(linked * gpu.spread(16) / 1024) * 1024)
    yield "switchgear_gpu_throttle_ticks_total", (), float(int(time_s * _TICKS_PER_S))
    for reason in _REASONS:
        ticks = int(throttled_s.get(reason, 0.0) * _TICKS_PER_S)
        yield "switchgear_gpu_throttled_ticks_total", (("reason", reason),), float(ticks)
    yield "DCGM_FI_DEV_FB_TOTAL", (), float(profile.memory_mib)
    yield "DCGM_FI_DEV_FB_USED", (), float(now.used_mib)
    yield "DCGM_FI_DEV_FB_FREE", (), float(profile.memory_mib - now.used_mib)


def slow(gpu: GpuSignals, time_s: float) -> Iterator[Value]:
    """Each 15 s."""
    profile = gpu.profile
    yield "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", (), float(gpu.history.count(FaultKind.ECC_STORM, time_s))
    yield "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", (), 0.0
    yield "switchgear_gpu_ecc_deferred_errors_total", (), 0.0
    yield "DCGM_FI_DEV_POWER_MGMT_LIMIT", (), float(profile.power_max_w)
    yield "DCGM_FI_DEV_POWER_MGMT_LIMIT_MAX", (), float(profile.power_max_w)
    yield "DCGM_FI_DEV_RETIRED_DBE", (), 0.0
    yield "DCGM_FI_DEV_RETIRED_PENDING", (), 0.0
    yield "switchgear_gpu_xgmi_links", (), float(profile.links)
    yield "switchgear_gpu_xgmi_links_active", (), float(profile.links)
    for metric in ("DCGM_FI_DEV_PCIE_LINK_WIDTH", "DCGM_FI_DEV_PCIE_MAX_LINK_WIDTH"):
        yield metric, (), 16.0
    for metric in ("DCGM_FI_DEV_PCIE_LINK_GEN", "DCGM_FI_DEV_PCIE_MAX_LINK_GEN"):
        yield metric, (), float(profile.pcie_generation)
