"""What a launcher leaves on disk for the next one of the same job and node."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from switchgear.core.errors import FailedPrecondition, Reason
from switchgear.core.process import boot_id, try_lock
from switchgear.launcher import proc

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Process:
    """A process, named for ever by pid, start time and boot."""

    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class State:
    """generation: newest that was accepted. processes: leaders of process groups that may still live."""

    generation: int = 0
    processes: tuple[Process, ...] = ()


def is_held(path: Path) -> bool:
    """Whether a launcher runs on that state folder now."""
    try:
        lock = os.open(path / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


class StateFolder:
    """The state folder, held by one launcher at a time.

    Raises FailedPrecondition (JOB_ALREADY_RUNNING) when another launcher holds it.
    """

    def __init__(self, path: Path, job: str) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._file = path / "generation.json"
        self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if not try_lock(self._lock):
            pid = os.pread(self._lock, 32, 0).decode("ascii", "replace").strip()
            os.close(self._lock)
            raise FailedPrecondition(
                f"{job} already runs here under launcher {pid}; stop that one first",
                Reason.JOB_ALREADY_RUNNING,
                job=job,
                pid=pid,
            )
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)

    def close(self) -> None:
        os.close(self._lock)

    def load(self) -> State:
        """What the launcher before left. After a reboot its processes are gone for sure, its generation still counts."""
        try:
            entry = json.loads(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return State()
        except ValueError:
            log.warning("%s is damaged, as after a power cut; the control plane knows the generation", self._file)
            return State()
        same_boot = entry["boot_id"] == boot_id()
        processes = tuple(Process(**process) for process in entry["processes"]) if same_boot else ()
        return State(entry["generation"], processes)

    def save(self, state: State) -> None:
        """Replaces the state as a whole. Raises OSError.

        Without fsync, on purpose: it must survive a kill, not a power cut (which ends the ranks as well, and the control plane
        counts generations in its own store), and a journal commit would sit on the restart path.
        """
        entry = {
            "boot_id": boot_id(),
            "generation": state.generation,
            "processes": [asdict(process) for process in state.processes],
        }
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text(json.dumps(entry), encoding="utf-8")
        temporary.replace(self._file)


async def kill_all(processes: Sequence[Process]) -> bool:
    """Ends the groups of these leaders; whether all are gone."""
    return all(await asyncio.gather(*(proc.kill_group(p.pid, p.start_ticks) for p in processes)))
