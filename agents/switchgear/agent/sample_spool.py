"""Samples on disk until the collector has them: segments of blocks, each readable by itself, the oldest given up first.

A segment is a file of records (checksum, length, sequence, kind, payload): the epoch, its dictionary, a keyframe and the blocks after it. One
write a tick, never synced: a crash of the machine may cost some seconds of samples, one of the agent none. What the collector has is
noted in a file of its own, as intervals of sequences for each epoch.

Not thread-safe: everything here may wait for the disk, so it all belongs into one thread (`disk.py`).
"""

from __future__ import annotations

import json
import logging
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from switchgear.agent.disk import write_whole
from switchgear.agent.intervals import Intervals
from switchgear.agent.messages import dictionary_message
from switchgear.agent.readings import SeriesKey
from switchgear.agent.sampler import Block
from switchgear.v1alpha import telemetry_service_pb2 as pb

log = logging.getLogger(__name__)

#: Six hours at 1 Hz are some 15 MiB for 500 series of a busy node.
BYTES_MAX = 64 * 1024 * 1024
AGE_S_MAX = 6 * 3600.0
#: In one backlog: little enough that a live block behind it is not late.
CHUNK_BLOCKS_MAX = 64
CHUNK_BYTES_MAX = 16 * 1024

_RECORD = struct.Struct("<IIQB")
_EPOCH, _DICTIONARY, _BLOCK, _KEYFRAME = range(4)


@dataclass(slots=True)
class _Segment:
    path: Path
    epoch: str
    #: Sequences of its blocks, without a hole; none while first > last.
    first: int
    last: int
    size: int = 0
    newest_unix_ns: int = 0


@dataclass(frozen=True, slots=True)
class _Record:
    kind: int
    sequence: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Chunk:
    """What goes into one `switchgear.v1alpha.Backlog`. blocks: those before `fresh_from` only lead up to the others.

    last: sequence of the last block. lost: blocks given up that the collector was not told of.
    """

    epoch: str
    dictionary: pb.Dictionary
    blocks: list[bytes]
    fresh_from: int
    last: int
    lost: int


@dataclass(slots=True)
class _Reader:
    """How far one connection has read."""

    epoch: str = ""
    last: int = 0
    series: int = 0
    #: Segment, and number of its dictionaries, that `series` come from: a chunk of the same need not read them again.
    told: tuple[Path, int] = (Path(), 0)


