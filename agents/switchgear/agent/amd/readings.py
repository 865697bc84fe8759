"""From what AMD's firmware and driver publish to our metrics.

dcgm-exporter's names where the meaning is the same, so that one dashboard and one rule serve both vendors; `switchgear_gpu_` names for
what only AMD has. Units of the firmware's table: kernel documentation, `gpu_metrics_v1_*` in
drivers/gpu/drm/amd/include/kgd_pp_interface.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from switchgear.agent.sources.gpu import Value

#: The accumulator counts in 2^-16 J.
_MILLIJOULES = 1000 / 2**16
_KIBIBYTE = 1024.0
#: GT/s of a lane, to the PCIe generation.
_PCIE_GENERATIONS = {2: 1, 5: 2, 8: 3, 16: 4, 32: 5, 64: 6}


@dataclass(frozen=True, slots=True)
class TableEntry:
    """fields: of the firmware's table; the first that this GPU fills is taken. An array counts as one number through `fold`."""

    metric: str
    fields: tuple[str, ...]
    scale: float = 1.0
    labels: tuple[tuple[str, str], ...] = ()
    fold: Callable[[list[int]], float] = sum
    highest: int | None = None


def _mean(values: list[int]) -> float:
    return round(sum(values) / len(values))


def _residency(reason: str, field: str) -> TableEntry:
    return TableEntry("switchgear_gpu_throttled_ticks_total", (field,), labels=(("reason", reason),))


#: What the table gives at each tick. The clock is the mean of the dies, the temperature that of the hottest spot.
FAST = (
    TableEntry("DCGM_FI_DEV_SM_CLOCK", ("current_gfxclks", "current_gfxclk"), fold=_mean),
    TableEntry("DCGM_FI_DEV_MEM_CLOCK", ("current_uclk",)),
    TableEntry("DCGM_FI_DEV_GPU_TEMP", ("temperature_hotspot", "temperature_edge")),
    TableEntry("DCGM_FI_DEV_MEMORY_TEMP", ("temperature_mem",)),
    TableEntry("DCGM_FI_DEV_POWER_USAGE", ("current_socket_power", "average_socket_power")),
    TableEntry("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", ("energy_accumulator",), scale=_MILLIJOULES),
    TableEntry("DCGM_FI_DEV_GPU_UTIL", ("average_gfx_activity",), highest=100),
    TableEntry("DCGM_FI_DEV_MEM_COPY_UTIL", ("average_umc_activity",), highest=100),
    TableEntry("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", ("pcie_replay_count_acc",)),
    TableEntry("switchgear_gpu_pcie_recoveries_total", ("pcie_l0_to_recov_count_acc",)),
    TableEntry("switchgear_gpu_pcie_naks_sent_total", ("pcie_nak_sent_count_acc",)),
    TableEntry("switchgear_gpu_pcie_naks_received_total", ("pcie_nak_rcvd_count_acc",)),
    TableEntry("switchgear_gpu_xgmi_read_bytes_total", ("xgmi_read_data_acc",), scale=_KIBIBYTE),
    TableEntry("switchgear_gpu_xgmi_write_bytes_total", ("xgmi_write_data_acc",), scale=_KIBIBYTE),
    TableEntry("switchgear_gpu_throttle_ticks_total", ("accumulation_counter",)),
    _residency("processor_hot", "prochot_residency_acc"),
    _residency("power", "ppt_residency_acc"),
    _residency("socket_thermal", "socket_thm_residency_acc"),
    _residency("vr_thermal", "vr_thm_residency_acc"),
    _residency("hbm_thermal", "hbm_thm_residency_acc"),
)


