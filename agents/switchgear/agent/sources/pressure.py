"""Pressure stall information: how long tasks waited for CPU, memory, disks or interrupts, under node_exporter's names."""

from __future__ import annotations

import re
from pathlib import Path

from switchgear.agent.readings import Kind, Reading, known, series
from switchgear.agent.sources.kernel_files import PROCFS, KernelFiles

# `some`: at least one task waited; `full`: all of them. The kernel gives no `full` of the CPU, and no `some` of interrupts.
_STALLS = (
    ("cpu", "some", "cpu_waiting"),
    ("io", "some", "io_waiting"),
    ("io", "full", "io_stalled"),
    ("memory", "some", "memory_waiting"),
    ("memory", "full", "memory_stalled"),
    ("irq", "full", "irq_stalled"),
)
_TOTAL = re.compile(r"^(some|full) .*total=(\d+)", re.MULTILINE)
_MICROSECOND_S = 1e-6


class PressureSource:
    """Read at every tick: it is the first that tells that a node is short of something. A kernel without it has no series."""

    name = "pressure"
    period_s = 0.0

    def __init__(self, procfs: Path = PROCFS) -> None:
        self._files = KernelFiles()
        self._paths = {
            resource: path
            for resource in dict.fromkeys(resource for resource, _, _ in _STALLS)
            if _readable(self._files, path := f"{procfs}/pressure/{resource}")
        }
        self._keys = {
            (resource, share): series(f"node_pressure_{name}_seconds_total", "seconds", Kind.COUNTER)
            for resource, share, name in _STALLS
        }

    def sample(self) -> list[Reading]:
        readings = list[Reading]()
        for resource, path in self._paths.items():
            for share, microseconds in _TOTAL.findall(self._files.read(path).decode()):
                key = self._keys.get((resource, share))
                if key is not None:
                    readings.append(known(key, int(microseconds) * _MICROSECOND_S))
        return readings


def _readable(files: KernelFiles, path: str) -> bool:
    try:
        files.read(path)
    except OSError:  # not built in, or switched off with psi=0
        return False
    return True
