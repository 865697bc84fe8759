"""What every long-running process of ours does: end on a signal, and hold its state directory alone."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from switchgear.core.errors import FailedPrecondition, Reason

T = TypeVar("T")


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
def only_one(state_dir: Path, what: str) -> Iterator[None]:
    """Makes the directory when it is missing and holds it until the block ends.

    what: the kind of process, for the message.
    Raises FailedPrecondition (STATE_LOCKED) when another process of that kind holds it, or it cannot be made.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise FailedPrecondition(
            f"cannot use {state_dir} as state directory ({error.strerror}); choose another with --state-dir",
            Reason.STATE_LOCKED,
            state_dir=str(state_dir),
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise FailedPrecondition(
            f"another {what} uses {state_dir}; stop it or choose another directory with --state-dir",
            Reason.STATE_LOCKED,
            state_dir=str(state_dir),
        ) from None
    try:
        yield
    finally:
        os.close(lock)
