"""Processes in uninterruptible sleep, which nothing ends but what they wait for: a dead file server, a failing disk, a hung driver."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from switchgear.agent.readings import Kind, Reading, SeriesKey, known, series
from switchgear.agent.sources.kernel_files import PROCFS, names, read_once, word

METRIC = "switchgear_blocked_processes"
BY_PLACE = "switchgear_blocked_processes_by_place"
#: For people who read `/metrics`.
WHAT = {
    METRIC: "Processes that wait uninterruptibly, and did so when they were looked at before",
    BY_PLACE: "Those by the kernel function that they wait in",
}
#: Looked at in one sample, some 20 us each; with more processes than that the next sample goes on behind them.
LOOKS_MAX = 256
#: Places in the kernel that get a series of their own in the life of an agent; the rest is `other`.
PLACES_MAX = 16
OTHER = "other"
_KTHREADD = b"2"


class BlockedProcessesSource:
    """How many processes wait uninterruptibly and did so at the look before, by the kernel function that they wait in.

    A short wait for a disk is normal, so one that ends between two looks does not count. Looked at are the main threads of processes;
    the kernel's own threads, thousands on a large machine, are left to its log.
    """

    name = "blocked"
    period_s = 15.0

    def __init__(self, procfs: Path = PROCFS) -> None:
        self._procfs = str(procfs)
        self._after = 0
        #: Pids that waited when they were looked at last.
        self._waiting = set[int]()
        self._blocked = dict[int, str]()
        self._places = dict[str, None]()
        self._kernel_threads = set[int]()

    def sample(self) -> list[Reading]:
        pids = sorted(int(name) for name in names(self._procfs) if name.isdigit())
        self._forget_all_but(pids)
        later = [pid for pid in pids if pid > self._after and pid not in self._kernel_threads]
        looked_at = later[:LOOKS_MAX]
        self._after = looked_at[-1] if len(looked_at) < len(later) else 0
        for pid in looked_at:
            self._look(pid)
        counts = Counter(self._blocked.values())
        return [
            known(series(METRIC, "", Kind.GAUGE), len(self._blocked)),
            *(known(_key(place), counts.get(place, 0)) for place in self._places),
        ]

    def _forget_all_but(self, pids: list[int]) -> None:
        for pid in set(self._blocked).difference(pids):
            del self._blocked[pid]
        self._waiting.intersection_update(pids)
        self._kernel_threads.intersection_update(pids)

    def _look(self, pid: int) -> None:
        if not self._waits(pid):
            self._waiting.discard(pid)
            self._blocked.pop(pid, None)
        elif pid in self._waiting:
            self._blocked[pid] = self._place(pid)
        else:
            self._waiting.add(pid)

    def _waits(self, pid: int) -> bool:
        try:
            stat = read_once(f"{self._procfs}/{pid}/stat")
        except OSError:
            return False
        # Behind the name, which may hold anything, in its parentheses.
        state, parent = stat[stat.rfind(b")") + 1 :].split(maxsplit=2)[:2]
        if parent == _KTHREADD or pid == int(_KTHREADD):
            self._kernel_threads.add(pid)
            return False
        return state == b"D"

    def _place(self, pid: int) -> str:
        place = word(f"{self._procfs}/{pid}/wchan")
        if place in ("", "0"):  # only root is told
            place = OTHER
        if place not in self._places and len(self._places) >= PLACES_MAX:
            place = OTHER
        self._places.setdefault(place)
        return place


def _key(place: str) -> SeriesKey:
    return series(BY_PLACE, "", Kind.GAUGE, ("wchan", place))
