"""Threads that share the work of a tick: one does it all, and others step in as soon as something hangs."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable

log = logging.getLogger(__name__)

Job = Callable[[], None]


class Crew:
    """Daemon threads: a call that never returns must not keep the agent from ending.

    A thread for each GPU was tried and rejected: eight that start at once take the interpreter's lock from each other at every call of
    the driver, which costs as much as the calls. There are never more threads than jobs that were under way at once.
    """

    def __init__(self) -> None:
        #: Where each idle thread waits; the last one has been idle for the shortest time, so its memory is still in the cache.
        self._idle = list[queue.SimpleQueue[deque[Job]]]()
        self._closed = False

    def help(self, jobs: deque[Job]) -> None:
        """One more thread does jobs from the left, each once, until none is left. Jobs must not raise. For one thread."""
        if self._idle:
            self._idle.pop().put(jobs)
            return
        try:
            threading.Thread(target=self._run, args=(jobs,), name="sources", daemon=True).start()
        except (
            RuntimeError
        ):  # the node has no more; who waits too long is told as hanging, and is heard once a thread is free
            log.exception("no thread for sources that wait")

    def close(self) -> None:
        """Ends each thread once its present job returns."""
        self._closed = True
        while self._idle:
            self._idle.pop().put(deque())

    def _run(self, jobs: deque[Job]) -> None:
        waiting = queue.SimpleQueue[deque[Job]]()
        while not self._closed:
            while jobs:
                try:
                    job = jobs.popleft()
                except IndexError:  # another one was faster
                    break
                job()
            self._idle.append(waiting)
            if not self._closed:  # or nobody would wake it
                jobs = waiting.get()
