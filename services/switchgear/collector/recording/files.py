"""Files of a recording: an Arrow stream while one is written, so that all that was written can be read after a crash; then Parquet."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from switchgear.core.errors import Invalid, Reason

log = logging.getLogger(__name__)

KINDS = ("events", "samples")
OPEN, ENDED = ".arrows", ".parquet"
_PART = ".part"
#: Reads an open file, writes an ended one.
Seal = Callable[[Path, Path], None]


class Journal:
    """A file that is written to. Whoever has it open holds its lock."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Raises OSError."""
        self.path = path
        self._file = path.open("xb")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The least level: this is read once, to be packed well.
        options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=1))
        self._stream = pa.ipc.new_stream(self._file, schema, options=options)
        self._is_empty = True

    def write(self, batch: pa.RecordBatch) -> None:
        """Returns when the system has it: the end of this process does not lose it. Raises OSError."""
        self._stream.write_batch(batch)
        self._file.flush()
        self._is_empty = False

    @property
    def nbytes(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        """Raises OSError; the file is closed all the same. One in which nothing is leaves no trace: on a full disk there would be many."""
        try:
            self._stream.close()
        finally:
            if self._is_empty:
                self.path.unlink(missing_ok=True)
            self._file.close()


class Reel:
    """The files of one kind that one collector writes, one after the other. For one thread."""

    def __init__(self, folder: Path, kind: str, run_id: str, schema: pa.Schema, seal: Seal) -> None:
        self._folder, self._kind, self._run_id, self._schema, self._seal = folder, kind, run_id, schema, seal
        self._journal: Journal | None = None
        self._number = 0
        #: Of the open file.
        self.nbytes = 0

    def write(self, batch: pa.RecordBatch, now_unix_ns: int) -> None:
        """Raises OSError; then the next write begins another file."""
        if self._journal is None:
            self._number += 1
            name = f"{self._kind}-{_stamp(now_unix_ns)}-{self._run_id[:8]}-{self._number:04}{OPEN}"
            self._journal = Journal(self._folder / name, self._schema)
        try:
            self._journal.write(batch)
            self.nbytes = self._journal.nbytes
        except OSError:
            journal, self._journal = self._journal, None
            journal.close()
            raise

    def end(self) -> None:
        """Ends the file that is open, if one is. Raises OSError; what was written is still there then."""
        journal, self._journal = self._journal, None
        self.nbytes = 0
        if journal is not None:
            journal.close()
            seal(journal.path, self._seal)


def seal(journal: Path, how: Seal) -> None:
    """Turns an open file that nobody writes to into an ended one; one that is still written to stays. Raises OSError."""
    with journal.open("rb") as file:
        if not _locked(file):
            return
        ended = journal.with_suffix(ENDED)
        part = ended.with_name(ended.name + _PART)
        try:
            how(journal, part)
            with part.open("rb") as packed:
                os.fsync(packed.fileno())  # before what it was made of goes
            part.replace(ended)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        journal.unlink()


def left_open(folder: Path, kind: str) -> list[Path]:
    """What collectors that died have left, and what others write now."""
    return sorted(folder.glob(f"{kind}-*{OPEN}"))


def batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The rows of a file, ended or not. Raises Invalid when it is gone or none of ours, OSError when it cannot be read."""
    if path.suffix == OPEN:
        try:
            file = path.open("rb")
        except FileNotFoundError:
            path = path.with_suffix(ENDED)  # since it was listed
        else:
            yield from _of_journal(path, file)
            return
    try:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches()
    except FileNotFoundError:
        raise Invalid(f"{path} is not there; it may have been the oldest of its folder", Reason.BAD_FIELD) from None
    except pa.ArrowInvalid as error:
        raise Invalid(f"{path} is no recording: {error}; give files *{ENDED} or *{OPEN}", Reason.BAD_FIELD) from None


def prune(folder: Path, bytes_max: int) -> int:
    """Deletes the oldest ended files until all have at most so many bytes; returns how many bytes are left."""
    found = sorted(
        (path.name.partition("-")[2], path)
        for kind in KINDS
        for suffix in (OPEN, ENDED)
        for path in folder.glob(f"{kind}-*{suffix}")
    )
    sizes = {path: _size(path) for _, path in found}
    total = sum(sizes.values())
    for _, path in found:
        if total <= bytes_max:
            break
        if path.suffix == ENDED:
            path.unlink(missing_ok=True)
            total -= sizes[path]
    return total


def _of_journal(path: Path, file: BinaryIO) -> Iterator[pa.RecordBatch]:
    with file:
        try:
            with pa.ipc.open_stream(file) as stream:
                yield from stream
        except (pa.ArrowInvalid, OSError) as error:
            # Cut off in the middle of a batch, as a crash leaves it.
            log.info("%s ends early: %s", path, error)


def _locked(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # ended meanwhile
        return 0


def _stamp(unix_ns: int) -> str:
    whole = datetime.fromtimestamp(unix_ns // 10**9, UTC)
    return f"{whole:%Y%m%dT%H%M%S}.{unix_ns // 10**6 % 1000:03}Z"
