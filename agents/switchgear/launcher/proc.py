"""What /proc says about processes, and how a process group is ended for good."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from switchgear.core.process import start_ticks, stat_fields

__all__ = [
    "Sample",
    "catches",
    "group_members",
    "held_threads",
    "kill_group",
    "oom_kills",
    "sample",
    "start_ticks",
    "state",
    "writes_below",
]

_POLL_S = 0.005
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
#: A process with more threads or open files than this is not looked through on the loop.
_ENTRIES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Sample:
    """A process at one time. state: letter as in proc(5), of its main thread. cpu_ns: that all its threads have used, also ended ones."""

    state: str
    cpu_ns: int


def sample(pid: int) -> Sample | None:
    """None when there is no such process."""
    fields = stat_fields(pid)
    return None if fields is None else Sample(fields[0], (int(fields[11]) + int(fields[12])) * _TICK_NS)


def held_threads(pid: int) -> dict[int, int]:
    """Its threads in state D, each with how often it has been taken off a processor so far: the same number later is the same wait."""
    held = {}
    for entry in islice(_entries(f"/proc/{pid}/task"), _ENTRIES_MAX):
        fields = stat_fields(int(entry))
        if fields is not None and fields[0] == "D":
            status = _status(f"/proc/{pid}/task/{entry}/status")
            held[int(entry)] = sum(
                int(status.get(f"{kind}_ctxt_switches", 0)) for kind in ("voluntary", "nonvoluntary")
            )
    return held


def catches(pid: int, number: int) -> bool:
    """Whether it has a handler for that signal: without one most signals end a process."""
    return _in_mask(pid, "SigCgt", number)


def blocks(pid: int, number: int) -> bool:
    """Whether its main thread blocks that signal, as it does while the handler runs."""
    return _in_mask(pid, "SigBlk", number)


def _in_mask(pid: int, mask: str, number: int) -> bool:
    return bool(int(_status(f"/proc/{pid}/status").get(mask, "0"), 16) >> (number - 1) & 1)


def oom_kills() -> int:
    """Processes that the kernel of this machine has killed for want of memory since it booted, in whatever container."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def writes_below(pid: int, directory: Path) -> bool:
    """Whether it has a file in that directory open for writing. Asks no file system, so it cannot wait for a dead one."""
    for entry in islice(_entries(f"/proc/{pid}/fd"), _ENTRIES_MAX):
        try:
            if not Path(f"/proc/{pid}/fd/{entry}").readlink().is_relative_to(directory):
                continue
        except OSError:
            continue
        flags = int(_status(f"/proc/{pid}/fdinfo/{entry}").get("flags", "0"), 8)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            return True
    return False


def _entries(path: str) -> list[str]:
    try:
        return os.listdir(path)  # noqa: PTH208  # names, and quickly
    except OSError:
        return []


def _status(path: str) -> dict[str, str]:
    """Lines of the form `name: value`; empty when the process is gone."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def state(pid: int) -> str | None:
    """One letter as in proc(5): R, S, D (cannot be killed now), T (stopped), Z (ended, not reaped); None when it is gone."""
    fields = stat_fields(pid)
    return None if fields is None else fields[0]


def group_members(group: int) -> list[int]:
    """Living processes of a process group; those that only wait to be reaped do not count."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = stat_fields(int(entry.name))
            if fields is not None and fields[0] not in "ZX" and int(fields[2]) == group:
                members.append(int(entry.name))
    return members


async def kill_group(leader: int, ticks: int, timeout_s: float = 5.0) -> bool:
    """SIGKILL to the group that a leader made, until no member lives; False when some outlived the timeout (D state).

    leader, ticks: pid and start time of the leader. It may be dead already: while members live, the kernel gives its number to
    nobody; a leader with another start time means that the group has long gone.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        now_ticks = start_ticks(leader)
        if now_ticks is not None and now_ticks != ticks:
            return True
        if not group_members(leader):
            return True
        if time.monotonic() > deadline:
            return False
        try:
            os.killpg(leader, signal.SIGKILL)
        except ProcessLookupError:
            pass
        await asyncio.sleep(_POLL_S)
