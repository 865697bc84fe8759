"""What every long-running process of ours does: end on a signal, hold its state directory alone, and know another process again."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import signal
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from switchgear.core.errors import FailedPrecondition, Reason

T = TypeVar("T")

_MANY_FILES = 65_536


async def until_signal(work: Coroutine[Any, Any, T]) -> T | None:
    """What `work` returns; SIGTERM or SIGINT cancels it, and then None once it has cleaned up."""
    task = asyncio.ensure_future(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return None


@contextmanager
def only_one(state_dir: Path, what: str, *, mode: int = 0o777) -> Iterator[None]:
    """Makes the directory when it is missing and holds it until the block ends.

    what: the kind of process, for the message. mode: of a directory that is made, less the umask.
    Raises FailedPrecondition (STATE_LOCKED) when another process of that kind holds it, or it cannot be made.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=mode)
        lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise FailedPrecondition(
            f"cannot use {state_dir} as state directory ({error.strerror}); choose another with --state-dir",
            Reason.STATE_LOCKED,
            state_dir=str(state_dir),
        ) from error
    try:
        if not try_lock(lock):
            raise FailedPrecondition(
                f"another {what} uses {state_dir}; stop it or choose another directory with --state-dir",
                Reason.STATE_LOCKED,
                state_dir=str(state_dir),
            )
        yield
    finally:
        os.close(lock)


def try_lock(fd: int) -> bool:
    """Whether the file is ours alone from now on, until it is closed or this process ends, however it ends."""
    for _ in range(3):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)  # perhaps somebody only looked whether it is held
        else:
            return True
    return False


def boot_id() -> str:
    """Changes with each boot of the machine: pids and start times of another boot mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def stat_fields(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on, as in proc(5); None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name before the last parenthesis may hold blanks and parentheses itself.
    return text.rpartition(")")[2].split()


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; with the pid and the boot it names a process for ever.

    None when there is none; one that has ended and only waits to be reaped still has its start.
    """
    fields = stat_fields(pid)
    return None if fields is None else int(fields[19])


def is_alive(pid: int, ticks: int) -> bool:
    """Whether that very process runs; one that only waits to be reaped does not."""
    fields = stat_fields(pid)
    return fields is not None and fields[0] not in "ZX" and int(fields[19]) == ticks


def allow_open_files(needed: int) -> None:
    """Lets this process, and those that it starts, have `needed` files and sockets open at once.

    Raises FailedPrecondition (LIMIT_EXCEEDED) when the system allows fewer.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise FailedPrecondition(
            f"{needed} files and sockets are needed at once, and this process may have {hard}; raise the hard limit "
            "(ulimit -Hn, LimitNOFILE= of systemd)",
            Reason.LIMIT_EXCEEDED,
            needed=str(needed),
        )
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def allow_many_open_files() -> None:
    """Lets this process have 65,536 files and sockets open, or as many as the system allows: most begin with 1,024, a server has thousands."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allow_open_files(_MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, _MANY_FILES))
