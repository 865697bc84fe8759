"""Kernel-log lines from where the agent left off: a text file that may be rotated, or the kernel's own ring."""

from __future__ import annotations

import os
import re
import select
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

#: What one call reads at most, so that a huge backlog is taken in bites.
CHUNK_BYTES_MAX = 1 << 20
#: The kernel's own lines end at 1 KiB or so; a longer one is cut to its end.
LINE_BYTES_MAX = 1 << 16


#: A smaller buffer makes a read of the kernel's ring fail (CONSOLE_EXT_LOG_MAX, PRINTK_MESSAGE_MAX).
RECORD_BYTES_MAX = 8192
#: Of another reader, which this node had before, is no cursor of a file.
_TEXT_CURSOR = re.compile(r"(\d+):(\d+)")
#: Priorities below it are the kernel's; above, the number of the program's facility times this is added.
_FACILITY = 8
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


class LogReader(Protocol):
    @property
    def cursor(self) -> str:
        """Where reading goes on; "" when that is not known yet."""

    def read(self) -> Iterator[tuple[str, str]]:
        """New lines, each with the cursor from which reading goes on after it. Does not block."""

    def wait(self, timeout_s: float, stop: int) -> bool:
        """Returns when there may be something to read, after `timeout_s`, or when the descriptor `stop` can be read.

        False at once where that cannot be waited for.
        """

    def close(self) -> None:
        """Nothing is read after that."""


class TextLog:
    """A text file, followed by inode and offset through rotation and truncation.

    cursor: from an earlier `read`, or "". from_end: without a cursor, skip what is there already: old faults may be mended.
    """

    def __init__(self, path: Path, cursor: str = "", *, from_end: bool = False) -> None:
        self._path = path
        self._fd = -1
        self._inode = self._offset = 0
        self._partial = b""
        if match := _TEXT_CURSOR.fullmatch(cursor):
            self._inode, self._offset = int(match[1]), int(match[2])
        elif from_end and path.exists():
            stat = path.stat()
            self._inode, self._offset = stat.st_ino, stat.st_size

    @property
    def cursor(self) -> str:
        return f"{self._inode}:{self._offset}" if self._inode else ""

    def read(self) -> Iterator[tuple[str, str]]:
        if self._fd < 0 and not self._open():
            return
        if os.fstat(self._fd).st_size < self._offset + len(self._partial):
            self._offset, self._partial = 0, b""
        chunk = os.pread(self._fd, CHUNK_BYTES_MAX, self._offset + len(self._partial))
        if not chunk:
            self._follow_rotation()
            return
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        for line in lines:
            self._offset += len(line) + 1
            yield line[-LINE_BYTES_MAX:].decode(errors="replace"), f"{self._inode}:{self._offset}"
        if len(self._partial) > LINE_BYTES_MAX:
            self._offset += len(self._partial) - LINE_BYTES_MAX
            self._partial = self._partial[-LINE_BYTES_MAX:]

    def wait(self, timeout_s: float, stop: int) -> bool:  # noqa: ARG002 - part of the seam
        return False

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> bool:
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        inode = os.fstat(self._fd).st_ino
        if inode != self._inode:
            self._inode, self._offset, self._partial = inode, 0, b""
        return True

    def _follow_rotation(self) -> None:
        try:
            rotated = self._path.stat().st_ino != self._inode
        except FileNotFoundError:
            return
        if rotated:
            self.close()


class KernelRing:
    """`/dev/kmsg`. The cursor is the boot and the kernel's sequence number of the record."""

    def __init__(self, boot_id: str, cursor: str = "", path: Path = Path("/dev/kmsg")) -> None:
        self._boot_id = boot_id
        boot, _, sequence = cursor.partition(":")
        self._after = int(sequence) if boot == boot_id and sequence.isdecimal() else -1
        #: Times that the kernel overwrote records before they were read.
        self.overruns = 0
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not cursor:  # a fresh installation: what lies in the ring may be mended
            for newest, _ in self._records():
                self._after = newest

    @property
    def cursor(self) -> str:
        return f"{self._boot_id}:{self._after}" if self._after >= 0 else ""

    def read(self) -> Iterator[tuple[str, str]]:
        for sequence, lines in self._records():
            if sequence > self._after:
                self._after = sequence
                for line in lines:
                    yield line, self.cursor

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        while True:
            try:
                record = os.read(self._fd, RECORD_BYTES_MAX)
            except BlockingIOError:
                return
            except BrokenPipeError:
                self.overruns += 1
                continue
            yield parse_record(record)

    def wait(self, timeout_s: float, stop: int) -> bool:
        wait_for((self._fd, stop), timeout_s)
        return True

    def close(self) -> None:
        os.close(self._fd)


def wait_for(fds: Iterable[int], timeout_s: float) -> None:
    """Until one of them can be read, or `timeout_s` has passed."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    poll.poll(timeout_s * 1000)


def parse_record(record: bytes) -> tuple[int, list[str]]:
    """Sequence number and lines of one record of `/dev/kmsg` (kernel documentation, ABI/testing/dev-kmsg), stamped as dmesg does.

    The kernel writes an end of line within a message, and what is not printable, as `\\xHH`. What a program wrote is marked as that.
    """
    head, _, rest = record.partition(b";")
    priority, sequence, microseconds, *_ = head.split(b",")
    body = _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), rest.partition(b"\n")[0]).decode(errors="replace")
    prefix = f"{'' if int(priority) < _FACILITY else 'user:info: '}[{int(microseconds) / 1e6:.6f}] "
    return int(sequence), [prefix + line for line in body.split("\n")]
