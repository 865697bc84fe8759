"""Field values: what one batched call reads of a GPU. Ids as in nvml.h (`NVML_FI_*`); pure data."""

from __future__ import annotations

from dataclasses import dataclass

#: As scope of the NVLink throughput fields: all links together.
ALL_LINKS = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Field:
    """metric: in `METRICS`. id: `NVML_FI_*`. per: the driver's units in one of ours. scope: NVML's `scopeId`.

    wide: a counter that means nothing where the driver gives 32 bits of it, since it wraps within a tick.
    """

    metric: str
    id: int
    per: float = 1.0
    scope: int = 0
    wide: bool = False


_W = 1000  # milliwatts

#: Every tick.
FAST = (
    Field("DCGM_FI_DEV_MEMORY_TEMP", 82),
    Field("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", 83),
    Field("DCGM_FI_DEV_POWER_USAGE_INSTANT", 186, _W),
    Field("switchgear_gpu_nvlink_transmit_bytes_total", 138, 1 / 1024, ALL_LINKS),
    Field("switchgear_gpu_nvlink_receive_bytes_total", 139, 1 / 1024, ALL_LINKS),
    Field("switchgear_gpu_pcie_transmit_bytes_total", 197, wide=True),
    Field("switchgear_gpu_pcie_receive_bytes_total", 198, wide=True),
    Field("switchgear_gpu_recovery_action", 230),
)

#: What changes seldom.
SLOW = (
    Field("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", 94),
    Field("DCGM_FI_DEV_ECC_CURRENT", 1),
    Field("DCGM_FI_DEV_ECC_PENDING", 2),
    Field("DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", 3),
    Field("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", 4),
    Field("DCGM_FI_DEV_ECC_SBE_AGG_TOTAL", 5),
    Field("DCGM_FI_DEV_ECC_DBE_AGG_TOTAL", 6),
    Field("DCGM_FI_DEV_ECC_SBE_VOL_L2", 9),
    Field("DCGM_FI_DEV_ECC_DBE_VOL_L2", 10),
    Field("DCGM_FI_DEV_ECC_SBE_VOL_DEV", 11),
    Field("DCGM_FI_DEV_ECC_DBE_VOL_DEV", 12),
    Field("DCGM_FI_DEV_RETIRED_SBE", 29),
    Field("DCGM_FI_DEV_RETIRED_DBE", 30),
    Field("DCGM_FI_DEV_RETIRED_PENDING", 31),
    Field("DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL", 38),
    Field("DCGM_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL", 45),
    Field("DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL", 52),
    Field("DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL", 59),
    Field("DCGM_FI_DEV_NVLINK_ECC_DATA_ERROR_COUNT_TOTAL", 160),
    Field("DCGM_FI_DEV_POWER_VIOLATION", 74),
    Field("DCGM_FI_DEV_THERMAL_VIOLATION", 75),
    Field("DCGM_FI_DEV_SYNC_BOOST_VIOLATION", 76),
    Field("DCGM_FI_DEV_BOARD_LIMIT_VIOLATION", 77),
    Field("DCGM_FI_DEV_LOW_UTIL_VIOLATION", 78),
    Field("DCGM_FI_DEV_RELIABILITY_VIOLATION", 79),
    Field("DCGM_FI_DEV_TOTAL_APP_CLOCKS_VIOLATION", 80),
    Field("DCGM_FI_DEV_TOTAL_BASE_CLOCKS_VIOLATION", 81),
    Field("switchgear_gpu_sw_thermal_slowdown_nanoseconds_total", 269),
    Field("switchgear_gpu_hw_thermal_slowdown_nanoseconds_total", 270),
    Field("switchgear_gpu_hw_power_brake_nanoseconds_total", 271),
    Field("DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS", 142),
    Field("DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", 143),
    Field("DCGM_FI_DEV_ROW_REMAP_PENDING", 144),
    Field("DCGM_FI_DEV_ROW_REMAP_FAILURE", 145),
    Field("switchgear_gpu_bank_remap_pending", 307),
    Field("switchgear_gpu_pcie_recoveries_total", 169),
    Field("switchgear_gpu_pcie_correctable_errors_total", 173),
    Field("switchgear_gpu_pcie_naks_received_total", 174),
    Field("switchgear_gpu_pcie_receiver_errors_total", 175),
    Field("switchgear_gpu_pcie_bad_tlps_total", 176),
    Field("switchgear_gpu_pcie_naks_sent_total", 177),
    Field("switchgear_gpu_pcie_bad_dllps_total", 178),
    Field("switchgear_gpu_pcie_non_fatal_errors_total", 179),
    Field("switchgear_gpu_pcie_fatal_errors_total", 180),
    Field("switchgear_gpu_pcie_unsupported_requests_total", 181),
    Field("switchgear_gpu_pcie_lcrc_errors_total", 182),
    Field("switchgear_gpu_pcie_lane_errors_total", 183),
    Field("DCGM_FI_DEV_POWER_MGMT_LIMIT_MIN", 187, _W),
    Field("DCGM_FI_DEV_POWER_MGMT_LIMIT_MAX", 188, _W),
    Field("DCGM_FI_DEV_POWER_MGMT_LIMIT_DEF", 189, _W),
    Field("DCGM_FI_DEV_ENFORCED_POWER_LIMIT", 190, _W),
    Field("DCGM_FI_DEV_POWER_MGMT_LIMIT", 192, _W),
    Field("switchgear_gpu_shutdown_tlimit_celsius", 193),
    Field("switchgear_gpu_slowdown_tlimit_celsius", 194),
    Field("switchgear_gpu_memory_max_tlimit_celsius", 195),
    Field("switchgear_gpu_max_tlimit_celsius", 196),
    Field("switchgear_gpu_nvlinks", 91),
    Field("switchgear_gpu_c2c_errors_total", 231),
    Field("switchgear_gpu_c2c_replays_total", 232),
)

