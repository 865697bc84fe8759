"""GPUs as the kernel sees them, and whether one is asleep: any NVML call would wake it, and hold it awake."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from switchgear.agent.sources.gpu import normal_pci
from switchgear.agent.sources.kernel_files import word


def has_gpu(sysfs: Path = Path("/sys")) -> bool:
    """Whether the PCI bus has an NVIDIA GPU, with its driver or without."""
    return bool(addresses(sysfs))


def addresses(sysfs: Path = Path("/sys")) -> list[str]:
    """Of NVIDIA's display controllers on the PCI bus, in their order there."""
    folders = sorted((sysfs / "bus/pci/devices").glob("*"))
    return [
        folder.name
        for folder in folders
        if word(folder / "vendor") == "0x10de" and word(folder / "class").startswith("0x03")
    ]


def sleepers(count: int, sysfs: Path = Path("/sys")) -> dict[int, RuntimePower]:
    """The GPUs that are asleep, by NVML index; count: how many NVML has.

    NVML numbers GPUs by address, as the bus does; where the bus has more of them than NVML, nobody knows which is which without waking
    them, and none counts as asleep.
    """
    on_bus = addresses(sysfs)
    if len(on_bus) != count:
        return {}
    powers = {index: RuntimePower(address, sysfs) for index, address in enumerate(on_bus)}
    return {index: power for index, power in powers.items() if power.suspended()}


class RuntimePower:
    """`power/runtime_status` of one PCI device (kernel documentation, ABI/testing/sysfs-devices-power), by a file that stays open.

    Any thread may ask: one that reads the GPU, and the one that waits for events of all.
    """

    def __init__(self, pci_bus_id: str, sysfs: Path = Path("/sys")) -> None:
        self._path = f"{sysfs}/bus/pci/devices/{normal_pci(pci_bus_id)}.0/power/runtime_status"
        self._fd = -1
        self._lock = threading.Lock()

    def suspended(self) -> bool:
        """False where the kernel does not say."""
        with self._lock:
            # At each tick of each GPU: asking first costs a tenth of an exception.
            if self._fd < 0 and not os.access(self._path, os.R_OK):
                return False
            try:
                if self._fd < 0:
                    self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                return os.pread(self._fd, 16, 0).startswith(b"suspend")
            except OSError:  # the device is gone
                self._close()
                return False

    def __del__(self) -> None:  # all is opened anew when GPUs come late
        self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
