"""A simulated GPU as NVML tells it: the metrics and paces of docs/gpu-telemetry.md for a GPU of that generation, without MIG."""

from __future__ import annotations

from collections.abc import Iterator

from switchgear.sim.faults import FaultKind
from switchgear.sim.signals import GpuSignals, Moment, Value
from switchgear.sim.workloads import Rate

# Bits of the clock-event reasons, as in nvml.h.
REASON_IDLE, REASON_POWER, REASON_HW_SLOWDOWN, REASON_HW_THERMAL = 0x1, 0x4, 0x8, 0x40
#: Of sixteen lanes in one direction, by generation, after the encoding.
_PCIE_BYTES_PER_S = {4: 31.5e9, 5: 63e9}
#: Counters of a healthy GPU that stay at 0, and settings that stay off.
_ZEROS = (
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER",
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL",
    "DCGM_FI_DEV_ECC_DBE_AGG_TOTAL",
    "DCGM_FI_DEV_ECC_DBE_VOL_DEV",
    "DCGM_FI_DEV_ECC_SBE_VOL_L2",
    "DCGM_FI_DEV_ECC_DBE_VOL_L2",
    "DCGM_FI_DEV_ECC_SBE_VOL_SRM",
    "DCGM_FI_DEV_ECC_DBE_VOL_SRM",
    "DCGM_FI_DEV_ECC_SBE_AGG_SRM",
    "DCGM_FI_DEV_ECC_DBE_AGG_SRM",
    "DCGM_FI_DEV_THRESHOLD_SRM",
    "DCGM_FI_DEV_SYNC_BOOST_VIOLATION",
    "DCGM_FI_DEV_BOARD_LIMIT_VIOLATION",
    "DCGM_FI_DEV_LOW_UTIL_VIOLATION",
    "DCGM_FI_DEV_RELIABILITY_VIOLATION",
    "DCGM_FI_DEV_TOTAL_APP_CLOCKS_VIOLATION",
    "DCGM_FI_DEV_TOTAL_BASE_CLOCKS_VIOLATION",
    "switchgear_gpu_sw_thermal_slowdown_nanoseconds_total",
    "switchgear_gpu_hw_power_brake_nanoseconds_total",
    "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS",
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS",
    "DCGM_FI_DEV_ROW_REMAP_PENDING",
    "DCGM_FI_DEV_ROW_REMAP_FAILURE",
    "DCGM_FI_DEV_BANKS_REMAP_ROWS_AVAIL_HIGH",
    "DCGM_FI_DEV_BANKS_REMAP_ROWS_AVAIL_PARTIAL",
    "DCGM_FI_DEV_BANKS_REMAP_ROWS_AVAIL_LOW",
    "DCGM_FI_DEV_BANKS_REMAP_ROWS_AVAIL_NONE",
    "switchgear_gpu_pcie_correctable_errors_total",
    "switchgear_gpu_pcie_naks_received_total",
    "switchgear_gpu_pcie_receiver_errors_total",
    "switchgear_gpu_pcie_bad_tlps_total",
    "switchgear_gpu_pcie_naks_sent_total",
    "switchgear_gpu_pcie_bad_dllps_total",
    "switchgear_gpu_pcie_non_fatal_errors_total",
    "switchgear_gpu_pcie_fatal_errors_total",
    "switchgear_gpu_pcie_unsupported_requests_total",
    "switchgear_gpu_pcie_lcrc_errors_total",
    "switchgear_gpu_pcie_lane_errors_total",
    "DCGM_FI_DEV_PSTATE",
    "DCGM_FI_DEV_COMPUTE_MODE",
    "DCGM_FI_DEV_MIG_MODE",
)
_NVLINK5_ZEROS = (
    "DCGM_FI_DEV_NVLINK_COUNT_RX_MALFORMED_PACKET_ERRORS",
    "DCGM_FI_DEV_NVLINK_COUNT_RX_BUFFER_OVERRUN_ERRORS",
    "DCGM_FI_DEV_NVLINK_COUNT_RX_REMOTE_ERRORS",
    "DCGM_FI_DEV_NVLINK_COUNT_RX_GENERAL_ERRORS",
    "DCGM_FI_DEV_NVLINK_COUNT_LOCAL_LINK_INTEGRITY_ERRORS",
    "DCGM_FI_DEV_NVLINK_COUNT_TX_DISCARDS",
    "DCGM_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS",
    "DCGM_FI_DEV_NVLINK_COUNT_EFFECTIVE_ERRORS",
    "DCGM_FI_DEV_NVLINK_COUNT_EFFECTIVE_BER_FLOAT",
    "DCGM_FI_DEV_NVLINK_COUNT_SYMBOL_BER_FLOAT",
)
_ONES = ("DCGM_FI_DEV_ECC_CURRENT", "DCGM_FI_DEV_ECC_PENDING", "DCGM_FI_DEV_PERSISTENCE_MODE")


