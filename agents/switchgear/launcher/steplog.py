"""Reads the step log that a rank's hook writes (layout: `switchgear/train/steplog_format.py`, stated again here)."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

MAGIC = int.from_bytes(b"SWGSTEPS", "little")
VERSION = 2
MAGIC_AT, VERSION_AT, GENERATION_AT, RANK_AT, PID_AT, WALL_OFFSET_AT, COUNT_AT, ADAM_STEP_AT = range(8)
EXCEPTION_LENGTH_AT, PHASE_AT, PHASE_END_AT, CHECKPOINT_NS_AT, WRITING_AT, EVALUATING_AT, STACK_FD_AT = range(8, 15)
CALL_LENGTH_AT, NAMED_BASE_AT, OTHER_STEP_AT = 15, 16, 17
PHASE_NONE, PHASE_CHECKPOINT, PHASE_EVALUATION, PHASE_DATA, PHASE_COMPILE = range(5)
EVALUATING_NO, EVALUATING_YES, EVALUATING_UNKNOWN = 0, 1, -1
STACK_SIGNAL = 62
STACK_FILE = "switchgear-stack"
EXCEPTION_OFFSET = 1024
EXCEPTION_BYTES_MAX = 1024
CALL_OFFSET = 2048
CALL_BYTES_MAX = 6144
HEADER_BYTES = 8192
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


class Phase(IntEnum):
    """What a rank says that its training thread is at besides steps."""

    NONE = PHASE_NONE
    CHECKPOINT = PHASE_CHECKPOINT
    EVALUATION = PHASE_EVALUATION
    DATA = PHASE_DATA
    COMPILE = PHASE_COMPILE


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
    def named_base(self) -> int | None:
        """The step at which `count` is zero, as the script says itself; None when it does not."""
        value = self._words[NAMED_BASE_AT]
        return value if self.started and value >= 0 else None

    @property
    def exception(self) -> str:
        """Type and message of the uncaught exception; empty when there was none."""
        length = min(max(self._words[EXCEPTION_LENGTH_AT], 0), EXCEPTION_BYTES_MAX)
        return self._map[EXCEPTION_OFFSET : EXCEPTION_OFFSET + length].decode("utf-8", "replace")

    @property
    def phase(self) -> Phase:
        """What the training thread says that it is at; an evaluation counts from the model's `eval` to its `train`."""
        value = self._words[PHASE_AT]
        if PHASE_NONE < value <= PHASE_COMPILE:
            return Phase(value)
        return Phase.EVALUATION if self._words[EVALUATING_AT] == EVALUATING_YES else Phase.NONE

    @property
    def phase_end_ns(self) -> int:
        """When it was last done with such a thing, monotonic; 0 = never."""
        return self._words[PHASE_END_AT]

    @property
    def other_step_ns(self) -> int:
        """When an optimizer that is not counted has stepped last, monotonic; 0 = never."""
        return self._words[OTHER_STEP_AT]

    @property
    def checkpoint_ns(self) -> int:
        """Time of this attempt that the training thread has spent writing checkpoints."""
        return self._words[CHECKPOINT_NS_AT]

    @property
    def writing(self) -> bool:
        """Since its last step it has opened a file under the checkpoint directory for writing, and renamed none since."""
        return self._words[WRITING_AT] > 0

    @property
    def stack_fd(self) -> int | None:
        """The rank's descriptor in which STACK_SIGNAL is answered; None when it is not."""
        value = self._words[STACK_FD_AT]
        return value if self.started and value >= 0 else None

    @property
    def call(self) -> list[tuple[int, str, str]]:
        """The call that counted one of the last steps: line, function and file of each frame, outermost first."""
        length = min(max(self._words[CALL_LENGTH_AT], 0), CALL_BYTES_MAX)
        text = self._map[CALL_OFFSET : CALL_OFFSET + length].decode("utf-8", "replace")
        fields = [line.split("\t", 2) for line in text.splitlines()]
        return [(int(parts[0]), parts[1], parts[2]) for parts in fields if len(parts) == 3 and parts[0].isdigit()]

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
        """Writes what is used of it to a file of its own, which is there whole or not at all. Raises OSError."""
        used = RECORDS_OFFSET + min(self.count, RECORD_SLOTS) * RECORD_BYTES
        written = path.with_suffix(".tmp")
        written.write_bytes(self._map[:used])
        written.replace(path)
