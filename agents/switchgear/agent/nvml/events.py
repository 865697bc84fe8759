"""What the driver says by itself: critical XIDs, ECC, poison, a GPU that wants to be reset."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from switchgear.agent.events import Finding
from switchgear.agent.fault_join import XID
from switchgear.agent.nvml import library
from switchgear.agent.nvml.device import address, find
from switchgear.agent.nvml.driver import Gpu
from switchgear.agent.nvml.library import Nvml, code_of
from switchgear.agent.nvml.recovery import RECOVERY_ACTION, recovery_finding

#: How long one wait lasts: `close` takes effect within it.
WAIT_MS = 1000
#: Until events are waited for again after the driver refused twice.
PAUSE_S = 5.0
#: Waits after which the set is made anew for a GPU that could not take part and may now.
REOPEN_WAITS = 5
#: What reading a GPU takes at most; one that takes longer is taken in again after `REOPEN_WAITS`.
CALL_S, _POLL_S = 0.5, 0.02
_NO_INSTANCE = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class EventType:
    """bit: `nvmlEventType…` of nvml.h. kind: of the finding."""

    bit: int
    kind: str


TYPES = (
    EventType(0x8, XID),
    EventType(0x2, "ECC_DOUBLE_BIT"),
    EventType(0x200, "ECC_SINGLE_BIT_STORM"),
    EventType(0x400, "DRAM_RETIREMENT"),
    EventType(0x800, "DRAM_RETIREMENT_FAILED"),
    EventType(0x1000, "GPU_POISON_NON_FATAL"),
    EventType(0x2000, "GPU_POISON_FATAL"),
    EventType(0x4000, "GPU_UNAVAILABLE"),
    EventType(0x8000, RECOVERY_ACTION),
)


class EventSet:
    """The events of the GPUs in one session; made anew when the driver refuses to wait, as it does when one of them is lost."""

    def __init__(self, nvml: Nvml, gpus: Sequence[Gpu], tell: Callable[[Finding], None]) -> None:
        self._nvml = nvml
        self._gpus = gpus
        self._tell = tell
        self._set: Any = None
        self._by_address = dict[int, Gpu]()
        self._left_out = list[Gpu]()
        self._waits = 0
        self._refused = False
        self._open()

    def wait(self, broken: threading.Event) -> None:
        """Waits for one event, at most a second; sets `broken` when the driver went away."""
        if self._set is None and broken.wait(PAUSE_S):
            return
        if self._set is None or (self._waits >= REOPEN_WAITS and any(_takes_part(gpu) for gpu in self._left_out)):
            self.close()
            self._open()
            return
        self._waits += 1
        try:
            data = self._nvml.py.nvmlEventSetWait_v2(self._set, WAIT_MS)
        except self._nvml.Error as error:
            code = code_of(error)
            if code == library.TIMEOUT:
                self._refused = False
                return
            if code in library.BROKEN:
                broken.set()
                return
            self.close()
            if not self._refused:  # a set without the GPU that is lost may do
                self._open()
            self._refused = True
            return
        self._refused = False
        if (finding := self._finding(data)) is not None:
            self._tell(finding)

    def close(self) -> None:
        if self._set is not None:
            try:
                self._nvml.py.nvmlEventSetFree(self._set)
            except self._nvml.Error:  # the driver went away, and the set with it
                pass
            self._set = None

    def _open(self) -> None:
        """A set with every GPU that takes part; none when no GPU does."""
        py = self._nvml.py
        self._by_address.clear()
        self._left_out = []
        self._waits = 0
        try:
            self._set = py.nvmlEventSetCreate()
        except self._nvml.Error:
            return
        for gpu in self._gpus:
            if not _takes_part(gpu):
                self._left_out.append(gpu)
                continue
            try:
                handle = find(self._nvml, gpu.identity)
                wanted = py.nvmlDeviceGetSupportedEventTypes(handle) & sum(type_.bit for type_ in TYPES)
                py.nvmlDeviceRegisterEvents(handle, wanted, self._set)
            except self._nvml.Error as error:
                if code_of(error) not in library.UNSUPPORTED:
                    self._left_out.append(gpu)
                continue
            self._by_address[address(handle)] = gpu
        if not self._by_address:
            self.close()

    def _finding(self, data: Any) -> Finding | None:
        type_ = next((type_ for type_ in TYPES if type_.bit == data.eventType), None)
        gpu = self._by_address.get(address(data.device))
        if type_ is None or gpu is None:
            return None
        value, identity = int(data.eventData), gpu.identity
        if type_.kind == RECOVERY_ACTION:
            return recovery_finding(identity, value)
        detail = {"uuid": identity.uuid}
        if data.gpuInstanceId != _NO_INSTANCE:
            detail["mig_gpu_instance"] = str(data.gpuInstanceId)
        code = value if type_.kind == XID else None
        what = f"XID {value}" if code is not None else type_.kind
        text = f"NVML: {what} on GPU {identity.index} at {identity.pci_bus_id}"
        return Finding(type_.kind, text, code=code, pci=gpu.pci, gpu=identity.index, detail=detail)


def _takes_part(gpu: Gpu) -> bool:
    return not (gpu.lost or gpu.power.suspended() or _hangs(gpu))


def _hangs(gpu: Gpu) -> bool:
    """Whether a call about it is under way and does not end: one of ours would wait with it, and the events of all others too."""
    for _ in range(round(CALL_S / _POLL_S)):
        if not gpu.busy:
            return False
        time.sleep(_POLL_S)
    return True
