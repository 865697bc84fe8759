"""Network interfaces that do not exist: a small /proc and /sys for the agent's own network source to read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from switchgear.sim.faults import Scheduled
from switchgear.sim.kernel_lines import nic_name, nic_pci
from switchgear.sim.workloads import Cycle, Rate

#: Of a 400 Gbit/s port, in one direction.
BYTES_PER_S = 50e9
_MTU_BYTES = 4_096
#: Between two looks at the time: who reads does so once a second, and a shorter bounce is in the driver's count.
_STEP_S = 0.5
_HEADER = ("Inter-|   Receive |  Transmit", " face |bytes packets errs drop")


class SimulatedNics:
    """Writes the files as they would be at a given time; `flaps` are the faults of all of them.

    The files keep their place and length, since who reads them keeps them open.
    """

    def __init__(self, count: int, folder: Path, cycle: Cycle, flaps: Sequence[Scheduled]) -> None:
        self.procfs, self.sysfs = folder / "proc", folder / "sys"
        self._cycle = cycle
        self._flaps = flaps
        self._written = dict[Path, str]()
        self._next_s = 0.0
        self._names = [nic_name(index) for index in range(count)]
        (self.procfs / "net").mkdir(parents=True, exist_ok=True)
        for index, name in enumerate(self._names):
            interface = self.sysfs / "class/net" / name
            device = self.sysfs / "devices" / nic_pci(index)
            interface.mkdir(parents=True, exist_ok=True)
            (device / "driver").mkdir(parents=True, exist_ok=True)
            if not (interface / "device").is_symlink():
                (interface / "device").symlink_to(device.resolve())
            for file, content in (("flags", "0x1003\n"), ("type", "1\n"), ("speed", "400000\n")):
                (interface / file).write_text(content)

    def write(self, now_s: float) -> None:
        """now_s: since the simulation's start."""
        if self._next_s - _STEP_S <= now_s < self._next_s:
            return
        self._next_s = now_s + _STEP_S
        rows = list(_HEADER)
        for index, name in enumerate(self._names):
            downs = self._downs(index, now_s)
            is_down = any(begin_s <= now_s < end_s for begin_s, end_s in downs)
            interface = self.sysfs / "class/net" / name
            self._put(interface / "operstate", "down" if is_down else "up", 8)
            self._put(interface / "carrier_down_count", str(len(downs)), 12)
            self._put(interface / "carrier_changes", str(2 * len(downs) - is_down), 12)
            moved = self._moved_bytes(now_s, downs)
            columns = [moved, moved // _MTU_BYTES, *6 * [0], moved, moved // _MTU_BYTES, *6 * [0]]
            rows.append(f"{name:>10}: " + " ".join(f"{column:>20}" for column in columns))
        self._put(self.procfs / "net/dev", "\n".join(rows), 0)

    def _downs(self, index: int, now_s: float) -> list[tuple[float, float]]:
        """Begin and end of each time without a link that has begun."""
        return [
            (begin_s, begin_s + flap.fault.for_s)
            for flap in self._flaps
            if flap.fault.target == index
            for turn in range(flap.fault.times)
            if (begin_s := flap.at_s + 2 * turn * flap.fault.for_s) <= now_s
        ]

    def _moved_bytes(self, now_s: float, downs: Sequence[tuple[float, float]]) -> int:
        """Of the ranks' exchange, in one direction, as long as there was a link."""
        missed = sum(self._shares(begin_s, min(end_s, now_s)) for begin_s, end_s in downs)
        return int((self._shares(0.0, now_s) - missed) * BYTES_PER_S)

    def _shares(self, begin_s: float, end_s: float) -> float:
        return self._cycle.integral(end_s)[Rate.LINK] - self._cycle.integral(begin_s)[Rate.LINK]

    def _put(self, path: Path, text: str, width: int) -> None:
        if self._written.get(path) == text:
            return
        self._written[path] = text
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(fd, text.ljust(width).encode() + b"\n", 0)
        finally:
            os.close(fd)
