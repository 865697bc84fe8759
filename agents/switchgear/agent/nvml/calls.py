"""What needs a call of its own: each reading by the newest function that driver and GPU have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from switchgear.agent.nvml import library
from switchgear.agent.nvml.library import Nvml, code_of

MIB = 2**20

#: One value for each metric of the call, None where the driver says that there is none.
Values = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Way:
    """function: of NVML, as documentation calls it. read: its values, of a handle; raises NVMLError."""

    function: str
    read: Callable[[Any, Any], Values]


@dataclass(frozen=True, slots=True)
class Call:
    """metrics: in `METRICS`. ways: newest first; an older one is taken when the newer is not supported."""

    metrics: tuple[str, ...]
    ways: tuple[Way, ...]


def _call(metric: str, function: str, *arguments: int, per: float = 1.0) -> Call:
    def read(py: Any, handle: Any) -> Values:
        return (getattr(py, function)(handle, *arguments) / per,)

    return Call((metric,), (Way(function, read),))


def _utilization(py: Any, handle: Any) -> Values:
    rates = py.nvmlDeviceGetUtilizationRates(handle)
    return rates.gpu, rates.memory


def _memory_v2(py: Any, handle: Any) -> Values:
    memory = py.nvmlDeviceGetMemoryInfo(handle, py.nvmlMemory_v2)
    return memory.total // MIB, memory.free // MIB, memory.used // MIB, memory.reserved // MIB


def _memory(py: Any, handle: Any) -> Values:
    memory = py.nvmlDeviceGetMemoryInfo(handle)
    return memory.total // MIB, memory.free // MIB, memory.used // MIB, None


def _bar1(py: Any, handle: Any) -> Values:
    memory = py.nvmlDeviceGetBAR1MemoryInfo(handle)
    return memory.bar1Total // MIB, memory.bar1Used // MIB


def _remapped_rows(py: Any, handle: Any) -> Values:
    return tuple(py.nvmlDeviceGetRemappedRows(handle))


def _remap_histogram(py: Any, handle: Any) -> Values:
    banks = py.nvmlDeviceGetRowRemapperHistogram(handle)
    return banks.max, banks.high, banks.partial, banks.low, banks.none


def _sram(py: Any, handle: Any) -> Values:
    status = py.c_nvmlEccSramErrorStatus_v1_t()
    py.nvmlDeviceGetSramEccErrorStatus(handle, py.byref(status))
    return (
        status.volatileCor,
        status.volatileUncParity + status.volatileUncSecDed,
        status.aggregateCor,
        status.aggregateUncParity + status.aggregateUncSecDed,
        status.bThresholdExceeded,
    )


def _fabric(version: str) -> Callable[[Any, Any], Values]:
    def read(py: Any, handle: Any) -> Values:
        info = getattr(py, f"c_nvmlGpuFabricInfo_{version}_t")()
        py.nvmlDeviceGetGpuFabricInfoV(handle, py.byref(info))
        if info.state == py.NVML_GPU_FABRIC_STATE_NOT_SUPPORTED:
            raise py.NVMLError(library.NOT_SUPPORTED)
        completed = info.state == py.NVML_GPU_FABRIC_STATE_COMPLETED
        return (
            info.state,
            info.status if completed else None,
            info.healthMask if completed else None,
            info.cliqueId if completed else None,
        )

    return read


def _first_of(function: str) -> Callable[[Any, Any], Values]:
    def read(py: Any, handle: Any) -> Values:
        return (getattr(py, function)(handle)[0],)

    return read


def _temperature_v(py: Any, handle: Any) -> Values:
    return (py.nvmlDeviceGetTemperatureV(handle, py.NVML_TEMPERATURE_GPU),)


def _temperature(py: Any, handle: Any) -> Values:
    return (py.nvmlDeviceGetTemperature(handle, py.NVML_TEMPERATURE_GPU),)


def _reasons(function: str) -> Way:
    def read(py: Any, handle: Any) -> Values:
        return (getattr(py, function)(handle),)

    return Way(function, read)


_MEMORY = ("DCGM_FI_DEV_FB_TOTAL", "DCGM_FI_DEV_FB_FREE", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_RESERVED")
# nvmlClockType_t, nvmlTemperatureThresholds_t, nvmlMemoryErrorType_t, nvmlEccCounterType_t of nvml.h
_SM, _MEM, _VIDEO = 1, 2, 3
_SHUTDOWN, _SLOWDOWN, _MEM_MAX, _GPU_MAX = range(4)
_CORRECTED, _UNCORRECTED, _VOLATILE, _AGGREGATE = 0, 1, 0, 1

MEMORY = Call(_MEMORY, (Way("nvmlDeviceGetMemoryInfo_v2", _memory_v2), Way("nvmlDeviceGetMemoryInfo", _memory)))
#: Every tick.
FAST = (
    Call(("DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_MEM_COPY_UTIL"), (Way("nvmlDeviceGetUtilizationRates", _utilization),)),
    MEMORY,
    Call(
        ("DCGM_FI_DEV_GPU_TEMP",),
        (Way("nvmlDeviceGetTemperatureV", _temperature_v), Way("nvmlDeviceGetTemperature", _temperature)),
    ),
    _call("DCGM_FI_DEV_POWER_USAGE", "nvmlDeviceGetPowerUsage", per=1000),
    _call("DCGM_FI_DEV_SM_CLOCK", "nvmlDeviceGetClockInfo", _SM),
    _call("DCGM_FI_DEV_MEM_CLOCK", "nvmlDeviceGetClockInfo", _MEM),
    Call(
        ("DCGM_FI_DEV_CLOCKS_EVENT_REASONS",),
        (_reasons("nvmlDeviceGetCurrentClocksEventReasons"), _reasons("nvmlDeviceGetCurrentClocksThrottleReasons")),
    ),
    Call(
        ("DCGM_FI_DEV_ENC_UTIL",),
        (Way("nvmlDeviceGetEncoderUtilization", _first_of("nvmlDeviceGetEncoderUtilization")),),
    ),
    Call(
        ("DCGM_FI_DEV_DEC_UTIL",),
        (Way("nvmlDeviceGetDecoderUtilization", _first_of("nvmlDeviceGetDecoderUtilization")),),
    ),
)
#: What changes seldom.
SLOW = (
    _call("DCGM_FI_DEV_VIDEO_CLOCK", "nvmlDeviceGetClockInfo", _VIDEO),
    _call("DCGM_FI_DEV_MAX_SM_CLOCK", "nvmlDeviceGetMaxClockInfo", _SM),
    _call("DCGM_FI_DEV_MAX_MEM_CLOCK", "nvmlDeviceGetMaxClockInfo", _MEM),
    _call("DCGM_FI_DEV_PSTATE", "nvmlDeviceGetPerformanceState"),
    _call("DCGM_FI_DEV_FAN_SPEED", "nvmlDeviceGetFanSpeed"),
    _call("DCGM_FI_DEV_GPU_TEMP_LIMIT", "nvmlDeviceGetMarginTemperature"),
    _call("DCGM_FI_DEV_SHUTDOWN_TEMP", "nvmlDeviceGetTemperatureThreshold", _SHUTDOWN),
    _call("DCGM_FI_DEV_SLOWDOWN_TEMP", "nvmlDeviceGetTemperatureThreshold", _SLOWDOWN),
    _call("DCGM_FI_DEV_MEM_MAX_OP_TEMP", "nvmlDeviceGetTemperatureThreshold", _MEM_MAX),
    _call("DCGM_FI_DEV_GPU_MAX_OP_TEMP", "nvmlDeviceGetTemperatureThreshold", _GPU_MAX),
    Call(("DCGM_FI_DEV_BAR1_TOTAL", "DCGM_FI_DEV_BAR1_USED"), (Way("nvmlDeviceGetBAR1MemoryInfo", _bar1),)),
    _call("DCGM_FI_DEV_PERSISTENCE_MODE", "nvmlDeviceGetPersistenceMode"),
    _call("DCGM_FI_DEV_COMPUTE_MODE", "nvmlDeviceGetComputeMode"),
    Call(("DCGM_FI_DEV_MIG_MODE",), (Way("nvmlDeviceGetMigMode", _first_of("nvmlDeviceGetMigMode")),)),
    _call("DCGM_FI_DEV_PCIE_LINK_GEN", "nvmlDeviceGetCurrPcieLinkGeneration"),
    _call("DCGM_FI_DEV_PCIE_LINK_WIDTH", "nvmlDeviceGetCurrPcieLinkWidth"),
    _call("DCGM_FI_DEV_PCIE_MAX_LINK_GEN", "nvmlDeviceGetMaxPcieLinkGeneration"),
    _call("DCGM_FI_DEV_PCIE_MAX_LINK_WIDTH", "nvmlDeviceGetMaxPcieLinkWidth"),
    Call(
        tuple(f"DCGM_FI_DEV_BANKS_REMAP_ROWS_AVAIL_{how}" for how in ("MAX", "HIGH", "PARTIAL", "LOW", "NONE")),
        (Way("nvmlDeviceGetRowRemapperHistogram", _remap_histogram),),
    ),
    Call(
        (
            "DCGM_FI_DEV_ECC_SBE_VOL_SRM",
            "DCGM_FI_DEV_ECC_DBE_VOL_SRM",
            "DCGM_FI_DEV_ECC_SBE_AGG_SRM",
            "DCGM_FI_DEV_ECC_DBE_AGG_SRM",
            "DCGM_FI_DEV_THRESHOLD_SRM",
        ),
        (Way("nvmlDeviceGetSramEccErrorStatus", _sram),),
    ),
    Call(
        (
            "switchgear_gpu_fabric_state",
            "switchgear_gpu_fabric_status",
            "switchgear_gpu_fabric_health_mask",
            "DCGM_FI_DEV_FABRIC_CLIQUE_ID",
        ),
        (
            Way("nvmlDeviceGetGpuFabricInfoV", _fabric("v3")),
            Way("nvmlDeviceGetGpuFabricInfoV", _fabric("v2")),
        ),
    ),
)
#: For a metric that the batch of fields does not give, of either pace.
INSTEAD_OF_FIELDS = (
    _call("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "nvmlDeviceGetTotalEnergyConsumption"),
    _call("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", "nvmlDeviceGetPcieReplayCounter"),
    Call(
        (
            "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS",
            "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS",
            "DCGM_FI_DEV_ROW_REMAP_PENDING",
            "DCGM_FI_DEV_ROW_REMAP_FAILURE",
        ),
        (Way("nvmlDeviceGetRemappedRows", _remapped_rows),),
    ),
    _call("DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", "nvmlDeviceGetTotalEccErrors", _CORRECTED, _VOLATILE),
    _call("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", "nvmlDeviceGetTotalEccErrors", _UNCORRECTED, _VOLATILE),
    _call("DCGM_FI_DEV_ECC_SBE_AGG_TOTAL", "nvmlDeviceGetTotalEccErrors", _CORRECTED, _AGGREGATE),
    _call("DCGM_FI_DEV_ECC_DBE_AGG_TOTAL", "nvmlDeviceGetTotalEccErrors", _UNCORRECTED, _AGGREGATE),
    _call("DCGM_FI_DEV_RETIRED_PENDING", "nvmlDeviceGetRetiredPagesPendingStatus"),
    _call("DCGM_FI_DEV_ENFORCED_POWER_LIMIT", "nvmlDeviceGetEnforcedPowerLimit", per=1000),
    _call("DCGM_FI_DEV_POWER_MGMT_LIMIT", "nvmlDeviceGetPowerManagementLimit", per=1000),
)


class Reader:
    """One `Call` on one GPU, by the way that its driver supports; found out once."""

    def __init__(self, nvml: Nvml, handle: Any, call: Call) -> None:
        self._nvml = nvml
        self._handle = handle
        self._ways = list(call.ways)
        self._proven = False
        self._metrics = call.metrics

    def read(self) -> list[tuple[str, tuple[()], float | str]]:
        """The values; nothing when no way is supported.

        Raises NVMLError for what concerns the whole GPU or driver; INVALID_ARGUMENT where the call was good before, which means that
        the handle is void.
        """
        while self._ways:
            try:
                values = self._ways[0].read(self._nvml.py, self._handle)
            except self._nvml.Error as error:
                code = code_of(error)
                if code in library.UNSUPPORTED and not self._proven:
                    del self._ways[0]
                    continue
                if code in library.LOST or code in library.BROKEN or code == library.INVALID_ARGUMENT:
                    raise
                return [(metric, (), str(error)) for metric in self._metrics]
            self._proven = True
            return [
                (metric, (), value) for metric, value in zip(self._metrics, values, strict=True) if value is not None
            ]
        return []
