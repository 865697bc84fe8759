"""AMD's GPUs behind the same seam as NVIDIA's: each read by itself, lost and found again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from switchgear.agent.amd.library import AmdSmi, AmdUnavailable, Failed
from switchgear.agent.amd.ras import BlockErrors
from switchgear.agent.amd.readings import ERROR_TOTALS, MEMORY, SLOW, Answer, TableReader
from switchgear.agent.events import Finding
from switchgear.agent.fault_join import GPU_LOST, GPU_RETURNED
from switchgear.agent.nvml.power import RuntimePower
from switchgear.agent.sources.gpu import Process, Value, normal_pci

log = logging.getLogger(__name__)

LOST = "GPU is lost"
SUSPENDED = "not sampled: suspended"
_MIB = 1024**2


@dataclass(frozen=True, slots=True)
class AmdDevice:
    """See `GpuDevice`."""

    index: int
    uuid: str
    model: str
    memory_bytes: int
    pci_bus_id: str
    device_file: str
    driver_version: str = ""
    simulated: bool = False


class AmdDriver:
    """`GpuDriver` of the node's AMD GPUs.

    first_index: of the first of them on this node, behind those of other vendors. tell: takes what is noticed about a GPU.
    sysfs: root of sysfs. Raises AmdUnavailable when they cannot be listed.
    """

    def __init__(
        self, smi: AmdSmi, first_index: int, tell: Callable[[Finding], None], *, sysfs: Path = Path("/sys")
    ) -> None:
        self._tell = tell
        self._gpus = {
            index: _Gpu(smi, handle, _identify(smi, handle, index), sysfs)
            for index, handle in enumerate(smi.handles(), first_index)
        }

    def devices(self) -> Sequence[AmdDevice]:
        return [gpu.identity for gpu in self._gpus.values()]

    def read(self, index: int, *, slow: bool) -> Iterable[Value]:
        """See `GpuDriver`. Raises nothing: what fails is unknown, with the reason."""
        gpu = self._gpus[index]
        if gpu.power.suspended():
            return gpu.unknown(SUSPENDED, slow=slow)
        try:
            values = gpu.slow() if slow else gpu.fast()
        except Failed as error:
            if gpu.present():
                return gpu.unknown(str(error), slow=slow)
            self._note(gpu, lost=True)
            return gpu.unknown(LOST, slow=slow)
        self._note(gpu, lost=False)
        return gpu.keep(values, slow=slow)

    def processes(self, index: int) -> Iterable[Process]:
        """See `GpuDriver`; nothing while the GPU is lost or asleep, or when the driver does not tell."""
        gpu = self._gpus[index]
        if gpu.lost or gpu.power.suspended():
            return ()
        try:
            listed = gpu.smi.call("gpu_process_list", gpu.handle)
        except Failed:
            return ()
        return [(entry["pid"], None, entry["memory_usage"]["vram_mem"] or None) for entry in listed]

    def _note(self, gpu: _Gpu, *, lost: bool) -> None:
        if gpu.lost == lost:
            return
        gpu.lost = lost
        identity = gpu.identity
        what = "is lost" if lost else "answers again"
        log.error("GPU %d %s", identity.index, what, extra={"gpu": identity.index, "pci": identity.pci_bus_id})
        text = f"amdsmi: GPU {identity.index} at {identity.pci_bus_id} {what}"
        kind = GPU_LOST if lost else GPU_RETURNED
        self._tell(Finding(kind, text, pci=gpu.pci, gpu=identity.index, detail={"uuid": identity.uuid}))


class _Gpu:
    """One GPU; it keeps its index and its place when it is lost. Belongs to its worker."""

    def __init__(self, smi: AmdSmi, handle: Any, identity: AmdDevice, sysfs: Path) -> None:
        self.smi = smi
        self.handle = handle
        self.identity = identity
        self.pci = normal_pci(identity.pci_bus_id)
        self.power = RuntimePower(identity.pci_bus_id, sysfs)
        self.lost = False
        self._device = sysfs / "bus/pci/devices" / identity.pci_bus_id
        self._table = smi.metrics_table()
        self._reader = TableReader(self._table)
        self._blocks = BlockErrors(smi, handle)
        self._without = set[str]()
        self._not_understood = set[str]()
        self._last = dict[bool, list[Value]]()

    def present(self) -> bool:
        """Whether it is still on the bus."""
        return self._device.exists()

    def fast(self) -> list[Value]:
        """Raises Failed."""
        self.smi.read_metrics(self.handle, self._table)
        return [*self._reader.values(self._table), *self._answers(MEMORY, slow=False)]

    def slow(self) -> list[Value]:
        """Raises Failed when nothing can be read at all."""
        values = list(self._answers(SLOW, slow=True))
        errors = [value for metric, _, value in values if metric in ERROR_TOTALS]
        if any(isinstance(value, str) for value in errors):
            return values
        return values + self._blocks.values(sum(value for value in errors if not isinstance(value, str)))

    def keep(self, values: list[Value], *, slow: bool) -> list[Value]:
        self._last[slow] = values
        return values

    def unknown(self, reason: str, *, slow: bool) -> list[Value]:
        """Each series that it had, with the reason why it has no value."""
        return [(metric, labels, reason) for metric, labels, _ in self._last.get(slow, ())]

    def _answers(self, calls: Mapping[str, Answer], *, slow: bool) -> Iterator[Value]:
        """One call that fails costs its own metrics; what the GPU does not have is not asked for again."""
        failed, answered = None, False
        before = {metric for metric, labels, _ in self._last.get(slow, ()) if not labels}
        for name, metrics_of in calls.items():
            if name in self._without:
                continue
            try:
                told = list(metrics_of(self.smi.call(name, self.handle)))
            except Failed as error:
                if error.unsupported:
                    self._without.add(name)
                else:
                    failed = error
                continue
            except Exception as error:  # another release of the library answers otherwise
                failed = self._misunderstood(name, error)
                continue
            answered = True
            for metric, value in told:
                if not isinstance(value, str):
                    yield metric, (), float(value)
                    before.discard(metric)
        if failed is not None:
            if not answered:
                raise failed
            yield from ((metric, (), str(failed)) for metric in sorted(before))

    def _misunderstood(self, name: str, error: Exception) -> Failed:
        words = f"the answer of amdsmi_get_{name} is not understood: {type(error).__name__}: {error}"
        if name not in self._not_understood:
            self._not_understood.add(name)
            log.error("GPU %d: %s", self.identity.index, words)
        return Failed(0, words)


def _identify(smi: AmdSmi, handle: Any, index: int) -> AmdDevice:
    """Raises AmdUnavailable when not even the address is told."""
    try:
        pci = smi.call("gpu_device_bdf", handle)
    except Failed as error:
        raise AmdUnavailable(f"libamd_smi.so does not tell the address of GPU {index}: {error}") from error
    asic = _optional(smi, "gpu_asic_info", handle)
    memory_mib = _optional(smi, "gpu_vram_usage", handle).get("vram_total", 0)
    render = _optional(smi, "gpu_enumeration_info", handle).get("drm_render", "")
    try:
        uuid = smi.call("gpu_device_uuid", handle)
    except Failed:
        uuid = f"AMD-{pci}"
    return AmdDevice(
        index,
        f"GPU-{uuid}" if not uuid.startswith(("GPU-", "AMD-")) else uuid,
        asic.get("market_name", "AMD GPU"),
        memory_mib * _MIB,
        pci,
        f"renderD{render}" if isinstance(render, int) else f"amdgpu{index}",
        _optional(smi, "gpu_driver_info", handle).get("driver_version", ""),
    )


def _optional(smi: AmdSmi, name: str, handle: Any) -> Mapping[str, Any]:
    try:
        answer: Mapping[str, Any] = smi.call(name, handle)
    except Failed:
        return {}
    return answer
