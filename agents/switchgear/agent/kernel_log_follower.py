"""Carries findings from logs into the spool, from a thread: a read of a log may block."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

from switchgear.agent.events import Events, Finding
from switchgear.agent.sources.kernel_log import KernelLogParser
from switchgear.agent.sources.log_reader import LogReader
from switchgear.core.clock import Clock

log = logging.getLogger(__name__)

SOURCE = "kernel_log"
#: Fabric manager writes a log of its own.
FABRIC_MANAGER = "fabric_manager"
FABRIC_MANAGER_LOG = Path("/var/log/fabricmanager.log")
#: A fault is noticed within this time, sooner where the log can be waited for.
POLL_S = 0.05
WAIT_S = 0.5
#: Between writes of where a log is read on when there was nothing to tell.
MOVE_S = 10.0
_DRIVER_VERSION = Path("/sys/module/nvidia/version")


class KernelLogFollower:
    """Follows one log until `close`.

    source: under which name its findings are told. poll_s: where the log cannot be waited for. Where the log is read on is kept with them, and else each `MOVE_S`: a restart of
    the agent replays nothing that was told, and reads no more than `MOVE_S` again.
    """

    def __init__(
        self, reader: LogReader, events: Events, clock: Clock, source: str = SOURCE, poll_s: float = POLL_S
    ) -> None:
        self._reader = reader
        self._events = events
        self._clock = clock
        self._source = source
        self._poll_s = poll_s
        self._parser = KernelLogParser(driver_version())
        self._stopping = threading.Event()
        self._stop: socket.socket | None = None
        self._kept_cursor = events.cursor(source)
        # Of a fresh agent too, or what happens while it is away for the first time would be lost.
        self._read_cursor = self._safe_cursor = self._kept_cursor or reader.cursor
        self._moved_s = clock.monotonic_s()
        #: Reads that failed; the follower goes on.
        self.read_errors = 0

    def poll(self) -> None:
        """Takes in what is new in the log."""
        for line, cursor in self._reader.read():
            findings = self._parser.feed(line, self._clock.monotonic_s())
            self._read_cursor = cursor
            self._tell(findings)
        now_s = self._clock.monotonic_s()
        self._tell(self._parser.due(now_s))
        if now_s - self._moved_s >= MOVE_S:
            self._moved_s = now_s
            self._parser.driver_version = driver_version()  # it may be loaded, or replaced, later
            if self._safe_cursor != self._kept_cursor:
                self._events.move(self._source, self._safe_cursor)
                self._kept_cursor = self._safe_cursor

    def run(self) -> None:
        """Polls until `close`; for a thread."""
        self._stop, stopped = socket.socketpair()
        with self._stop, stopped:
            while not self._stopping.is_set():
                try:
                    if not self._reader.wait(self._patience_s(), stopped.fileno()):
                        self._stopping.wait(self._poll_s)
                    self.poll()
                except OSError as error:
                    if self.read_errors == 0:
                        log.error("%s: %s", self._source, error)
                    self.read_errors += 1
                    self._stopping.wait(WAIT_S)
        self._reader.close()

    def close(self) -> None:
        """Ends `run`, which then closes the log."""
        self._stopping.set()
        if self._stop is not None:
            with contextlib.suppress(OSError):  # it has ended already
                self._stop.send(b"\0")

    def _patience_s(self) -> float:
        """How long nothing need be looked at unless a line comes."""
        until_move_s = self._moved_s + MOVE_S - self._clock.monotonic_s()
        return max(self._poll_s, min(WAIT_S, until_move_s) if self._parser.pending else until_move_s)

    def _tell(self, findings: Sequence[Finding]) -> None:
        if not self._parser.holding:
            # Before that, lines were read whose event is not told yet: after a crash they must be read again.
            self._safe_cursor = self._read_cursor
        for finding in findings:
            self._events.tell(self._source, finding, cursor=self._safe_cursor)
            self._kept_cursor = self._safe_cursor


def driver_version() -> str:
    """Version of the NVIDIA driver that is loaded, "" when none is."""
    try:
        return _DRIVER_VERSION.read_text().strip()
    except OSError:
        return ""