def fast(gpu: GpuSignals, time_s: float) -> Iterator[Value]:
    """At each tick."""
    profile, now = gpu.profile, gpu.at(time_s)
    link_bytes = profile.links * profile.link_bytes_per_s
    sent, received = (int(now.done[Rate.LINK] * link_bytes * gpu.spread(place)) for place in (15, 16))
    yield "DCGM_FI_DEV_MEMORY_TEMP", (), float(round(now.temperature_c + 7 + 6 * now.mean[Rate.DRAM]))
    yield "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", (), float(int(now.energy_j * 1000))
    yield "DCGM_FI_DEV_POWER_USAGE_INSTANT", (), _watts(gpu, now, 13, 0.03)
    yield "switchgear_gpu_nvlink_transmit_bytes_total", (), float(sent // 1024 * 1024)
    yield "switchgear_gpu_nvlink_receive_bytes_total", (), float(received // 1024 * 1024)
    yield "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", (), float(sent // 1024 + received // 1024)
    yield "switchgear_gpu_recovery_action", (), 0.0
    yield "DCGM_FI_DEV_GPU_UTIL", (), float(round(100 * now.mean[Rate.BUSY]))
    yield "DCGM_FI_DEV_MEM_COPY_UTIL", (), float(round(100 * now.mean[Rate.DRAM]))
    yield "DCGM_FI_DEV_FB_TOTAL", (), float(profile.memory_mib)
    yield "DCGM_FI_DEV_FB_FREE", (), float(profile.memory_mib - profile.reserved_mib - now.used_mib)
    yield "DCGM_FI_DEV_FB_USED", (), float(now.used_mib)
    yield "DCGM_FI_DEV_FB_RESERVED", (), float(profile.reserved_mib)
    yield "DCGM_FI_DEV_GPU_TEMP", (), float(round(now.temperature_c))
    yield "DCGM_FI_DEV_POWER_USAGE", (), _watts(gpu, now, 4, 0.008 if now.busy else 0.003)
    yield "DCGM_FI_DEV_SM_CLOCK", (), float(now.clock_mhz)
    yield "DCGM_FI_DEV_MEM_CLOCK", (), float(profile.memory_clock_mhz)
    yield "DCGM_FI_DEV_CLOCKS_EVENT_REASONS", (), float(_reasons(gpu, now))
    yield "DCGM_FI_DEV_ENC_UTIL", (), 0.0
    yield "DCGM_FI_DEV_DEC_UTIL", (), 0.0
    if profile.gpm:
        yield from _gpm(now, link_bytes, _PCIE_BYTES_PER_S[profile.pcie_generation])
    yield "DCGM_FI_DEV_VGPU_LICENSE_STATUS", (), 0.0


def _gpm(now: Moment, link_bytes: float, pcie_bytes: float) -> Iterator[Value]:
    """Ratios to a millionth and rates to a byte, as the agent takes them from the driver."""
    mean = now.mean
    for place, (metric, share) in enumerate(
        (
            ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", mean[Rate.BUSY]),
            ("DCGM_FI_PROF_SM_ACTIVE", mean[Rate.SM]),
            ("DCGM_FI_PROF_SM_OCCUPANCY", 0.42 * mean[Rate.SM]),
            ("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", mean[Rate.TENSOR]),
            ("DCGM_FI_PROF_DRAM_ACTIVE", mean[Rate.DRAM]),
            ("DCGM_FI_PROF_PIPE_FP64_ACTIVE", 0.0),
            ("DCGM_FI_PROF_PIPE_FP32_ACTIVE", 0.13 * mean[Rate.SM]),
            ("DCGM_FI_PROF_PIPE_FP16_ACTIVE", 0.04 * mean[Rate.SM]),
        ),
        20,
    ):
        yield metric, (), min(1.0, round(share * now.jitter(place, 0.01), 6))
    for place, (metric, rate) in enumerate(
        (
            ("DCGM_FI_PROF_PCIE_TX_BYTES", mean[Rate.PCIE_OUT] * pcie_bytes),
            ("DCGM_FI_PROF_PCIE_RX_BYTES", mean[Rate.PCIE_IN] * pcie_bytes),
            ("DCGM_FI_PROF_NVLINK_TX_BYTES", mean[Rate.LINK] * link_bytes),
            ("DCGM_FI_PROF_NVLINK_RX_BYTES", mean[Rate.LINK] * link_bytes),
        ),
        30,
    ):
        yield metric, (), float(int(rate * now.jitter(place, 0.01)))


def slow(gpu: GpuSignals, time_s: float) -> Iterator[Value]:
    """Each 15 s."""
    profile, history = gpu.profile, gpu.history
    throttled_ns = float(int(history.lasted_s(FaultKind.THERMAL_THROTTLE, time_s) * 1e9))
    now = gpu.at(time_s)
    yield from ((metric, (), 0.0) for metric in _ZEROS)
    yield from ((metric, (), 1.0) for metric in _ONES)
    for metric in ("DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", "DCGM_FI_DEV_ECC_SBE_AGG_TOTAL", "DCGM_FI_DEV_ECC_SBE_VOL_DEV"):
        yield metric, (), float(history.count(FaultKind.ECC_STORM, time_s))
    yield "DCGM_FI_DEV_POWER_VIOLATION", (), float(int(now.done[Rate.CAPPED] * 1e9))
    yield "DCGM_FI_DEV_THERMAL_VIOLATION", (), throttled_ns
    yield "switchgear_gpu_hw_thermal_slowdown_nanoseconds_total", (), throttled_ns
    for metric in (
        "DCGM_FI_DEV_POWER_MGMT_LIMIT",
        "DCGM_FI_DEV_POWER_MGMT_LIMIT_MAX",
        "DCGM_FI_DEV_POWER_MGMT_LIMIT_DEF",
        "DCGM_FI_DEV_ENFORCED_POWER_LIMIT",
    ):
        yield metric, (), float(profile.power_max_w)
    yield "DCGM_FI_DEV_POWER_MGMT_LIMIT_MIN", (), float(round(0.3 * profile.power_max_w))
    yield "DCGM_FI_DEV_SLOWDOWN_TEMP", (), float(profile.slowdown_c)
    yield "DCGM_FI_DEV_SHUTDOWN_TEMP", (), float(profile.slowdown_c + 5)
    yield "DCGM_FI_DEV_VIDEO_CLOCK", (), float(now.clock_mhz * 9 // 10)
    yield "DCGM_FI_DEV_MAX_SM_CLOCK", (), float(profile.clock_max_mhz)
    yield "DCGM_FI_DEV_MAX_MEM_CLOCK", (), float(profile.memory_clock_mhz)
    yield "DCGM_FI_DEV_BAR1_TOTAL", (), 131_072.0
    yield "DCGM_FI_DEV_BAR1_USED", (), 3.0
    for metric in ("DCGM_FI_DEV_PCIE_LINK_GEN", "DCGM_FI_DEV_PCIE_MAX_LINK_GEN"):
        yield metric, (), float(profile.pcie_generation)
    for metric in ("DCGM_FI_DEV_PCIE_LINK_WIDTH", "DCGM_FI_DEV_PCIE_MAX_LINK_WIDTH"):
        yield metric, (), 16.0
    yield "DCGM_FI_DEV_BANKS_REMAP_ROWS_AVAIL_MAX", (), 2_560.0 if profile.nvlink >= 4 else 640.0
    yield "switchgear_gpu_nvlinks", (), float(profile.links)
    yield "switchgear_gpu_nvlinks_active", (), float(profile.links)
    yield "DCGM_FI_DEV_MEM_MAX_OP_TEMP", (), 95.0
    yield "DCGM_FI_DEV_GPU_MAX_OP_TEMP", (), float(profile.slowdown_c - 2)
    yield "switchgear_gpu_pcie_recoveries_total", (), 0.0
    if profile.nvlink >= 4:
        yield from _from_hopper_on(profile.slowdown_c - 2 - now.temperature_c)
    yield from _links(gpu, time_s)


def _from_hopper_on(margin_c: float) -> Iterator[Value]:
    """Temperatures as distances, and the fabric that a manager sets up."""
    yield "DCGM_FI_DEV_GPU_TEMP_LIMIT", (), float(round(margin_c))
    yield "switchgear_gpu_shutdown_tlimit_celsius", (), -8.0
    yield "switchgear_gpu_slowdown_tlimit_celsius", (), -2.0
    yield "switchgear_gpu_memory_max_tlimit_celsius", (), 0.0
    yield "switchgear_gpu_max_tlimit_celsius", (), 0.0
    yield "switchgear_gpu_fabric_state", (), 3.0
    yield "switchgear_gpu_fabric_status", (), 0.0
    yield "switchgear_gpu_fabric_health_mask", (), 0.0
    yield "DCGM_FI_DEV_FABRIC_CLIQUE_ID", (), 0.0


def _links(gpu: GpuSignals, time_s: float) -> Iterator[Value]:
    history = gpu.history
    errors = history.count(FaultKind.NVLINK_ERRORS, time_s)
    moved = int(gpu.at(time_s).done[Rate.LINK] * gpu.profile.link_bytes_per_s * gpu.spread(15))
    counts: dict[str, float] = {"DCGM_FI_DEV_NVLINK_BANDWIDTH_L0": 2 * moved // 1024}
    if gpu.profile.nvlink < 5:
        counts |= {
            "DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL": errors,
            "DCGM_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL": 0,
            "DCGM_FI_DEV_NVLINK_ECC_DATA_ERROR_COUNT_TOTAL": 0,
            "DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL": errors,
            "DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL": errors // 100,
        }
    else:
        moved *= gpu.profile.links
        counts |= dict.fromkeys(_NVLINK5_ZEROS, 0) | {
            "DCGM_FI_DEV_NVLINK_COUNT_TX_BYTES": moved,
            "DCGM_FI_DEV_NVLINK_COUNT_RX_BYTES": moved,
            "DCGM_FI_DEV_NVLINK_COUNT_TX_PACKETS": moved // 256,
            "DCGM_FI_DEV_NVLINK_COUNT_RX_PACKETS": moved // 256,
            "DCGM_FI_DEV_NVLINK_COUNT_RX_ERRORS": errors,
            "DCGM_FI_DEV_NVLINK_COUNT_RX_SYMBOL_ERRORS": errors,
            "DCGM_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_EVENTS": errors // 100,
            "DCGM_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_SUCCESSFUL_EVENTS": errors // 100,
        }
    for metric, count in counts.items():
        yield metric, (), float(count)
    for link in sorted({span.fault.link for span in history.of(FaultKind.NVLINK_ERRORS)}):
        on_link = history.count(FaultKind.NVLINK_ERRORS, time_s, link)
        yield "switchgear_gpu_nvlink_errors_total", (("nvlink", str(link)),), float(on_link)


def _watts(gpu: GpuSignals, now: Moment, place: int, jitter: float) -> float:
    """To the milliwatt."""
    return round(min(now.power_w * now.jitter(place, jitter), gpu.profile.power_max_w * 1.01), 3)


def _reasons(gpu: GpuSignals, now: Moment) -> int:
    """Why the clock is what it is. A clock that only is stuck gives no reason: that is what makes it hard to find."""
    if gpu.history.holds(FaultKind.THERMAL_THROTTLE, now.time_s):
        return REASON_HW_SLOWDOWN | REASON_HW_THERMAL
    if not now.busy:
        return REASON_IDLE
    return REASON_POWER if now.mean[Rate.CAPPED] > 0.1 else 0
