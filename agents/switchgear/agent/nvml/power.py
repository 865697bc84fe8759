"""Whether the kernel has put a GPU to sleep: any NVML call would wake it, and hold it awake."""

from __future__ import annotations

import os
from pathlib import Path

from switchgear.agent.sources.gpu import normal_pci


class RuntimePower:
    """`power/runtime_status` of one PCI device (kernel documentation, ABI/testing/sysfs-devices-power), by a file that stays open."""

    def __init__(self, pci_bus_id: str, sysfs: Path = Path("/sys")) -> None:
        self._path = sysfs / "bus/pci/devices" / f"{normal_pci(pci_bus_id)}.0" / "power/runtime_status"
        self._fd = -1

    def suspended(self) -> bool:
        """False where the kernel does not say."""
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(self._fd, 16, 0).startswith(b"suspend")
        except OSError:  # no such file, or the device is gone
            self.close()
            return False

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
