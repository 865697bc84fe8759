"""Tables of the kernel that fill up, memory and disks that fail: counts that change seldom, under node_exporter's names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from switchgear.agent.readings import Kind, Reading, known, series
from switchgear.agent.sources.kernel_files import PROCFS, SYSFS, names, number, word

#: Memory controllers and channels, arrays, NVMe controllers: more than a node has of each; bounds the dictionary of an epoch.
CHANNELS_MAX = 96
ARRAYS_MAX = 16
CONTROLLERS_MAX = 32
_ARRAY_STATES = ("active", "inactive", "recovering", "resync", "check")
_NVME_FIELDS = (
    ("firmware_revision", "firmware_rev"),
    ("model", "model"),
    ("serial", "serial"),
    ("state", "state"),
    ("cntlid", "cntlid"),
)


class KernelTablesSource:
    """File handles, tracked connections, hung tasks, ECC of the main memory, software RAID, NVMe controllers."""

    name = "kernel-tables"
    period_s = 15.0

    def __init__(self, procfs: Path = PROCFS, sysfs: Path = SYSFS) -> None:
        self._procfs = procfs
        self._sysfs = sysfs

    def sample(self) -> list[Reading]:
        return [
            *_tables(self._procfs / "sys"),
            *_memory_errors(self._sysfs / "devices/system/edac/mc"),
            *_arrays(self._sysfs / "block"),
            *_nvme(self._sysfs / "class/nvme"),
        ]


def _tables(sysctl: Path) -> Iterator[Reading]:
    handles = word(sysctl / "fs/file-nr").split()
    if len(handles) == 3:
        yield known(series("node_filefd_allocated", "", Kind.GAUGE), int(handles[0]))
        yield known(series("node_filefd_maximum", "", Kind.GAUGE), int(handles[2]))
    for metric, file, kind in (
        ("node_nf_conntrack_entries", "net/netfilter/nf_conntrack_count", Kind.GAUGE),
        ("node_nf_conntrack_entries_limit", "net/netfilter/nf_conntrack_max", Kind.GAUGE),
        ("node_kernel_hung_tasks_total", "kernel/hung_task_detect_count", Kind.COUNTER),
    ):
        value = number(sysctl / file)
        if value is not None:
            yield known(series(metric, "", kind), value)


def _memory_errors(root: Path) -> Iterator[Reading]:
    """Errors by controller and by channel, which names the module to replace."""
    channels = 0
    for controller in _numbered(root, "mc"):
        label = ("controller", controller)
        folder = root / f"mc{controller}"
        for word_, file in (("correctable", "ce"), ("uncorrectable", "ue")):
            value = number(folder / f"{file}_count")
            if value is not None:
                yield known(series(f"node_edac_{word_}_errors_total", "", Kind.COUNTER, label), value)
        for row in _numbered(folder, "csrow"):
            for channel in _numbered(folder / f"csrow{row}", "ch", "_ce_count"):
                channels += 1
                if channels > CHANNELS_MAX:
                    return
                yield from _channel(folder / f"csrow{row}", channel, (label, ("csrow", row)))


def _channel(folder: Path, channel: str, labels: tuple[tuple[str, str], ...]) -> Iterator[Reading]:
    name = word(folder / f"ch{channel}_dimm_label") or "unknown"
    name = name.replace("#", "").replace("csrow", "_csrow").replace("channel", "_channel")
    for word_, file in (("correctable", "ce"), ("uncorrectable", "ue")):
        value = number(folder / f"ch{channel}_{file}_count")
        if value is not None:
            metric = f"node_edac_channel_{word_}_errors_total"
            yield known(series(metric, "", Kind.COUNTER, *labels, ("channel", channel), ("dimm_label", name)), value)


def _arrays(block: Path) -> Iterator[Reading]:
    for index in _numbered(block, "md")[:ARRAYS_MAX]:
        md = block / f"md{index}" / "md"
        device = ("device", f"md{index}")
        members = [word(md / name / "state") for name in names(md) if name.startswith("dev-")]
        required = number(md / "raid_disks")
        if required is None:
            continue
        for state, of_member in (("active", "in_sync"), ("failed", "faulty"), ("spare", "spare")):
            count = sum(of_member in member.split(",") for member in members)
            yield known(series("node_md_disks", "", Kind.GAUGE, device, ("state", state)), count)
        yield known(series("node_md_disks_required", "", Kind.GAUGE, device), required)
        degraded = number(md / "degraded")
        if degraded is not None:
            yield known(series("node_md_degraded", "", Kind.GAUGE, device), degraded)
        current = _array_state(word(md / "array_state"), word(md / "sync_action"))
        for state in _ARRAY_STATES:
            yield known(series("node_md_state", "", Kind.GAUGE, device, ("state", state)), int(state == current))


def _array_state(array: str, action: str) -> str:
    """One of `_ARRAY_STATES`; what goes on in the array outranks that it is active."""
    doing = {"recover": "recovering", "resync": "resync", "check": "check", "repair": "check"}.get(action)
    return doing or ("inactive" if array in ("", "clear", "inactive") else "active")


def _nvme(root: Path) -> Iterator[Reading]:
    for index in _numbered(root, "nvme")[:CONTROLLERS_MAX]:
        folder = root / f"nvme{index}"
        labels = ((name, word(folder / file)) for name, file in _NVME_FIELDS)
        yield known(series("node_nvme_info", "", Kind.GAUGE, ("device", f"nvme{index}"), *labels), 1)


def _numbered(folder: Path, prefix: str, suffix: str = "") -> list[str]:
    """The numbers of the entries that are named `prefix`N`suffix`, in order."""
    pattern = re.compile(rf"{prefix}(\d+){suffix}$")
    return sorted((match[1] for name in names(folder) if (match := pattern.match(name))), key=int)