class TableReader:
    """Reads the entries out of a filled table; which of its fields exist in this release is found out once."""

    def __init__(self, table: Any, entries: Iterable[TableEntry] = FAST) -> None:
        types = dict(table._fields_)
        self._entries = [
            (entry, [(name, _empty(types[name]), _is_array(types[name])) for name in entry.fields if name in types])
            for entry in entries
        ]

    def values(self, table: Any) -> Iterator[Value]:
        """A field is left out when it has all bits set: so the firmware says that the GPU does not have it."""
        for entry, fields in self._entries:
            for name, empty, is_array in fields:
                raw = getattr(table, name)
                if is_array:
                    filled = [item for item in raw if item != empty]
                    # An array of zeros is that of a GPU which fills another field.
                    number = entry.fold(filled) if any(filled) or (filled and len(fields) == 1) else None
                else:
                    number = raw if raw != empty else None
                if number is not None and (entry.highest is None or number <= entry.highest):
                    yield entry.metric, entry.labels, float(int(number * entry.scale))
                    break


def _is_array(kind: Any) -> bool:
    return hasattr(kind, "_length_")


def _empty(kind: Any) -> int:
    element = kind._type_ if _is_array(kind) else kind
    return int(2 ** (8 * ctypes.sizeof(element)) - 1)


#: Of an answer of `amdsmi_get_…`, each metric with its value or what stands there in its place ("N/A").
Answer = Callable[[Any], Iterator[tuple[str, float | str]]]


def _memory(answer: Mapping[str, int]) -> Iterator[tuple[str, float | str]]:
    total, used = answer["vram_total"], answer["vram_used"]  # MiB
    yield "DCGM_FI_DEV_FB_TOTAL", total
    yield "DCGM_FI_DEV_FB_USED", used
    yield "DCGM_FI_DEV_FB_FREE", total - used


ERROR_TOTALS = frozenset(
    {
        "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL",
        "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL",
        "switchgear_gpu_ecc_deferred_errors_total",
    }
)


def _ecc(answer: Mapping[str, int]) -> Iterator[tuple[str, float | str]]:
    yield "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", answer["correctable_count"]
    yield "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", answer["uncorrectable_count"]
    yield "switchgear_gpu_ecc_deferred_errors_total", answer.get("deferred_count", "N/A")


def _power_cap(answer: Mapping[str, int]) -> Iterator[tuple[str, float | str]]:
    yield "DCGM_FI_DEV_POWER_MGMT_LIMIT", answer["power_cap"] / 1e6
    yield "DCGM_FI_DEV_POWER_MGMT_LIMIT_MAX", answer["max_power_cap"] / 1e6


def _bad_pages(answer: Iterable[Mapping[str, int]]) -> Iterator[tuple[str, float | str]]:
    states = [page["status"] for page in answer]
    yield "DCGM_FI_DEV_RETIRED_DBE", states.count(0)  # AMDSMI_MEM_PAGE_STATUS_RESERVED
    yield "DCGM_FI_DEV_RETIRED_PENDING", int(1 in states)


def _xgmi(answer: Mapping[str, Any]) -> Iterator[tuple[str, float | str]]:
    states = [state for state in answer["status"] if state != "X"]  # disabled: none is there
    yield "switchgear_gpu_xgmi_links", len(states)
    yield "switchgear_gpu_xgmi_links_active", states.count("U")


def _pcie(answer: Mapping[str, Any]) -> Iterator[tuple[str, float | str]]:
    now, most = answer["pcie_metric"], answer["pcie_static"]
    yield "DCGM_FI_DEV_PCIE_LINK_WIDTH", now["pcie_width"]
    yield "DCGM_FI_DEV_PCIE_MAX_LINK_WIDTH", most["max_pcie_width"]
    yield "DCGM_FI_DEV_PCIE_LINK_GEN", _pcie_generation(now["pcie_speed"])
    yield "DCGM_FI_DEV_PCIE_MAX_LINK_GEN", _pcie_generation(most["max_pcie_speed"])


def _pcie_generation(speed_mt_per_s: int | str) -> float | str:
    return "N/A" if isinstance(speed_mt_per_s, str) else _PCIE_GENERATIONS.get(speed_mt_per_s // 1000, "N/A")


MEMORY: Mapping[str, Answer] = {"gpu_vram_usage": _memory}
SLOW: Mapping[str, Answer] = {
    "gpu_total_ecc_count": _ecc,
    "power_cap_info": _power_cap,
    "gpu_bad_page_info": _bad_pages,
    "gpu_xgmi_link_status": _xgmi,
    "pcie_info": _pcie,
}
