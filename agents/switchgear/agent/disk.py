"""One thread for what may wait for the disk, so that a stalled one costs what is kept and not what is sent."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import queue
import threading
from collections.abc import Callable
from typing import TypeVar, cast

_T = TypeVar("_T")
log = logging.getLogger(__name__)

#: Jobs that wait at most; with one a tick, some minutes.
JOBS_MAX = 256


def write_whole(fd: int, data: bytes) -> None:
    """os.write, for a file on disk. Raises OSError (ENOSPC) also when there was room for a part of it."""
    if os.write(fd, data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Disk:
    """Does jobs one after the other in a daemon thread: a disk that never answers must not keep the agent from ending."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="disk", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], object]) -> bool:
        """Queues a job; False when too many wait already."""
        if self._jobs.qsize() >= JOBS_MAX:
            return False
        self._jobs.put(job)
        return True

    async def call(self, job: Callable[[], _T]) -> _T:
        """What the job returns or raises, after all jobs before it."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_T] = loop.create_future()

        def settle(result: _T | None, error: Exception | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(cast(_T, result))

        def run() -> None:
            result, error = None, None
            try:
                result = job()
            except Exception as raised:
                error = raised
            try:
                loop.call_soon_threadsafe(settle, result, error)
            except RuntimeError:
                pass  # the loop has closed: nobody waits any more

        self._jobs.put(run)
        return await answer

    def close(self) -> None:
        """Ends the thread after what is queued, within a second or never."""
        self._jobs.put(None)
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:
                log.exception("a job for the disk failed")
