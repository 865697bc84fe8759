"""A thread for files that may lie on a dead network mount, where a single `stat` can take for ever."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class DiskThread:
    """Does one piece of work after the other, off the loop.

    One thread, so that work on a hung mount waits in line instead of piling up; a daemon, so that the process can end all the same.
    Callers keep the line short: they look at `pending` before they add what can be left out. nice: its priority, 19 the lowest.
    """

    def __init__(self, name: str, nice: int = 0) -> None:
        self._name = name
        self._nice = nice
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        #: Pieces of work that wait or are under way.
        self.pending = 0

    async def run(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """What `work` returns, or raises. Cancelling stops the waiting, not the work."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_T] = loop.create_future()

        def finish(result: Any, error: BaseException | None) -> None:
            self.pending -= 1
            if done.done():
                return
            if error is None:
                done.set_result(result)
            else:
                done.set_exception(error)

        def call() -> None:
            result, error = None, None
            try:
                result = work(*args, **kwargs)
            except Exception as raised:  # it belongs to whoever waits
                error = raised
            try:
                loop.call_soon_threadsafe(finish, result, error)
            except RuntimeError:
                pass  # the loop has ended: nobody waits any more

        self.pending += 1
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        self._work.put(call)
        return await done

    def close(self) -> None:
        """The thread ends after what waits in line."""
        self._work.put(None)

    def _serve(self) -> None:
        if self._nice:
            # On Linux priorities are per thread.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
        while (call := self._work.get()) is not None:
            call()
