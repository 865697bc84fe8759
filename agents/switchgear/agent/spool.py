"""Events on disk until the collector has committed them: numbered, bounded, surviving restart and reboot.

One file of lines, each `crc32 json`. The first line is the head (who numbers, and how far each source got) with what was pending
when it was written as `kept`; after it come events and acks. An event carries the cursor of its source, so that one write moves
both: after a crash the log is read on from there, and an event that was read but not written is read again under the same number.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from switchgear.agent.disk import write_whole

log = logging.getLogger(__name__)

#: What waits for the collector at most; some 50,000 XID lines. Beyond it new events are dropped: the first ones hold the cause.
PENDING_BYTES_MAX = 16 * 1024 * 1024
#: Below this size the file is not worth rewriting.
_COMPACT_BYTES_MIN = 64 * 1024


@dataclass(frozen=True, slots=True)
class Event:
    """See `switchgear.v1alpha.Event`."""

    boot_id: str
    source: str
    sequence: int
    time_unix_ns: int
    kind: str
    gpu: int | None
    code: int | None
    text: str
    simulated: bool
    pci: str = ""
    detail: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _SourceState:
    boot_id: str
    sequence: int
    cursor: str


class Spool:
    """The events of one agent. Every method may be called from any thread.

    path: the spool's file, made when missing. kernel_boot_id: changes with each boot of the machine.
    Numbers count within `boot_id`, which names the boot and the file: a new file never reuses the numbers of one that was lost.
    """

    def __init__(self, path: Path, kernel_boot_id: str, pending_bytes_max: int = PENDING_BYTES_MAX) -> None:
        self._path = path
        self._pending_bytes_max = pending_bytes_max
        # Whoever writes has the first one as long as the disk takes; the second is for what is in memory, and taken after the first.
        self._writing = threading.Lock()
        self._lock = threading.Lock()
        self._spool_id = uuid.uuid4().hex[:8]
        self._sources: dict[str, _SourceState] = {}
        # By a number that counts up in this process, oldest first.
        self._pending: dict[int, tuple[Event, int]] = {}
        self._ordinal = 0
        self.pending_bytes = 0
        #: Events that found the spool full.
        self.dropped = 0
        #: Writes that the disk refused; the events concerned live in memory alone.
        self.write_errors = 0
        self._failing = False
        self._fd = -1
        self._size = 0
        self._load()
        self.boot_id = f"{kernel_boot_id}.{self._spool_id}"
        self._rewrite()
        if self._fd < 0:  # a full disk is no reason to watch nothing
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            os.ftruncate(self._fd, self._size)

    def append(
        self,
        source: str,
        kind: str,
        text: str,
        *,
        time_unix_ns: int,
        gpu: int | None = None,
        code: int | None = None,
        simulated: bool = False,
        pci: str = "",
        detail: Mapping[str, str] | None = None,
        cursor: str = "",
    ) -> Event | None:
        """Numbers the event and writes it through to the disk; None when the spool is full.

        cursor: where `source` goes on after this event.
        """
        detail = dict(detail or {})
        with self._writing:
            with self._lock:
                state = self._sources.get(source)
                sequence = state.sequence + 1 if state and state.boot_id == self.boot_id else 1
                event = Event(
                    self.boot_id, source, sequence, time_unix_ns, kind, gpu, code, text, simulated, pci, detail
                )
                line = _encode({"event": asdict(event), "cursor": cursor})
                if self.pending_bytes + len(line) > self._pending_bytes_max:
                    self.dropped += 1
                    return None
                self._sources[source] = _SourceState(self.boot_id, sequence, cursor)
                self._keep(event, len(line))
            self._write(line, sync=True)
            return event

    @property
    def newest(self) -> int:
        """Ordinal of the newest event; cheap enough to ask at each tick."""
        return self._ordinal

    def pending(self, after: int, limit: int) -> list[tuple[int, Event]]:
        """Events that are not acked, oldest first, each with its ordinal; only those with ordinals greater than `after`.

        It never waits for the disk, so some of them may still be on their way to it.
        """
        with self._lock:
            waiting = ((ordinal, event) for ordinal, (event, _) in self._pending.items() if ordinal > after)
            return list(islice(waiting, limit))

    def ack(self, boot_id: str, source: str, sequence: int) -> None:
        """Forgets the events of `source` up to `sequence`. It may sync a file: not for an event loop."""
        with self._writing:
            with self._lock:
                # Closed meanwhile: the number of its file may be another file's by now.
                forgotten = self._fd >= 0 and self._forget(boot_id, source, sequence)
            if forgotten:
                # Not synced: a lost ack means that an event is sent again, and it is stored once.
                self._write(_encode({"ack": [boot_id, source, sequence]}), sync=False)
                if self._size > max(_COMPACT_BYTES_MIN, 2 * self.pending_bytes):
                    self._rewrite()

    def cursor(self, source: str) -> str:
        """What the newest event of `source` gave as its cursor; "" before the first."""
        with self._lock:
            state = self._sources.get(source)
            return state.cursor if state else ""

    def move(self, source: str, cursor: str) -> None:
        """Keeps where `source` goes on, without an event. Not synced: after a crash of the machine it may be an earlier one."""
        with self._writing:
            with self._lock:
                state = self._sources.get(source)
                sequence = state.sequence if state and state.boot_id == self.boot_id else 0
                self._sources[source] = _SourceState(self.boot_id, sequence, cursor)
            self._write(_encode({"moved": [source, self.boot_id, sequence, cursor]}), sync=False)
            if self._size > max(_COMPACT_BYTES_MIN, 2 * self.pending_bytes):
                self._rewrite()

    def close(self) -> None:
        with self._writing:
            os.close(self._fd)
            self._fd = -1

    def _keep(self, event: Event, size: int) -> None:
        self._ordinal += 1
        self._pending[self._ordinal] = (event, size)
        self.pending_bytes += size

    def _forget(self, boot_id: str, source: str, sequence: int) -> bool:
        acked = [
            ordinal
            for ordinal, (event, _) in self._pending.items()
            if event.sequence <= sequence and event.source == source and event.boot_id == boot_id
        ]
        for ordinal in acked:
            self.pending_bytes -= self._pending.pop(ordinal)[1]
        return bool(acked)

    def _load(self) -> None:
        data = self._path.read_bytes() if self._path.exists() else b""
        offset = 0
        for line in data.splitlines(keepends=True):
            entry = _decode(line)
            if entry is None:  # the write that a crash cut short, or damage
                log.warning("spool %s: dropping %d unreadable bytes at its end", self._path, len(data) - offset)
                return
            self._apply(entry, len(line))
            offset += len(line)
            self._size = offset

    def _apply(self, entry: dict[str, Any], size: int) -> None:
        if "head" in entry:
            self._spool_id = entry["head"]["spool_id"]
            self._sources = {name: _SourceState(**state) for name, state in entry["head"]["sources"].items()}
        elif "kept" in entry:
            self._keep(Event(**entry["kept"]), size)
        elif "event" in entry:
            event = Event(**entry["event"])
            self._sources[event.source] = _SourceState(event.boot_id, event.sequence, entry["cursor"])
            self._keep(event, size)
        elif "moved" in entry:
            source, *state = entry["moved"]
            self._sources[source] = _SourceState(*state)
        else:
            self._forget(*entry["ack"])

    def _rewrite(self) -> None:
        """Replaces the file by its present meaning."""
        with self._lock:
            sources = {name: asdict(state) for name, state in self._sources.items()}
            pending = [event for event, _ in self._pending.values()]
        lines = [_encode({"head": {"spool_id": self._spool_id, "sources": sources}})]
        lines += [_encode({"kept": asdict(event)}) for event in pending]
        temporary = self._path.with_suffix(".tmp")
        try:
            with temporary.open("wb") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)  # it takes the space that is missing
            self._refused(error)
            return
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._size = sum(map(len, lines))
        self._failing = False
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _write(self, line: bytes, *, sync: bool) -> None:
        try:
            write_whole(self._fd, line)
            self._size += len(line)
            if sync:
                os.fdatasync(self._fd)
        except OSError as error:
            # The event still goes to the collector from memory; only a crash before that would lose it.
            self._refused(error)
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)  # behind half a line nothing would be found again
            return
        if self._failing:
            self._rewrite()  # with what lives in memory alone

    def _refused(self, error: OSError) -> None:
        self.write_errors += 1
        if not self._failing:
            log.error("spool %s: %s; free some space", self._path, error.strerror)
        self._failing = True


def _encode(entry: dict[str, object]) -> bytes:
    body = json.dumps(entry, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _decode(line: bytes) -> dict[str, Any] | None:
    checksum, _, body = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(body):
        return None
    entry: dict[str, Any] = json.loads(body)
    return entry
