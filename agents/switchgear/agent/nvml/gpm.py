"""GPM, the counters of Hopper and newer: what a GPU's parts did between two samples of it."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from switchgear.agent.nvml import library
from switchgear.agent.nvml.library import Nvml, code_of

# Of an entry: return code and value (nvml.h, nvmlGpmMetric_t). A tenth of the time that its fields take one by one.
_ENTRY = "4xId24x"
_RATIO = 100.0  # GPM gives percent
_MIB = 2.0**-20  # GPM gives mebibytes a second


@dataclass(frozen=True, slots=True)
class GpmMetric:
    """id: `NVML_GPM_METRIC_*`. per: the driver's units in one of ours."""

    metric: str
    id: int
    per: float

    @property
    def digits(self) -> int:
        """A millionth of a ratio, or a whole byte: behind that is noise, which would cost each sample eight bytes on the wire."""
        return 6 if self.per == _RATIO else 0


METRICS = (
    GpmMetric("DCGM_FI_PROF_GR_ENGINE_ACTIVE", 1, _RATIO),
    GpmMetric("DCGM_FI_PROF_SM_ACTIVE", 2, _RATIO),
    GpmMetric("DCGM_FI_PROF_SM_OCCUPANCY", 3, _RATIO),
    GpmMetric("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", 5, _RATIO),
    GpmMetric("DCGM_FI_PROF_DRAM_ACTIVE", 10, _RATIO),
    GpmMetric("DCGM_FI_PROF_PIPE_FP64_ACTIVE", 11, _RATIO),
    GpmMetric("DCGM_FI_PROF_PIPE_FP32_ACTIVE", 12, _RATIO),
    GpmMetric("DCGM_FI_PROF_PIPE_FP16_ACTIVE", 13, _RATIO),
    GpmMetric("DCGM_FI_PROF_PCIE_TX_BYTES", 20, _MIB),
    GpmMetric("DCGM_FI_PROF_PCIE_RX_BYTES", 21, _MIB),
    GpmMetric("DCGM_FI_PROF_NVLINK_TX_BYTES", 61, _MIB),
    GpmMetric("DCGM_FI_PROF_NVLINK_RX_BYTES", 60, _MIB),
)


class Gpm:
    """Two samples of one GPU, or of one MIG instance of it; each reading covers the time since the one before.

    gpu_instance: id of the MIG GPU instance, None for the whole GPU. `close` before the library is shut down.
    """

    def __init__(self, nvml: Nvml, handle: Any, gpu_instance: int | None = None) -> None:
        self._nvml = nvml
        self._handle = handle
        self._gpu_instance = gpu_instance
        py = nvml.py
        self._samples = [py.nvmlGpmSampleAlloc(), py.nvmlGpmSampleAlloc()]
        self._sampled = False
        self._get = py.c_nvmlGpmMetricsGet_t()
        if ctypes.sizeof(py.c_nvmlGpmMetric_t) != struct.calcsize("=" + _ENTRY):
            raise TypeError("an nvmlGpmMetric_t is of another size in this pynvml than in nvml.h")
        self._get.version = py.NVML_GPM_METRICS_GET_VERSION
        self._ask(METRICS)

    def read(self) -> list[tuple[str, float | str]]:
        """Nothing at the first call. Raises NVMLError when GPM cannot be read at all."""
        py = self._nvml.py
        before, now = self._samples
        if self._gpu_instance is None:
            py.nvmlGpmSampleGet(self._handle, now)
        else:
            py.nvmlGpmMigSampleGet(self._handle, self._gpu_instance, now)
        self._samples = [now, before]
        if not self._sampled:
            self._sampled = True
            return []
        get = self._get
        get.sample1, get.sample2 = before, now
        py.nvmlGpmMetricsGet(get)
        entries = self._layout.unpack_from(get, type(get).metrics.offset)
        codes, told = entries[0::2], entries[1::2]
        values: list[tuple[str, float | str]] = [
            (name, round(value / per, digits)) for (name, per, digits), value in zip(self._scales, told, strict=True)
        ]
        if not any(codes):  # library.SUCCESS is 0
            return values
        asked = self._metrics
        if not library.UNSUPPORTED.isdisjoint(codes):
            self._ask([metric for metric, code in zip(asked, codes, strict=True) if code not in library.UNSUPPORTED])
        return [
            value if code == library.SUCCESS else (value[0], self._nvml.words(code))
            for value, code in zip(values, codes, strict=True)
            if code not in library.UNSUPPORTED
        ]

    def close(self) -> None:
        for sample in self._samples:
            self._nvml.py.nvmlGpmSampleFree(sample)
        self._samples = []

    def _ask(self, metrics: Sequence[GpmMetric]) -> None:
        self._metrics = metrics
        self._scales = [(metric.metric, metric.per, metric.digits) for metric in metrics]
        self._layout = struct.Struct("=" + _ENTRY * len(metrics))
        self._get.numMetrics = len(metrics)
        for position, metric in enumerate(metrics):
            self._get.metrics[position].metricId = metric.id


def open_gpm(nvml: Nvml, handle: Any, gpu_instance: int | None = None) -> Gpm | None:
    """GPM of this GPU, or None when it has none. Raises NVMLError for what concerns the whole GPU or driver."""
    try:
        if not nvml.py.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
            return None
        return Gpm(nvml, handle, gpu_instance)
    except nvml.Error as error:
        if code_of(error) in library.LOST | library.BROKEN:
            raise
        return None
