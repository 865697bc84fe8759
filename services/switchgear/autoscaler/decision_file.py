"""Files of a decision log: numbered, bounded in number and size, each of which can be replayed by itself."""

from __future__ import annotations

import gzip
import logging
import shutil
from collections.abc import Iterator
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path

from switchgear.autoscaler.decision_log import Head, Record, head_line, record_line

log = logging.getLogger(__name__)

#: A file of a service with a few replicas holds a day, all of them more than a week; beyond either bound the oldest goes. A process that
#: begins again and again begins a small file each time: these do not push out what went before.
FILE_BYTES_MAX = 16 << 20
FILES_MAX = 100
#: On disk, of all files but the newest.
KEPT_BYTES_MAX = 16 << 20
_SUFFIX = ".jsonl"


class DecisionFile:
    """Writes the newest file of `folder`, which is made. One process writes a folder.

    bytes_max: after which a new file begins, and those before it are compressed. files_max: beyond it, or
    `KEPT_BYTES_MAX`, the oldest goes.
    """

    def __init__(self, folder: Path, *, bytes_max: int = FILE_BYTES_MAX, files_max: int = FILES_MAX) -> None:
        self._folder, self._bytes_max, self._files_max = folder, bytes_max, files_max
        self._file: TextIOWrapper | None = None

    @property
    def needs_head(self) -> bool:
        """Whether the next record begins a file; then its head must be made before the policy decides."""
        return self._file is None or self._file.tell() >= self._bytes_max

    def append(self, record: Record, head: Head | None) -> None:
        """Writes a decision. head: what the policy remembered before it; required when `needs_head`.

        Raises OSError when it cannot be written, ValueError when it has a number that is none; the next one then begins a new file, since
        this one misses a decision.
        """
        try:
            line = record_line(record)
            if head is None and self._file is None:
                raise ValueError("a file of decisions begins with its head")
            if head is not None:
                self.close()
                self._begin(f"{head_line(head)}\n{line}\n")
            elif self._file is not None:
                self._file.write(line + "\n")
                self._file.flush()
        except (OSError, ValueError):
            self.close()
            raise

    def close(self) -> None:
        """The next record begins a new file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _begin(self, text: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        found = files(self._folder)
        number = _number(found[-1]) + 1 if found else 1
        path = self._folder / f"{number:08d}{_SUFFIX}"
        file = path.open("x", encoding="utf-8")
        try:
            file.write(text)
            file.flush()
        except OSError:
            # On a full disk nothing old is to go for a file that has nothing.
            path.unlink()
            with suppress(OSError):
                file.close()
            raise
        self._file = file
        with suppress(OSError):  # the decision is written
            self._tidy()

    def _tidy(self) -> None:
        """Compresses all files but the newest, and removes the oldest that are too many."""
        kept = 0
        for number, path in enumerate(reversed(files(self._folder)[:-1]), 2):
            packed = _compress(path) if path.suffix == _SUFFIX and number <= self._files_max else path
            kept += packed.stat().st_size
            if number > self._files_max or kept > KEPT_BYTES_MAX:
                packed.unlink(missing_ok=True)


def files(folder: Path) -> list[Path]:
    """The files of a log, oldest first; none when there is no such folder."""
    # What is being compressed has a dot in front, and is left behind by a process that is killed.
    found = {_number(path): path for path in folder.glob(f"[0-9]*{_SUFFIX}") if path.stem.isdecimal()}
    # One that is there twice was being removed after it had been compressed.
    packed = {
        _number(path): path for path in folder.glob(f"[0-9]*{_SUFFIX}.gz") if path.name.partition(".")[0].isdecimal()
    }
    return [path for _, path in sorted((found | packed).items())]


def _number(path: Path) -> int:
    return int(path.name.partition(".")[0])


def _compress(path: Path) -> Path:
    """The file that is there then, of a twentieth of the size. Readers find one or the other. What has no room is compressed when the next
    file begins."""
    packed = path.with_name(f"{path.name}.gz")
    part = path.with_name(f".{packed.name}")
    try:
        with path.open("rb") as source, gzip.open(part, "wb", compresslevel=6) as target:
            shutil.copyfileobj(source, target)
        part.replace(packed)
        path.unlink()
    except OSError:
        log.warning("a file of a decision log stays as it is, it cannot be compressed", exc_info=True)
        with suppress(OSError):
            part.unlink(missing_ok=True)
        return path
    return packed


class Tail:
    """Reads a log from its oldest file on, and what is written meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self._offset = 0  # in the file as it was before it was compressed

    def lines(self) -> Iterator[str]:
        """Whole lines since the last call, without their ends."""
        found = files(self._folder)
        if found and _number(found[-1]) < self._number:
            self._number = self._offset = 0  # the log of another service of that name
        for path in found:
            if _number(path) < self._number:
                continue
            if _number(path) > self._number:
                self._number, self._offset = _number(path), 0
            try:
                with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                    file.seek(self._offset)
                    for line in file:
                        if not line.endswith(b"\n"):
                            break
                        self._offset += len(line)
                        yield line[:-1].decode("utf-8", errors="replace")
            except FileNotFoundError:
                yield from self.lines()  # it has just been compressed, or was the oldest: look again
                return
