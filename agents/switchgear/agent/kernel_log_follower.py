"""Carries findings from the kernel log into the spool, from a thread: a read of the log may block."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from switchgear.agent.sources.kernel_log import KernelLogParser
from switchgear.agent.sources.log_reader import LogReader
from switchgear.agent.spool import Spool
from switchgear.core.clock import Clock

log = logging.getLogger(__name__)

SOURCE = "kernel_log"
#: A fault is noticed within this time; a poll is one stat call.
POLL_S = 0.05


class KernelLogFollower:
    """Follows one log until `close`.

    gpus: index of each GPU by its PCI address as `normal_pci` writes it. notify: called after an event went into the spool.
    """

    def __init__(
        self,
        reader: LogReader,
        gpus: Mapping[str, int],
        spool: Spool,
        clock: Clock,
        notify: Callable[[], None],
        *,
        simulated: bool,
    ) -> None:
        self._reader = reader
        self._gpus = gpus
        self._spool = spool
        self._clock = clock
        self._notify = notify
        self._simulated = simulated
        self._parser = KernelLogParser()
        self._stopping = threading.Event()
        #: Reads that failed; the follower goes on.
        self.read_errors = 0

    def poll(self) -> None:
        """Takes in what is new in the log."""
        for line, cursor in self._reader.read():
            finding = self._parser.feed(line, self._clock.monotonic_s())
            if finding is None:
                continue
            self._spool.append(
                SOURCE,
                finding.kind,
                finding.text,
                time_unix_ns=self._clock.unix_ns(),
                gpu=self._gpus.get(finding.pci),
                code=finding.code,
                simulated=self._simulated,
                cursor=cursor,
            )
            self._notify()

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
