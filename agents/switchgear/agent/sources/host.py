"""CPU, memory, disks and file systems of the host, under node_exporter's names."""

from __future__ import annotations

import os
import re

import psutil

from switchgear.agent.readings import Kind, Reading, known, series, unknown

#: More than a GPU node has of either; bounds the dictionary of an epoch.
DISKS_MAX = 64
FILESYSTEMS_MAX = 64
_NO_DISK = re.compile(r"(loop|ram|zram|sr|fd)\d")
_MEMORY = (
    ("MemTotal", "total"),
    ("MemAvailable", "available"),
    ("MemFree", "free"),
    ("Buffers", "buffers"),
    ("Cached", "cached"),
)
_DISK = (
    ("read_bytes_total", "read_bytes", 1.0, "bytes"),
    ("written_bytes_total", "write_bytes", 1.0, "bytes"),
    ("reads_completed_total", "read_count", 1.0, ""),
    ("writes_completed_total", "write_count", 1.0, ""),
    ("io_time_seconds_total", "busy_time", 1e-3, "seconds"),
)


class HostSource:
    """CPU seconds by mode (summed over the CPUs: a label for each would make 1,000 series of one node), load, memory, disks."""

    name = "host"
    period_s = 0.0

    def sample(self) -> list[Reading]:
        return [*_cpu(), *_memory(), *_disks()]


def _gauge(metric: str, unit: str, value: float) -> Reading:
    return known(series(metric, unit, Kind.GAUGE), value)


def _cpu() -> list[Reading]:
    times = psutil.cpu_times()._asdict()
    # The kernel books guest time under user and nice as well.
    readings = [
        known(series("node_cpu_seconds_total", "seconds", Kind.COUNTER, ("mode", mode)), value)
        for mode, value in times.items()
        if not mode.startswith("guest")
    ]
    for minutes, value in zip((1, 5, 15), os.getloadavg(), strict=True):
        readings.append(_gauge(f"node_load{minutes}", "", value))
    readings.append(_gauge("node_boot_time_seconds", "seconds", psutil.boot_time()))
    return readings


def _memory() -> list[Reading]:
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    readings = [_gauge(f"node_memory_{name}_bytes", "bytes", getattr(memory, field)) for name, field in _MEMORY]
    readings.append(_gauge("node_memory_SwapTotal_bytes", "bytes", swap.total))
    readings.append(_gauge("node_memory_SwapFree_bytes", "bytes", swap.free))
    return readings


def _disks() -> list[Reading]:
    counters = psutil.disk_io_counters(perdisk=True, nowrap=False) or {}
    disks = sorted(name for name in counters if not _NO_DISK.match(name))
    return [
        known(
            series(f"node_disk_{metric}", unit, Kind.COUNTER, ("device", disk)), getattr(counters[disk], field) * scale
        )
        for disk in disks[:DISKS_MAX]
        for metric, field, scale, unit in _DISK
    ]


class FilesystemSource:
    """Size and free space of mounted file systems. Apart from the host: statvfs hangs where a server is gone."""

    name = "filesystem"
    #: They fill over minutes.
    period_s = 15.0

    def sample(self) -> list[Reading]:
        # A device that is mounted many times (bind mounts of containers) counts once, at its shortest path.
        mounts = dict[str, tuple[str, str]]()
        for part in sorted(psutil.disk_partitions(), key=lambda part: len(part.mountpoint)):
            mounts.setdefault(part.device, (part.mountpoint, part.fstype))
        readings = list[Reading]()
        for device, (mountpoint, fstype) in list(mounts.items())[:FILESYSTEMS_MAX]:
            labels = (("device", device), ("mountpoint", mountpoint), ("fstype", fstype))
            size = series("node_filesystem_size_bytes", "bytes", Kind.GAUGE, *labels)
            available = series("node_filesystem_avail_bytes", "bytes", Kind.GAUGE, *labels)
            try:
                stat = os.statvfs(mountpoint)
            except OSError as error:
                readings += [unknown(key, f"statvfs: {error.strerror}") for key in (size, available)]
            else:
                readings.append(known(size, stat.f_blocks * stat.f_frsize))
                readings.append(known(available, stat.f_bavail * stat.f_frsize))
        return readings
