"""All NVIDIA GPUs of the node: read each by itself, lost and found again, over restarts of the driver."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from switchgear.agent.events import Finding
from switchgear.agent.fault_join import GPU_LOST, GPU_RETURNED
from switchgear.agent.nvml import device, library
from switchgear.agent.nvml.device import NvmlDevice
from switchgear.agent.nvml.library import Nvml, code_of
from switchgear.agent.nvml.power import RuntimePower
from switchgear.agent.nvml.reader import GpuReader
from switchgear.agent.nvml.recovery import recovery_finding
from switchgear.agent.sources.gpu import Process, Value, normal_pci
from switchgear.agent.xids import XidHistory
from switchgear.core.clock import Clock

log = logging.getLogger(__name__)

_RECOVERY = "switchgear_gpu_recovery_action"
_MIG_MODE = "DCGM_FI_DEV_MIG_MODE"
LOST = "GPU is lost"
SUSPENDED = "not sampled: suspended"
NO_DRIVER = "the driver is not there"
#: Until a GPU whose handle was no good is looked for again: it comes back by a reset or by a new binding, which take longer.
LOOK_AGAIN_S = 30.0


class Session:
    """From one nvmlInit to its nvmlShutdown: as long as handles are good. broken: set by whoever sees that they are not."""

    def __init__(self, nvml: Nvml) -> None:
        self.nvml = nvml
        self.broken = threading.Event()


class Gpu:
    """One GPU of the inventory; it keeps its index and its place when it is lost. All but `busy` belongs to its worker."""

    def __init__(self, identity: NvmlDevice, sysfs: Path) -> None:
        self.identity = identity
        self.pci = normal_pci(identity.pci_bus_id)
        #: A call about it may be under way.
        self.busy = False
        self.lost = False
        #: Until when nothing is asked of it, and why.
        self.look_again_s = 0.0
        self.away = ""
        self.recovery = 0.0
        self.mig_mode: float | None = None
        self.power = RuntimePower(identity.pci_bus_id, sysfs)
        self.session: Session | None = None
        self.handle: Any = None
        self.reader: GpuReader | None = None
        self._last = dict[bool, list[Value]]()

    def open(self, session: Session) -> GpuReader:
        """Its reader in this session. Raises NVMLError."""
        if self.reader is None or self.session is not session:
            self.handle = device.find(session.nvml, self.identity)
            self.reader = GpuReader(session.nvml, self.handle)
            self.session = session
        return self.reader

    def forget(self) -> None:
        """Its handle is void."""
        if self.reader is not None and self.session is not None:
            # What a driver that went away had allocated is gone with it.
            with contextlib.suppress(self.session.nvml.Error):
                self.reader.close()
        self.reader = self.session = self.handle = None

    def keep(self, values: list[Value], *, slow: bool) -> list[Value]:
        self._last[slow] = values
        return values

    def unknown(self, reason: str, *, slow: bool) -> list[Value]:
        """Each series that it had, with the reason why it has no value."""
        return [(metric, labels, reason) for metric, labels, _ in self._last.get(slow, ())]


class NvmlDriver:
    """`GpuDriver` of a session that a `Lifecycle` opens and ends.

    tell: takes what is noticed about a GPU. xids: of its GPUs, from the kernel log too. sysfs: root of sysfs.
    """

    def __init__(
        self, tell: Callable[[Finding], None], xids: XidHistory, clock: Clock, *, sysfs: Path = Path("/sys")
    ) -> None:
        self._tell = tell
        self.xids = xids
        self._clock = clock
        self.sysfs = sysfs
        self._gpus = dict[int, Gpu]()
        self._session: Session | None = None
        self._reason = NO_DRIVER

    def devices(self) -> Sequence[NvmlDevice]:
        """The inventory, as the first session had it."""
        return [gpu.identity for gpu in self._gpus.values()]

    @property
    def gpus(self) -> Sequence[Gpu]:
        return list(self._gpus.values())

    def begin(self, session: Session, devices: Sequence[NvmlDevice]) -> None:
        """From now on GPUs are read in this session. devices: the first session's are the inventory."""
        if not self._gpus:
            self._gpus = {found.index: Gpu(found, self.sysfs) for found in devices}
        self._session = session

    def end(self, reason: str) -> bool:
        """From now on nothing is read, for this reason. True once no call is under way any more: ask again until then."""
        self._session, self._reason = None, reason
        if any(gpu.busy for gpu in self._gpus.values()):
            return False
        for gpu in self._gpus.values():
            gpu.forget()
        return True

    def read(self, index: int, *, slow: bool) -> Iterable[Value]:
        """See `GpuDriver`. Raises nothing: what fails is unknown, with the reason."""
        gpu = self._gpus[index]
        # Before the session is looked at: `end` waits for those who may use it.
        gpu.busy = True
        try:
            session = self._session
            if session is None:
                return gpu.unknown(self._reason, slow=slow)
            if gpu.power.suspended():
                return gpu.unknown(SUSPENDED, slow=slow)
            if self._clock.monotonic_s() < gpu.look_again_s:
                return gpu.unknown(gpu.away, slow=slow)
            return self._read(gpu, session, slow=slow)
        finally:
            gpu.busy = False

    def processes(self, index: int) -> Iterable[Process]:
        """See `GpuDriver`; nothing while the GPU is lost or asleep. Raises NVMLError when the driver does not tell."""
        gpu = self._gpus[index]
        gpu.busy = True
        try:
            session = self._session
            if session is None or gpu.handle is None or gpu.lost or gpu.power.suspended():
                return ()
            return list(device.processes(session.nvml, gpu.handle))
        finally:
            gpu.busy = False

    def _read(self, gpu: Gpu, session: Session, *, slow: bool) -> Iterable[Value]:
        try:
            reader = gpu.open(session)
            values = reader.slow() if slow else reader.fast()
        except session.nvml.Error as error:
            code = code_of(error)
            if code in library.BROKEN:
                session.broken.set()
            elif code in library.LOST or code == library.NOT_FOUND:
                return self._lose(gpu, slow=slow)
            elif code == library.INVALID_ARGUMENT:  # its handle is void, as after it was bound to its driver anew
                self._leave(gpu, str(error))
            return gpu.unknown(str(error), slow=slow)
        if gpu.lost:
            self._find(gpu)
        if slow and _was_cut_otherwise(gpu, values):
            gpu.forget()
            return self._read(gpu, session, slow=True)
        if not slow:
            self._note_recovery(gpu, values)
            values.append(("DCGM_FI_DEV_VGPU_LICENSE_STATUS", (), 0.0))
        return gpu.keep(values, slow=slow)

    def _note_recovery(self, gpu: Gpu, values: list[Value]) -> None:
        """Tells what the driver wants done about the GPU when that changes; older drivers have no event for it."""
        wanted = next((value for metric, _, value in values if metric == _RECOVERY), None)
        if isinstance(wanted, float) and wanted != gpu.recovery:
            gpu.recovery = wanted
            self._tell(recovery_finding(gpu.identity, int(wanted)))

    def _lose(self, gpu: Gpu, *, slow: bool) -> Iterable[Value]:
        self._leave(gpu, LOST)
        if not gpu.lost:
            gpu.lost = True
            identity = gpu.identity
            log.error("GPU %d is lost", identity.index, extra={"gpu": identity.index, "pci": identity.pci_bus_id})
            text = f"NVML: GPU {identity.index} at {identity.pci_bus_id} is lost"
            self._tell(Finding(GPU_LOST, text, pci=gpu.pci, gpu=identity.index, detail={"uuid": identity.uuid}))
        return gpu.unknown(LOST, slow=slow)

    def _leave(self, gpu: Gpu, reason: str) -> None:
        """Nothing is asked of it for a while, and then with a new handle."""
        gpu.forget()
        gpu.away = reason
        gpu.look_again_s = self._clock.monotonic_s() + LOOK_AGAIN_S

    def _find(self, gpu: Gpu) -> None:
        gpu.lost = False
        identity = gpu.identity
        log.info("GPU %d answers again", identity.index)
        text = f"NVML: GPU {identity.index} at {identity.pci_bus_id} answers again"
        self._tell(Finding(GPU_RETURNED, text, pci=gpu.pci, gpu=identity.index, detail={"uuid": identity.uuid}))


def _was_cut_otherwise(gpu: Gpu, values: list[Value]) -> bool:
    """Whether the GPU was cut into MIG instances, or made whole, since the last look: what it supports is another then."""
    mode = next((value for metric, _, value in values if metric == _MIG_MODE), None)
    if mode is None or isinstance(mode, str):
        return False
    before, gpu.mig_mode = gpu.mig_mode, mode
    return before not in (None, mode)