NVLINK_STATE = 165
#: Of each link, with the link as scope; a GPU of before NVLink5 has the first three, a newer one the others. The metric is the sum.
NVLINK_ERRORS_DL = (161, 162, 163)
NVLINK5 = (
    Field("DCGM_FI_DEV_NVLINK_COUNT_TX_PACKETS", 201),
    Field("DCGM_FI_DEV_NVLINK_COUNT_TX_BYTES", 202),
    Field("DCGM_FI_DEV_NVLINK_COUNT_RX_PACKETS", 203),
    Field("DCGM_FI_DEV_NVLINK_COUNT_RX_BYTES", 204),
    Field("DCGM_FI_DEV_NVLINK_COUNT_RX_MALFORMED_PACKET_ERRORS", 206),
    Field("DCGM_FI_DEV_NVLINK_COUNT_RX_BUFFER_OVERRUN_ERRORS", 207),
    Field("DCGM_FI_DEV_NVLINK_COUNT_RX_ERRORS", 208),
    Field("DCGM_FI_DEV_NVLINK_COUNT_RX_REMOTE_ERRORS", 209),
    Field("DCGM_FI_DEV_NVLINK_COUNT_RX_GENERAL_ERRORS", 210),
    Field("DCGM_FI_DEV_NVLINK_COUNT_LOCAL_LINK_INTEGRITY_ERRORS", 211),
    Field("DCGM_FI_DEV_NVLINK_COUNT_TX_DISCARDS", 212),
    Field("DCGM_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_SUCCESSFUL_EVENTS", 213),
    Field("DCGM_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS", 214),
    Field("DCGM_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_EVENTS", 215),
    Field("DCGM_FI_DEV_NVLINK_COUNT_EFFECTIVE_ERRORS", 219),
    Field("DCGM_FI_DEV_NVLINK_COUNT_RX_SYMBOL_ERRORS", 221),
)
#: Which of them mean that a packet was lost or sent again; effective and symbol errors are corrected all the time.
NVLINK5_ERRORS = frozenset(range(206, 213)) | {214}
NVLINK5_BER = (
    Field("DCGM_FI_DEV_NVLINK_COUNT_EFFECTIVE_BER_FLOAT", 220),
    Field("DCGM_FI_DEV_NVLINK_COUNT_SYMBOL_BER_FLOAT", 222),
)


def bit_error_rate(raw: float) -> float:
    """The rate that NVML packs into an integer: bits 0-7 the negative exponent of ten, bits 8-11 the mantissa (nvml.h)."""
    value = int(raw)
    return float((value >> 8 & 0xF) * 10.0 ** -(value & 0xFF))
