"""Reads the step log that a rank's hook writes (layout: `switchgear/train/steplog_format.py`, stated again here)."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

MAGIC = int.from_bytes(b"SWGSTEPS", "little")
VERSION = 1
MAGIC_AT, VERSION_AT, GENERATION_AT, RANK_AT, PID_AT, WALL_OFFSET_AT, COUNT_AT, ADAM_STEP_AT, EXCEPTION_LENGTH_AT = (
    range(9)
)
EXCEPTION_OFFSET = 1024
EXCEPTION_BYTES_MAX = 1024
HEADER_BYTES = 4096
EVENT_SLOTS = 32
EVENT_BYTES = 1024
EVENT_TEXT_OFFSET = 40
EVENT_LOADED = 1
EVENT_COMMITTED = 2
COUNT_UNKNOWN = -1
RECORD_SLOTS = 65536
RECORD_BYTES = 24
EVENTS_OFFSET = HEADER_BYTES
RECORDS_OFFSET = EVENTS_OFFSET + EVENT_SLOTS * EVENT_BYTES
FILE_BYTES = RECORDS_OFFSET + RECORD_SLOTS * RECORD_BYTES


class EventKind(IntEnum):
    """What a rank did with a checkpoint."""

    LOADED = EVENT_LOADED
    COMMITTED = EVENT_COMMITTED


@dataclass(frozen=True, slots=True)
class Record:
    """One completed optimizer step. count: from 1 in each attempt; times: monotonic ns of this machine."""

    count: int
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class Event:
    """A checkpoint opened for reading or renamed into place.

    sequence: from 1. path: relative to the checkpoint directory. count: optimizer steps completed then; None when the state in the
    file may be older than that (an asynchronous writer). time_ns: monotonic.
    """

    sequence: int
    kind: EventKind
    path: str
    count: int | None
    time_ns: int


def create(path: Path) -> None:
    """Makes an empty step log with all its blocks, so that a rank never meets a full disk (SIGBUS) while it writes.

    Raises OSError when there is no room.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, FILE_BYTES)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(fd)


class StepLog:
    """A live or archived step log, mapped read-only. Raises OSError or ValueError when the file cannot be one."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            if size < RECORDS_OFFSET or size % 8:
                raise ValueError(f"{path} is no step log: it has {size} bytes")
            self._map = mmap.mmap(fd, size, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        self._words = memoryview(self._map).cast("q")

    def close(self) -> None:
        self._words.release()
        self._map.close()

    @property
    def started(self) -> bool:
        """Whether the rank has come so far as to write its header."""
        return self._words[MAGIC_AT] == MAGIC and self._words[VERSION_AT] == VERSION

    @property
    def generation(self) -> int:
        return self._words[GENERATION_AT]

    @property
    def rank(self) -> int:
        return self._words[RANK_AT]

    @property
    def pid(self) -> int:
        return self._words[PID_AT]

    @property
    def count(self) -> int:
        """Optimizer steps completed in this attempt."""
        return self._words[COUNT_AT]

    @property
    def adam_step(self) -> int | None:
        """The optimizer's own count after the first step of this attempt; None when it keeps none or has not stepped."""
        value = self._words[ADAM_STEP_AT]
        return value if self.started and value >= 0 else None

    @property
    def exception(self) -> str:
        """Type and message of the uncaught exception; empty when there was none."""
        length = min(max(self._words[EXCEPTION_LENGTH_AT], 0), EXCEPTION_BYTES_MAX)
        return self._map[EXCEPTION_OFFSET : EXCEPTION_OFFSET + length].decode("utf-8", "replace")

    def unix_ns(self, mono_ns: int) -> int:
        """Wall time of a time in this log."""
        return mono_ns + self._words[WALL_OFFSET_AT]

    def record(self, count: int) -> Record | None:
        """The record of one step; None when it is not written yet or was overwritten."""
        at = RECORDS_OFFSET // 8 + (count - 1) % RECORD_SLOTS * (RECORD_BYTES // 8)
        words = self._words
        if count < 1 or at + 3 > len(words) or words[at] != count:
            return None
        record = Record(count, words[at + 1], words[at + 2])
        # Overwritten while we read, or (on machines that reorder stores) not all there yet.
        return record if words[at] == count and record.end_ns >= record.start_ns > 0 else None

    def records(self) -> Iterator[Record]:
        """All records that are still there, oldest first; at most RECORD_SLOTS."""
        newest = self.count
        for count in range(max(1, newest - RECORD_SLOTS + 1), newest + 1):
            record = self.record(count)
            if record is not None:
                yield record

    def record_at(self, unix_ns: int) -> Record | None:
        """The newest record that had ended at that time; None when none had."""
        found = None
        for count in range(self.count, max(0, self.count - RECORD_SLOTS), -1):
            record = self.record(count)
            if record is None:
                break
            if self.unix_ns(record.end_ns) <= unix_ns:
                found = record
                break
        return found

    def events(self, after: int) -> list[Event]:
        """Events with a sequence beyond `after`, in order; those that the ring has lost are left out."""
        found = []
        for slot in range(EVENT_SLOTS):
            event = self._event(slot)
            if event is not None and event.sequence > after:
                found.append(event)
        return sorted(found, key=lambda event: event.sequence)

    def _event(self, slot: int) -> Event | None:
        words, at = self._words, EVENTS_OFFSET // 8 + slot * (EVENT_BYTES // 8)
        sequence, kind, count, time_ns, length = words[at : at + 5]
        if (
            sequence < 1
            or not 0 < length <= EVENT_BYTES - EVENT_TEXT_OFFSET
            or kind not in (EVENT_LOADED, EVENT_COMMITTED)
        ):
            return None
        begin = EVENTS_OFFSET + slot * EVENT_BYTES + EVENT_TEXT_OFFSET
        path = self._map[begin : begin + length].decode("utf-8", "surrogateescape")
        if words[at] != sequence:
            return None
        return Event(sequence, EventKind(kind), path, None if count == COUNT_UNKNOWN else count, time_ns)

    def copy_to(self, path: Path) -> None:
        """Writes what is used of it to a file of its own. Raises OSError."""
        used = RECORDS_OFFSET + min(self.count, RECORD_SLOTS) * RECORD_BYTES
        path.write_bytes(self._map[:used])
