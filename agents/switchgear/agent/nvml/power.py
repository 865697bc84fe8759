"""GPUs as the kernel sees them, and whether one is asleep: any NVML call would wake it, and hold it awake."""

from __future__ import annotations

import os
from pathlib import Path

from switchgear.agent.sources.gpu import normal_pci


def has_gpu(sysfs: Path = Path("/sys")) -> bool:
    """Whether the PCI bus has an NVIDIA GPU, with its driver or without."""
    return any(_is_nvidia_gpu(folder) for folder in (sysfs / "bus/pci/devices").glob("*"))


def sleepers(count: int, sysfs: Path = Path("/sys")) -> dict[int, RuntimePower]:
    """The GPUs that are asleep, by NVML index; count: how many NVML has.

    NVML numbers GPUs by address, as the bus does; where the bus has more of them than NVML, nobody knows which is which without waking
    them, and none counts as asleep.
    """
    addresses = sorted(folder.name for folder in (sysfs / "bus/pci/devices").glob("*") if _is_nvidia_gpu(folder))
    if len(addresses) != count:
        return {}
    powers = {index: RuntimePower(address, sysfs) for index, address in enumerate(addresses)}
    return {index: power for index, power in powers.items() if power.suspended()}


class RuntimePower:
    """`power/runtime_status` of one PCI device (kernel documentation, ABI/testing/sysfs-devices-power), by a file that stays open."""

    def __init__(self, pci_bus_id: str, sysfs: Path = Path("/sys")) -> None:
        self._path = sysfs / "bus/pci/devices" / f"{normal_pci(pci_bus_id)}.0" / "power/runtime_status"
        self._fd = -1

    def suspended(self) -> bool:
        """False where the kernel does not say."""
        # At each tick of each GPU: asking first costs a tenth of an exception.
        if self._fd < 0 and not os.access(self._path, os.R_OK):
            return False
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(self._fd, 16, 0).startswith(b"suspend")
        except OSError:  # the device is gone
            self.close()
            return False

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _is_nvidia_gpu(folder: Path) -> bool:
    try:
        vendor, class_ = (folder / "vendor").read_text(), (folder / "class").read_text()
    except OSError:
        return False
    return vendor.strip() == "0x10de" and class_.startswith("0x03")
