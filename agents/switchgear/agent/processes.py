"""Processes by their command line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

_PROC = Path("/proc")


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