class SampleSpool:
    """The samples of one agent, now in `epoch`, in files below `folder`.

    bytes_max, age_s_max: beyond them the oldest samples go; ages are told by the blocks' own times.
    """

    def __init__(self, folder: Path, epoch: str, *, bytes_max: int = BYTES_MAX, age_s_max: float = AGE_S_MAX) -> None:
        self._folder = folder
        self._epoch = epoch
        self._bytes_max = bytes_max
        self._age_ns_max = int(age_s_max * 1e9)
        # So many that dropping one costs little, so few that dictionaries are a small part of them.
        self._segment_bytes = min(256 * 1024, bytes_max // 8)
        self._segments: list[_Segment] = []
        self._delivered: dict[str, Intervals] = {}
        self._fd = -1
        self._series_written = 0
        self._next = 1
        self._reader = _Reader()
        #: Blocks that were given up, and those of them that the collector has not heard of.
        self.lost = 0
        self.lost_untold = 0
        #: Writes that the disk refused: its block is gone when it is not sent at once.
        self.write_errors = 0
        self._failing = False
        folder.mkdir(parents=True, exist_ok=True)
        self._load_delivered()
        self._state_fd = os.open(folder / "delivered", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._number = 0
        for path in sorted(folder.glob("[0-9]" * 10 + ".segment")):
            self._number = int(path.stem)
            try:
                self._open_segment(path)
            except OSError as error:  # of a failing disk, which is no reason to watch nothing
                log.error("samples %s: %s; its blocks are not sent", path, error.strerror)
        known = {segment.epoch for segment in self._segments}
        self._delivered = {epoch: have for epoch, have in self._delivered.items() if epoch in known}
        self._drop_delivered()

    @property
    def nbytes(self) -> int:
        """Of all segments."""
        return sum(segment.size for segment in list(self._segments))

    @property
    def blocks_waiting(self) -> int:
        """Blocks that the collector has not acked."""
        return sum(self._missing(segment) for segment in list(self._segments))

    def append(self, block: Block, keys: Sequence[SeriesKey], *, live: bool) -> None:
        """Keeps the block. keys: the dictionary, at least `block.series` long. live: it is sent at once too."""
        self._give_up_old(block.time_unix_ns)
        skipped, self._next = (self._next, block.sequence - 1), block.sequence + 1
        if skipped[0] <= skipped[1]:  # too many jobs waited for the disk
            have = self._delivered.setdefault(self._epoch, Intervals())
            self._lose(have.missing(*skipped))
            have.add(*skipped)
            self._end_segment()
        if block.keyframe and (self._fd < 0 or self._segments[-1].size >= self._segment_bytes):
            self._begin_segment(block.sequence)
        if self._fd < 0:  # the disk refused an earlier one, on which this one builds
            self._lose_unless(live, block.sequence)
            return
        data = b""
        if block.series > self._series_written:
            new = zlib.compress(dictionary_message(keys, self._series_written, block.series).SerializeToString(), 1)
            data = _record(_DICTIONARY, 0, new)
        data += _record(_KEYFRAME if block.keyframe else _BLOCK, block.sequence, block.message)
        segment = self._segments[-1]
        try:
            write_whole(self._fd, data)
        except OSError as error:
            self._refused(error)
            self._lose_unless(live, block.sequence)
            return
        self._failing = False
        self._series_written = max(block.series, self._series_written)
        segment.last, segment.newest_unix_ns = block.sequence, block.time_unix_ns
        segment.size += len(data)

    def delivered(self, epoch: str, first: int, last: int, *, lost: int = 0) -> None:
        """The collector has the blocks from `first` to `last`, and was told of so many lost ones."""
        self._delivered.setdefault(epoch, Intervals()).add(first, last)
        self.lost_untold -= lost
        self._drop_delivered()
        self._save_delivered()

    def begin_reading(self) -> None:
        """For a new connection: whoever reads the next chunk knows nothing."""
        self._reader = _Reader()

    def next_chunk(self, before: int) -> Chunk | None:
        """The oldest blocks that the collector has not; None when there are none.

        before: of the present epoch, only blocks below this sequence: the others are under way.
        """
        for segment in list(self._segments):
            limit = before if segment.epoch == self._epoch else segment.last + 1
            if self._missing(segment, limit) and (chunk := self._read(segment, limit)) is not None:
                return chunk
        if self.lost_untold:
            return Chunk(self._epoch, pb.Dictionary(), [], 0, 0, self.lost_untold)
        return None

    def close(self) -> None:
        for fd in (self._fd, self._state_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._state_fd = -1

    def _read(self, segment: _Segment, limit: int) -> Chunk | None:
        have = self._delivered.get(segment.epoch, Intervals())
        try:
            records = list(_records(segment.path.read_bytes()))
        except OSError as error:
            log.error("samples %s: %s", segment.path, error.strerror)
            self._drop(segment)
            return None
        blocks = [record for record in records if record.kind >= _BLOCK]
        wanted = [record.sequence not in have and record.sequence < limit for record in blocks]
        if True not in wanted:
            self._drop(segment)  # damaged since it was written
            return None
        reader = self._reader if self._reader.epoch == segment.epoch else _Reader(segment.epoch)
        fresh = begin = wanted.index(True)
        if blocks[fresh].sequence != reader.last + 1:
            while begin and blocks[begin].kind != _KEYFRAME and blocks[begin - 1].sequence != reader.last:
                begin -= 1
        end, size = begin, 0
        while (
            end < len(blocks)
            and (end < fresh or wanted[end])
            and end - begin < CHUNK_BLOCKS_MAX
            and size < CHUNK_BYTES_MAX
        ):
            size += len(blocks[end].payload)
            end += 1
        last = blocks[end - 1].sequence
        packed = [record.payload for record in records if record.kind == _DICTIONARY]
        told = pb.Dictionary()
        if reader.told != (segment.path, len(packed)):
            for part in packed:
                told.MergeFromString(zlib.decompress(part))
            known = len(told.series)
            del told.series[: reader.series]
            reader = _Reader(segment.epoch, last, max(reader.series, known), (segment.path, len(packed)))
        self._reader = replace(reader, last=last)
        payloads = [record.payload for record in blocks[begin:end]]
        return Chunk(segment.epoch, told, payloads, blocks[fresh].sequence, last, self.lost_untold)

    def _missing(self, segment: _Segment, limit: int | None = None) -> int:
        last = segment.last if limit is None else min(segment.last, limit - 1)
        have = self._delivered.get(segment.epoch)
        return have.missing(segment.first, last) if have is not None else max(0, last - segment.first + 1)

    def _begin_segment(self, sequence: int) -> None:
        self._end_segment()
        self._number += 1
        path = self._folder / f"{self._number:010d}.segment"
        data = _record(_EPOCH, 0, self._epoch.encode())
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
            write_whole(self._fd, data)
        except OSError as error:
            self._refused(error)
            path.unlink(missing_ok=True)  # or a full disk would get another empty file at each keyframe
            return
        self._series_written = 0
        self._segments.append(_Segment(path, self._epoch, sequence, sequence - 1, len(data)))

    def _refused(self, error: OSError) -> None:
        """What cannot be written ends its segment: the blocks after it would mean nothing."""
        self._count(error)
        self._end_segment()

    def _count(self, error: OSError) -> None:
        self.write_errors += 1
        if not self._failing:  # said once, or a full disk would fill the log as well
            log.error("samples %s: %s; free some space", self._folder, error.strerror)
        self._failing = True

    def _end_segment(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _lose_unless(self, live: bool, sequence: int) -> None:
        if not live:
            self._lose(1)
        self._delivered.setdefault(self._epoch, Intervals()).add(sequence, sequence)

    def _lose(self, blocks: int) -> None:
        self.lost += blocks
        self.lost_untold += blocks

    def _give_up_old(self, now_unix_ns: int) -> None:
        while len(self._segments) > 1:
            oldest = self._segments[0]
            if self.nbytes <= self._bytes_max and now_unix_ns - oldest.newest_unix_ns <= self._age_ns_max:
                return
            self._drop(oldest)

    def _drop_delivered(self) -> None:
        for segment in self._segments[: -1 if self._fd >= 0 else None]:
            if not self._missing(segment):
                self._drop(segment)

    def _drop(self, segment: _Segment) -> None:
        if missing := self._missing(segment):
            self._lose(missing)
        if segment is self._segments[-1]:
            self._end_segment()
        self._segments.remove(segment)
        segment.path.unlink(missing_ok=True)
        if segment.epoch != self._epoch and not any(other.epoch == segment.epoch for other in self._segments):
            self._delivered.pop(segment.epoch, None)
        elif missing:
            self._delivered.setdefault(segment.epoch, Intervals()).add(segment.first, segment.last)
        if missing:
            self._save_delivered()

    def _open_segment(self, path: Path) -> None:
        """Takes in a segment that an earlier agent wrote, as far as it can be read."""
        data = path.read_bytes()
        records = list(_records(data))
        blocks = [record for record in records if record.kind >= _BLOCK]
        if not blocks or records[0].kind != _EPOCH or blocks[0].kind != _KEYFRAME:
            path.unlink()
            return
        newest = pb.Block.FromString(blocks[-1].payload).time_unix_ns
        epoch = records[0].payload.decode()
        self._segments.append(_Segment(path, epoch, blocks[0].sequence, blocks[-1].sequence, len(data), newest))

    def _load_delivered(self) -> None:
        try:
            line = (self._folder / "delivered").read_bytes().partition(b"\n")[0]
            checksum, _, body = line.partition(b" ")
            state = json.loads(body) if checksum == b"%08x" % zlib.crc32(body) else {}
        except FileNotFoundError:
            state = {}
        self._delivered = {epoch: Intervals(pairs) for epoch, pairs in state.get("delivered", {}).items()}
        self.lost_untold = state.get("lost", 0)

    def _save_delivered(self) -> None:
        delivered = {epoch: list(have) for epoch, have in self._delivered.items()}
        body = json.dumps({"delivered": delivered, "lost": self.lost_untold}, separators=(",", ":")).encode()
        try:
            # In place, with what an earlier and longer state leaves behind the line.
            os.pwrite(self._state_fd, b"%08x %s\n" % (zlib.crc32(body), body), 0)
        except OSError as error:
            self._count(error)


def _record(kind: int, sequence: int, payload: bytes) -> bytes:
    # The checksum covers the head as well: its place is 0 while it is made.
    head = _RECORD.pack(0, len(payload), sequence, kind)
    return _RECORD.pack(zlib.crc32(payload, zlib.crc32(head)), len(payload), sequence, kind) + payload


def _records(data: bytes) -> Iterator[_Record]:
    """Up to the end, or to what a crash cut short or the disk damaged."""
    offset = 0
    while offset + _RECORD.size <= len(data):
        checksum, length, sequence, kind = _RECORD.unpack_from(data, offset)
        payload = data[offset + _RECORD.size : offset + _RECORD.size + length]
        head = _RECORD.pack(0, length, sequence, kind)
        if len(payload) < length or checksum != zlib.crc32(payload, zlib.crc32(head)):
            return
        yield _Record(kind, sequence, payload)
        offset += _RECORD.size + length
