"""The kernel's messages from journald, for an agent that may not read /dev/kmsg: through `journalctl`, which follows for us."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any

from switchgear.agent.sources.log_reader import wait_for

log = logging.getLogger(__name__)

#: Kernel messages, and what programs say about fabric and resets.
MATCHES = (
    "_TRANSPORT=kernel",
    "+",
    "_SYSTEMD_UNIT=nvidia-fabricmanager.service",
    "+",
    "SYSLOG_IDENTIFIER=nv-fabricmanager",
    "+",
    "SYSLOG_IDENTIFIER=nvsentinel-gpu-reset",
)
#: Of this boot alone: what was broken before it may be mended by it.
COMMAND = ("journalctl", "--quiet", "--no-pager", "--boot", "--follow", "--output=json")
CHUNK_BYTES_MAX = 1 << 16
#: A longer entry is none of the kernel's.
ENTRY_BYTES_MAX = 1 << 20
#: Before a journalctl that ended is started again.
RESTART_S = 15.0
_END_S = 1.0
#: What a look into the journal may take.
_LOOK_S = 5.0
_STAMP = "_SOURCE_MONOTONIC_TIMESTAMP"


def has_kernel_messages() -> bool:
    """Whether the journal shows this user any: journalctl refuses nothing, it leaves out what may not be seen."""
    path = shutil.which(COMMAND[0])
    if path is None:
        return False
    command = [path, "--quiet", "--no-pager", "--lines=1", "--output=cat", MATCHES[0]]
    try:
        answer = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_LOOK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return bool(answer.stdout.strip())


class JournalLog:
    """Followed by a child process. The cursor is journald's own.

    cursor: from an earlier `read`, or "": then only what comes from now on, old faults may be mended.
    Raises FileNotFoundError where there is no such command.
    """

    def __init__(self, cursor: str = "", command: Sequence[str] = COMMAND) -> None:
        path = shutil.which(command[0])
        if path is None:
            raise FileNotFoundError(2, "no such command", command[0])
        self._command = (path, *command[1:])
        # Of another reader, which this node had before, is no cursor of the journal.
        self._cursor = cursor if cursor.startswith("s=") else ""
        self._child: subprocess.Popen[bytes] | None = None
        self._partial = b""
        self._started_s = float("-inf")
        #: Times that journalctl ended by itself.
        self.restarts = 0

    @property
    def cursor(self) -> str:
        return self._cursor

    def read(self) -> Iterator[tuple[str, str]]:
        child = self._child or self._start()
        if child is None or child.stdout is None:
            return
        try:
            chunk = os.read(child.stdout.fileno(), CHUNK_BYTES_MAX)
        except BlockingIOError:
            return
        if not chunk:
            self._ended(child)
            return
        *entries, self._partial = (self._partial + chunk).split(b"\n")
        if len(self._partial) > ENTRY_BYTES_MAX:
            self._partial = b""
        for entry in entries:
            yield from self._lines(entry)

    def wait(self, timeout_s: float, stop: int) -> bool:
        if self._child is None or self._child.stdout is None:
            return False
        wait_for((self._child.stdout.fileno(), stop), timeout_s)
        return True

    def close(self) -> None:
        """Ends the child, for good."""
        self._started_s = float("inf")
        self._end_child()

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.terminate()
        try:
            child.wait(_END_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdout is not None:
            child.stdout.close()

    def _start(self) -> subprocess.Popen[bytes] | None:
        now_s = time.monotonic()
        if now_s - self._started_s < RESTART_S:
            return None
        self._started_s = now_s
        since = [f"--after-cursor={self._cursor}"] if self._cursor else ["--lines=0"]
        self._child = subprocess.Popen(
            [*self._command, *since, *MATCHES],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        if self._child.stdout is not None:
            os.set_blocking(self._child.stdout.fileno(), False)
        return self._child

    def _ended(self, child: subprocess.Popen[bytes]) -> None:
        self._partial = b""
        self._end_child()
        self.restarts += 1
        log.warning("journalctl ended with %s; it is started again", child.returncode)

    def _lines(self, entry: bytes) -> Iterator[tuple[str, str]]:
        try:
            fields: dict[str, Any] = json.loads(entry)
            cursor, message = str(fields["__CURSOR"]), fields["MESSAGE"]
        except (ValueError, KeyError, TypeError):
            return
        if isinstance(message, list):  # bytes that are no UTF-8
            message = bytes(message).decode(errors="replace")
        if not isinstance(message, str):
            return
        self._cursor = cursor
        stamp = fields.get(_STAMP) or fields.get("__MONOTONIC_TIMESTAMP") or "0"
        kernel = fields.get("_TRANSPORT") == "kernel"
        prefix = f"{'' if kernel else 'user:info: '}[{int(stamp) / 1e6:.6f}] "
        for line in message.split("\n"):
            yield prefix + line, cursor
