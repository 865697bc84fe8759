"""Processes by pid and start time: a pid alone may belong to somebody else by now."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

_PROC = Path("/proc")


def boot_id() -> str:
    """Changes with each boot of the machine: start times and pids of another boot mean nothing."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks after boot; None when there is none or only its zombie."""
    try:
        # The name in field 2 may hold spaces and brackets; the fields are counted from behind it.
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def find_by_arguments(arguments: Sequence[str]) -> Iterator[int]:
    """Pids of the processes whose command line ends with exactly these arguments."""
    wanted = [os.fsencode(argument) for argument in arguments]
    for folder in _PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            line = (folder / "cmdline").read_bytes().split(b"\0")[:-1]
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if line[-len(wanted) :] == wanted:
            yield int(folder.name)
