"""CPU, memory, disks and the kernel's own counts of the host, under node_exporter's names."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from switchgear.agent.readings import Kind, Reading, known, series
from switchgear.agent.sources.kernel_files import PROCFS, KernelFiles

#: More than a GPU node has; bounds the dictionary of an epoch.
DISKS_MAX = 64
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_SECTOR_BYTES = 512
_KIBIBYTE = 1024
# The kernel books the time of guests, which comes behind, under user and nice as well.
_CPU_MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_STAT_COUNTERS = {
    "ctxt": "node_context_switches_total",
    "processes": "node_forks_total",
}
_STAT_GAUGES = {
    "procs_running": "node_procs_running",
    "procs_blocked": "node_procs_blocked",
}
_MEMORY = (
    *("MemTotal", "MemFree", "MemAvailable", "Buffers", "Cached", "SwapTotal", "SwapFree", "Dirty", "Writeback"),
    *("Slab", "SReclaimable", "SUnreclaim", "Shmem", "AnonPages", "Mlocked", "PageTables", "HugePages_Total"),
    *("HugePages_Free", "HardwareCorrupted"),
)
_VMSTAT = ("oom_kill", "pgfault", "pgmajfault", "pgpgin", "pgpgout", "pswpin", "pswpout")
_NO_DISK = re.compile(r"(ram|loop|zram|fd|sr)\d+$")
_PARTITION = re.compile(r"((h|s|v|xv)d[a-z]+|nvme\d+n\d+p|mmcblk\d+p)\d+$")
# Column of /proc/diskstats behind the name, and what a unit of it is.
_DISK = (
    ("reads_completed_total", 0, 1.0, ""),
    ("read_bytes_total", 2, _SECTOR_BYTES, "bytes"),
    ("read_time_seconds_total", 3, 1e-3, "seconds"),
    ("writes_completed_total", 4, 1.0, ""),
    ("written_bytes_total", 6, _SECTOR_BYTES, "bytes"),
    ("write_time_seconds_total", 7, 1e-3, "seconds"),
    ("io_time_seconds_total", 9, 1e-3, "seconds"),
    ("io_time_weighted_seconds_total", 10, 1e-3, "seconds"),
)


class HostSource:
    """CPU seconds by mode (summed over the CPUs: a label for each would make 1,000 series of one node), load, memory, disks.

    Every few seconds: on a machine of 200 CPUs the kernel takes a millisecond to add up its statistics.
    """

    name = "host"
    period_s = 5.0

    def __init__(self, procfs: Path = PROCFS) -> None:
        self._procfs = str(procfs)
        self._files = KernelFiles()
        uname = os.uname()
        self._uname = series(
            "node_uname_info",
            "",
            Kind.GAUGE,
            ("sysname", uname.sysname),
            ("release", uname.release),
            ("version", uname.version),
            ("machine", uname.machine),
            ("nodename", uname.nodename),
            ("domainname", _domain(procfs)),
        )

    def sample(self) -> list[Reading]:
        return [
            *_stat(self._read("stat")),
            *_load(self._read("loadavg")),
            *_memory(self._read("meminfo")),
            *_vmstat(self._read("vmstat")),
            *_disks(self._read("diskstats")),
            known(series("node_time_seconds", "seconds", Kind.GAUGE), time.time()),
            known(self._uname, 1),
        ]

    def _read(self, file: str) -> str:
        """ "" where it cannot be read, so that a kernel without one of them still tells the others."""
        try:
            return self._files.table(f"{self._procfs}/{file}")
        except OSError:
            return ""


def _stat(text: str) -> Iterator[Reading]:
    first, _, rest = text.partition("\n")
    for mode, ticks in zip(_CPU_MODES, first.split()[1:], strict=False):
        key = series("node_cpu_seconds_total", "seconds", Kind.COUNTER, ("mode", mode))
        yield known(key, int(ticks) / _TICKS_PER_SECOND)
    # What follows the CPUs and the long line of interrupts.
    for line in rest[max(0, rest.rfind("\nctxt ")) :].splitlines():
        name, _, value = line.partition(" ")
        if name in _STAT_COUNTERS:
            yield known(series(_STAT_COUNTERS[name], "", Kind.COUNTER), int(value))
        elif name in _STAT_GAUGES:
            yield known(series(_STAT_GAUGES[name], "", Kind.GAUGE), int(value))
        elif name == "btime":
            yield known(series("node_boot_time_seconds", "seconds", Kind.GAUGE), int(value))


def _load(text: str) -> Iterator[Reading]:
    for minutes, value in zip((1, 5, 15), text.split(), strict=False):
        yield known(series(f"node_load{minutes}", "", Kind.GAUGE), float(value))


def _memory(text: str) -> Iterator[Reading]:
    rows = _rows(text)
    for name in _MEMORY:
        amount = rows.get(f"{name}:")
        if amount is None:
            continue
        number, _, unit = amount.partition(" ")
        if unit == "kB":
            yield known(series(f"node_memory_{name}_bytes", "bytes", Kind.GAUGE), int(number) * _KIBIBYTE)
        else:
            yield known(series(f"node_memory_{name}", "", Kind.GAUGE), int(number))


def _vmstat(text: str) -> Iterator[Reading]:
    rows = _rows(text)
    for name in _VMSTAT:
        if name in rows:
            yield known(series(f"node_vmstat_{name}", "", Kind.COUNTER), int(rows[name]))


def _rows(text: str) -> dict[str, str]:
    """The rest of each line by its first word."""
    rows = dict[str, str]()
    for line in text.splitlines():
        name, _, rest = line.partition(" ")
        rows[name] = rest.strip()
    return rows


def _disks(text: str) -> Iterator[Reading]:
    disks = 0
    for line in text.splitlines():
        _, _, name, *columns = line.split()
        if _NO_DISK.match(name) or _PARTITION.match(name) or disks == DISKS_MAX:
            continue
        disks += 1
        for metric, column, scale, unit in _DISK:
            key = series(f"node_disk_{metric}", unit, Kind.COUNTER, ("device", name))
            yield known(key, int(columns[column]) * scale)


def _domain(procfs: Path) -> str:
    try:
        return (procfs / "sys/kernel/domainname").read_text().strip()
    except OSError:
        return "(none)"
