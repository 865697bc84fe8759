"""Mounted file systems: size, free space, whether they can be written; one whose server is gone costs its own series alone."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from switchgear.agent.events import Events, Finding
from switchgear.agent.readings import Kind, Reading, SeriesKey, known, series, unknown
from switchgear.agent.sources.kernel_files import PROCFS, table_once
from switchgear.agent.sources.mount_probes import Answer, MountProbes
from switchgear.core.clock import Clock

SOURCE = "filesystem"
HANGS, ANSWERS = "MOUNT_HANGS", "MOUNT_ANSWERS"
#: More than a GPU node has; bounds the dictionary of an epoch.
FILESYSTEMS_MAX = 64
#: A loaded file server answers late; what has not answered after this long holds the processes that touch it as well.
HANGS_S = 10.0
# Those of the kernel's own, and of containers; asking an automounter would mount what it stands for.
_NOT_TYPES = frozenset(
    (
        *("autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs"),
        *("erofs", "fuse.lxcfs", "fusectl", "hugetlbfs", "iso9660", "mqueue", "nsfs", "overlay", "proc", "procfs"),
        *("pstore", "rpc_pipefs", "securityfs", "selinuxfs", "squashfs", "sysfs", "tracefs"),
    )
)
# But shared memory, which data loaders and NCCL fill.
_NOT_AT = re.compile(
    r"(?!/dev/shm$)/(dev|proc|run/credentials/.+|run/netns|sys|var/lib/(docker|containerd|containers/storage)/.+)($|/)"
)
# Volumes of pods. They come and go, and would fill the dictionary of an epoch: those with a server are asked, and have no series.
_OF_PODS = re.compile(r"/var/lib/kubelet/pods/")
_WITH_SERVER = re.compile(r"(nfs4?|cifs|smb3|lustre|ceph|beegfs|gpfs|wekafs|9p|glusterfs|panfs|afs|fuse\..+)$")
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """device: what is mounted, `server:/export` for NFS. number: major:minor, the same for all places where it is mounted.

    passing: a volume of a pod.
    """

    device: str
    mountpoint: str
    fstype: str
    number: str
    readonly: bool
    passing: bool


def mounts(table: str) -> list[Mount]:
    """What `/proc/self/mountinfo` says, one for each file system, at its shortest path; at most FILESYSTEMS_MAX."""
    # Of several at one place the last one is seen.
    found = dict[str, Mount]()
    for line in table.splitlines():
        before, _, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if len(left) < 6 or len(right) < 3:
            continue
        fstype, device, options = right[0], _unescaped(right[1]), right[2]
        mountpoint = _unescaped(left[4])
        passing = _OF_PODS.match(mountpoint) is not None
        if fstype in _NOT_TYPES or _NOT_AT.match(mountpoint) or (passing and not _WITH_SERVER.match(fstype)):
            found.pop(mountpoint, None)
            continue
        # Of the mount here, or of the file system as a whole: an error remounts it read-only.
        readonly = "ro" in left[5].split(",") or "ro" in options.split(",")
        found[mountpoint] = Mount(device, mountpoint, fstype, left[2], readonly, passing)
    by_number = dict[str, Mount]()
    for mount in sorted(found.values(), key=lambda mount: len(mount.mountpoint)):
        by_number.setdefault(mount.number, mount)
    return list(by_number.values())[:FILESYSTEMS_MAX]


class FilesystemSource:
    """Asks each file system from a thread of its own where that is needed, and tells of those that hang."""

    name = "filesystem"
    #: They fill over minutes.
    period_s = 15.0

    def __init__(self, events: Events, clock: Clock, probes: MountProbes | None = None, procfs: Path = PROCFS) -> None:
        self._events = events
        self._clock = clock
        self._probes = probes or MountProbes()
        self._table = procfs / "self/mountinfo"
        # Told and not yet cleared, by an earlier agent perhaps.
        self._hanging = set(events.cursor(SOURCE).split("\n")) - {""}

    def sample(self) -> list[Reading]:
        present = mounts(table_once(self._table).decode(errors="replace"))
        answers = self._probes.ask([mount.mountpoint for mount in present], self._clock.monotonic_s)
        self._tell(present, answers)
        return [
            reading
            for mount, answer in zip(present, answers, strict=True)
            if not mount.passing
            for reading in _readings(mount, answer)
        ]

    def _tell(self, present: Sequence[Mount], answers: Sequence[Answer]) -> None:
        mountpoints = {mount.mountpoint for mount in present}
        for mountpoint in sorted(self._hanging - mountpoints):
            self._change(mountpoint, ANSWERS, f"{mountpoint} is no longer mounted", {})
        for mount, answer in zip(present, answers, strict=True):
            detail = {"mountpoint": mount.mountpoint, "device": mount.device, "fstype": mount.fstype}
            if answer.waits_s >= HANGS_S and mount.mountpoint not in self._hanging:
                text = (
                    f"{mount.fstype} {mount.device} at {mount.mountpoint} has not answered for {answer.waits_s:.0f} s"
                )
                self._change(mount.mountpoint, HANGS, text, detail)
            elif answer.stat is not None and mount.mountpoint in self._hanging:
                text = f"{mount.fstype} {mount.device} at {mount.mountpoint} answers again"
                self._change(mount.mountpoint, ANSWERS, text, detail)

    def _change(self, mountpoint: str, kind: str, text: str, detail: dict[str, str]) -> None:
        (self._hanging.add if kind == HANGS else self._hanging.discard)(mountpoint)
        self._events.tell(SOURCE, Finding(kind, text, detail=detail), cursor="\n".join(sorted(self._hanging)))


def _readings(mount: Mount, answer: Answer) -> list[Reading]:
    labels = (("device", mount.device), ("mountpoint", mount.mountpoint), ("fstype", mount.fstype))
    sizes = [_key(name, "bytes", labels) for name in ("size_bytes", "free_bytes", "avail_bytes")]
    files = [_key(name, "", labels) for name in ("files", "files_free")]
    readonly = known(_key("readonly", "", labels), mount.readonly)
    error = known(_key("device_error", "", labels), answer.stat is None)
    if answer.stat is None:
        return [*(unknown(key, answer.reason) for key in (*sizes, *files)), readonly, error]
    stat = answer.stat
    blocks = (stat.f_blocks, stat.f_bfree, stat.f_bavail)
    return [
        *(known(key, count * stat.f_frsize) for key, count in zip(sizes, blocks, strict=True)),
        *(known(key, count) for key, count in zip(files, (stat.f_files, stat.f_ffree), strict=True)),
        readonly,
        error,
    ]


def _key(metric: str, unit: str, labels: tuple[tuple[str, str], ...]) -> SeriesKey:
    return series(f"node_filesystem_{metric}", unit, Kind.GAUGE, *labels)


def _unescaped(text: str) -> str:
    """Spaces and the like are octal in the table."""
    return os.fsencode(_ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)).decode(errors="replace")
