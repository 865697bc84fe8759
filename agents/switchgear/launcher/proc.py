"""What /proc says about processes, and how a process group is ended for good."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from switchgear.core.process import start_ticks, stat_fields

__all__ = ["group_members", "kill_group", "start_ticks", "state"]

_POLL_S = 0.005


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
