"""Carries findings from the kernel log into the spool, from a thread: a read of the log may block."""

from __future__ import annotations

import logging
import threading

from switchgear.agent.events import Events
from switchgear.agent.sources.kernel_log import KernelLogParser
from switchgear.agent.sources.log_reader import LogReader
from switchgear.core.clock import Clock

log = logging.getLogger(__name__)

SOURCE = "kernel_log"
#: A fault is noticed within this time; a poll is one stat call.
POLL_S = 0.05


class KernelLogFollower:
    """Follows one log until `close`."""

    def __init__(
        self,
        reader: LogReader,
        events: Events,
        clock: Clock,
    ) -> None:
        self._reader = reader
        self._events = events
        self._clock = clock
        self._parser = KernelLogParser()
        self._stopping = threading.Event()
        #: Reads that failed; the follower goes on.
        self.read_errors = 0

    def poll(self) -> None:
        """Takes in what is new in the log."""
        for line, cursor in self._reader.read():
            finding = self._parser.feed(line, self._clock.monotonic_s())
            if finding is not None:
                self._events.tell(SOURCE, finding, cursor=cursor)

    def run(self) -> None:
        """Polls until `close`; for a thread."""
        while not self._stopping.wait(POLL_S):
            try:
                self.poll()
            except OSError as error:
                if self.read_errors == 0:
                    log.error("kernel log: %s", error)
                self.read_errors += 1

    def close(self) -> None:
        self._stopping.set()
