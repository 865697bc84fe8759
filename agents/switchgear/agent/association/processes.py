"""What processes bear of their jobs, read from /proc: a bounded amount of each, and once in its life."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from switchgear.agent.association.identity import Marks, marks_of

_ENVIRONMENT_BYTES_MAX = 64 * 1024
_CGROUP_BYTES_MAX = 16 * 1024
#: A rank is a grandchild of its launcher; wrappers may stand between.
_ANCESTORS_MAX = 16


class _Born(NamedTuple):
    """pid with start_ticks names a process as long as the machine is up."""

    pid: int
    start_ticks: int


class Processes:
    """Looks processes up; not for several threads at once. A read may hang with the process, so its worker should have nothing else to do.

    launchers: job of each launcher of ours by its pid, now. A forked rank has the environment of the process that it was forked of,
    so its ancestors say more.
    """

    def __init__(self, launchers: Callable[[], Mapping[int, str]], proc: Path = Path("/proc")) -> None:
        self._launchers = launchers
        self._proc = proc
        self._known: dict[_Born, Marks] = {}

    def marks(self, pids: Iterable[int]) -> dict[int, Marks]:
        """Of those that live; what may not be read is empty. Whoever is not asked for is forgotten."""
        found = dict[_Born, Marks]()
        for pid in pids:
            stat = self._stat(pid)
            if stat is None:
                continue
            born = _Born(pid, stat[1])
            marks = self._known.get(born) or self._read(born, stat[0])
            if marks is not None:
                found[born] = marks
        self._known = found
        return {born.pid: marks for born, marks in found.items()}

    def _read(self, born: _Born, parent: int) -> Marks | None:
        folder = self._proc / str(born.pid)
        cgroup = _head(folder / "cgroup", _CGROUP_BYTES_MAX).decode(errors="replace")
        marks = marks_of(cgroup, _head(folder / "environ", _ENVIRONMENT_BYTES_MAX))
        stat = self._stat(born.pid)
        if stat is None or stat[1] != born.start_ticks:  # what was read may be of another one with the same pid
            return None
        return marks if marks.job else replace(marks, job=self._ancestors_job(parent))

    def _ancestors_job(self, pid: int) -> str:
        launchers = self._launchers()
        for _ in range(_ANCESTORS_MAX):
            if not launchers or pid <= 1:
                return ""
            if pid in launchers:
                return launchers[pid]
            stat = self._stat(pid)
            pid = stat[0] if stat else 0
        return ""

    def _stat(self, pid: int) -> tuple[int, int] | None:
        """Parent and start time in clock ticks since boot (proc(5)); None when there is no such process."""
        text = _head(self._proc / str(pid) / "stat", 4096).decode(errors="replace")
        fields = text.rpartition(")")[2].split()
        return (int(fields[1]), int(fields[19])) if len(fields) > 19 else None


def _head(path: Path, size: int) -> bytes:
    """The first bytes of a file; empty when it is not there or not for us."""
    try:
        with path.open("rb", buffering=0) as file:
            return file.read(size)
    except OSError:
        return b""
