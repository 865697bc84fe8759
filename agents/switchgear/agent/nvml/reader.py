"""Everything that is read of one GPU, in the order in which it is read."""

from __future__ import annotations

from collections import deque
from typing import Any

from switchgear.agent.nvml import calls, device, fields, gpm, library
from switchgear.agent.nvml.batch import FieldBatch
from switchgear.agent.nvml.gpm import open_gpm
from switchgear.agent.nvml.library import Nvml, code_of
from switchgear.agent.nvml.mig import Mig
from switchgear.agent.nvml.nvlink import NvLinks
from switchgear.agent.sources.gpu import Value

#: dcgm-exporter's words for nvmlClocksEventReasons, by bit.
CLOCK_EVENTS = (
    "gpu_idle",
    "clocks_setting",
    "power_cap",
    "hw_slowdown",
    "sync_boost",
    "sw_thermal",
    "hw_thermal",
    "hw_power_brake",
    "display_clocks",
)
#: Samples of the window that `DCGM_EXP_CLOCK_EVENTS_COUNT` counts; at one a second that is dcgm-exporter's five minutes.
CLOCK_WINDOW = 300
_REASONS = "DCGM_FI_DEV_CLOCKS_EVENT_REASONS"
_NVLINK_TX, _NVLINK_RX = "switchgear_gpu_nvlink_transmit_bytes_total", "switchgear_gpu_nvlink_receive_bytes_total"


class GpuReader:
    """One GPU as long as its handle is good. What driver and GPU do not have is found out at the first reading and not asked again.

    Not for several threads at once; each call may raise NVMLError, when it concerns the whole GPU or driver.
    """

    def __init__(self, nvml: Nvml, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        self._fast = [calls.Reader(nvml, handle, call) for call in calls.FAST]
        self._slow = [calls.Reader(nvml, handle, call) for call in calls.SLOW]
        self._fast_fields = FieldBatch(nvml, handle, fields.FAST)
        self._slow_fields = FieldBatch(nvml, handle, fields.SLOW)
        self._instead: list[calls.Reader] | None = None
        self._gpm = open_gpm(nvml, handle)
        self._mig = Mig(nvml, handle)
        self._links: NvLinks | None = None
        self._info: list[Value] = [("switchgear_gpu_info", device.info(nvml, handle), 1.0)]
        self._reasons = deque[int](maxlen=CLOCK_WINDOW)

    def fast(self) -> list[Value]:
        """What changes from second to second."""
        values: list[Value] = []
        for reader in self._fast:
            values += reader.read()
        batch = self._fields(self._fast_fields)
        values += batch
        values += self._bandwidth(batch)
        values += self._profile()
        values += self._mig.read()
        if (reasons := next((value for metric, _, value in values if metric == _REASONS), None)) is not None and (
            not isinstance(reasons, str)
        ):
            self._reasons.append(int(reasons))
        return values

    def slow(self) -> list[Value]:
        """What changes seldom; and what MIG instances there are."""
        self._mig.refresh()
        values: list[Value] = []
        batch = self._fields(self._slow_fields)
        values += batch
        for reader in (*self._slow, *self._instead_of_fields(batch)):
            values += reader.read()
        values += self._nvlinks(batch)
        values += self._clock_events()
        return values + self._info

    def close(self) -> None:
        """Gives back what it allocated; no call about this GPU may be under way."""
        self._mig.close()
        if self._gpm is not None:
            self._gpm.close()

    def _fields(self, batch: FieldBatch) -> list[Value]:
        try:
            values = batch.read()
        except self._nvml.Error as error:
            if code_of(error) in library.LOST | library.BROKEN:
                raise
            return [(field.metric, (), str(error)) for field in batch.fields]
        return [(field.metric, (), value) for field, value in zip(batch.fields, values, strict=True)]

    def _instead_of_fields(self, batch: list[Value]) -> list[calls.Reader]:
        """Calls for metrics that no field gives; the slow pace serves them all, also where the field would be a fast one."""
        if self._instead is None:
            have = {metric for metric, _, _ in batch} | {field.metric for field in self._fast_fields.fields}
            self._instead = [
                calls.Reader(self._nvml, self._handle, call)
                for call in calls.INSTEAD_OF_FIELDS
                if have.isdisjoint(call.metrics)
            ]
        return self._instead

    def _bandwidth(self, batch: list[Value]) -> list[Value]:
        directions = [value for metric, _, value in batch if metric in (_NVLINK_TX, _NVLINK_RX)]
        numbers = [value for value in directions if not isinstance(value, str)]
        if len(numbers) < 2:
            return []
        return [("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", (), sum(numbers) / 1024)]

    def _profile(self) -> list[Value]:
        if self._gpm is None:
            return []
        try:
            return [(metric, (), value) for metric, value in self._gpm.read()]
        except self._nvml.Error as error:
            if code_of(error) in library.LOST | library.BROKEN:
                raise
            if code_of(error) in library.UNSUPPORTED:  # as under MIG, where only instances have it
                self._gpm.close()
                self._gpm = None
                return []
            return [(metric.metric, (), str(error)) for metric in gpm.METRICS]

    def _nvlinks(self, batch: list[Value]) -> list[Value]:
        count = next((value for metric, _, value in batch if metric == "switchgear_gpu_nvlinks"), 0.0)
        if isinstance(count, str) or not count:
            return []
        if self._links is None:
            self._links = NvLinks(self._nvml, self._handle, int(count))
        return self._links.read()

    def _clock_events(self) -> list[Value]:
        if not self._reasons:
            return []
        return [
            (
                "DCGM_EXP_CLOCK_EVENTS_COUNT",
                (("clock_event", event), ("window_size_in_ms", str(CLOCK_WINDOW * 1000))),
                float(sum(reasons >> bit & 1 for reasons in self._reasons)),
            )
            for bit, event in enumerate(CLOCK_EVENTS)
        ]
