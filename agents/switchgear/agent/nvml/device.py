"""Who a GPU is, and the processes on it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from switchgear.agent.nvml import library
from switchgear.agent.nvml.library import Nvml, code_of
from switchgear.agent.sources.gpu import Labels, Process

_NO_INSTANCE = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class NvmlDevice:
    """Identity of a GPU, as NVML told it first.

    pci_bus_id: as NVML writes it (`00000000:3B:00.0`). device_file: its name below /dev.
    """

    index: int
    uuid: str
    model: str
    memory_bytes: int
    pci_bus_id: str
    driver_version: str
    device_file: str
    simulated: bool = False


def identify(nvml: Nvml, index: int) -> NvmlDevice:
    """The GPU with this NVML index, which wakes it. Raises NVMLError."""
    py = nvml.py
    handle = py.nvmlDeviceGetHandleByIndex(index)
    bus_id = py.nvmlDeviceGetPciInfo(handle).busId
    return NvmlDevice(
        index=index,
        uuid=py.nvmlDeviceGetUUID(handle),
        model=said(nvml, "nvmlDeviceGetName", handle),
        memory_bytes=_memory_bytes(nvml, handle),
        pci_bus_id=bus_id.decode() if isinstance(bus_id, bytes) else bus_id,
        driver_version=said(nvml, "nvmlSystemGetDriverVersion"),
        device_file=f"nvidia{said(nvml, 'nvmlDeviceGetMinorNumber', handle) or index}",
    )


# Names of dcgm-exporter's labels, the function, and what else it takes (nvmlInforomObject_t of nvml.h).
_INFO: Sequence[tuple[str, str, tuple[int, ...]]] = (
    ("DCGM_FI_DEV_SERIAL", "nvmlDeviceGetSerial", ()),
    ("DCGM_FI_DEV_VBIOS_VERSION", "nvmlDeviceGetVbiosVersion", ()),
    ("DCGM_FI_DEV_INFOROM_IMAGE_VER", "nvmlDeviceGetInforomImageVersion", ()),
    ("DCGM_FI_DEV_OEM_INFOROM_VER", "nvmlDeviceGetInforomVersion", (0,)),
    ("DCGM_FI_DEV_ECC_INFOROM_VER", "nvmlDeviceGetInforomVersion", (1,)),
    ("DCGM_FI_DEV_POWER_INFOROM_VER", "nvmlDeviceGetInforomVersion", (2,)),
    ("DCGM_FI_DEV_BRAND", "nvmlDeviceGetBrand", ()),
)


def info(nvml: Nvml, handle: Any) -> Labels:
    """What the board says of itself and never changes; what it does not say is left out. Raises NVMLError."""
    told = [(name, said(nvml, function, handle, *arguments)) for name, function, arguments in _INFO]
    told.append(("DCGM_FI_NVML_VERSION", said(nvml, "nvmlSystemGetNVMLVersion")))
    return tuple((name, text) for name, text in told if text)


def find(nvml: Nvml, gpu: NvmlDevice) -> Any:
    """A handle of the GPU, wherever it is by now. Raises NVMLError.

    By its address first: in search of a UUID NVML initialises other GPUs (nvml.h), which wakes those that sleep and waits for those that hang.
    """
    py = nvml.py
    try:
        handle = py.nvmlDeviceGetHandleByPciBusId(gpu.pci_bus_id)
        if py.nvmlDeviceGetUUID(handle) == gpu.uuid:
            return handle
    except nvml.Error as error:
        if code_of(error) != library.NOT_FOUND:
            raise
    return py.nvmlDeviceGetHandleByUUID(gpu.uuid)


def address(handle: Any) -> int:
    """What tells one handle from another: where it points."""
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def processes(nvml: Nvml, handle: Any) -> Iterator[Process]:
    """Compute, MPS and graphics processes, each pid once for each MIG instance. Raises NVMLError."""
    seen = set[tuple[int, int | None]]()
    for kind in ("Compute", "MPSCompute", "Graphics"):
        try:
            running = _running(nvml, handle, kind)
        except nvml.Error as error:
            # pynvml raises "Success" where a driver has nothing to tell.
            if code_of(error) in library.UNSUPPORTED or code_of(error) == library.SUCCESS:
                continue
            raise
        for process in running:
            instance = None if process.gpuInstanceId == _NO_INSTANCE else int(process.gpuInstanceId)
            if (process.pid, instance) not in seen:
                seen.add((process.pid, instance))
                yield int(process.pid), instance, process.usedGpuMemory


def _running(nvml: Nvml, handle: Any, kind: str) -> list[Any]:
    try:
        return list(getattr(nvml.py, f"nvmlDeviceGet{kind}RunningProcesses_v3")(handle))
    except nvml.Error as error:
        if code_of(error) != library.FUNCTION_NOT_FOUND:
            raise
        return list(getattr(nvml.py, f"nvmlDeviceGet{kind}RunningProcesses_v2")(handle))


def said(nvml: Nvml, function: str, *arguments: Any) -> str:
    """What the function answers, as text; "" when it has nothing to say. Raises NVMLError for what concerns the whole GPU or driver."""
    try:
        return str(getattr(nvml.py, function)(*arguments))
    except nvml.Error as error:
        if code_of(error) in library.LOST | library.BROKEN:
            raise
        return ""


def _memory_bytes(nvml: Nvml, handle: Any) -> int:
    try:
        return int(nvml.py.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.Error as error:
        if code_of(error) in library.LOST | library.BROKEN:
            raise
        return 0
