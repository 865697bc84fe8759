"""Log files of the ranks: where they lie, their last lines, and their echo in the terminal."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

#: Generations whose logs are kept.
GENERATIONS_KEPT = 20
STDERR_TAIL_BYTES_MAX = 4096
#: What one look at a file echoes at most, so that a rank that floods its log cannot hold the launcher.
_ECHO_BYTES_MAX = 1 << 20
_LOG_NAME = re.compile(r"rank-\d+\.(stdout|stderr|error)\.log")
#: A traceback is part of it.
_ERROR_FILE_BYTES_MAX = 1 << 20
_ERROR_LENGTH_MAX = 1024
#: With less of it free, a write of some size finds none.
_ROOM_BYTES_MIN = 1 << 20
STREAMS = ("stdout", "stderr")


@dataclass(frozen=True, slots=True)
class Streams:
    """A choice of STREAMS: `everywhere`, and those of single local ranks beside them."""

    everywhere: frozenset[str] = frozenset()
    by_local_rank: Mapping[int, frozenset[str]] = field(default_factory=dict)

    def of(self, local_rank: int) -> frozenset[str]:
        return self.everywhere | self.by_local_rank.get(local_rank, frozenset())


@dataclass(frozen=True, slots=True)
class EchoRule:
    """What of the ranks' output the terminal shows: all that is not redirected, or teed all the same.

    local_ranks: only theirs; None: everybody's.
    """

    local_ranks: frozenset[int] | None = None
    redirected: Streams = Streams()
    teed: Streams = Streams()

    def streams(self, local_rank: int) -> tuple[str, ...]:
        """Those of STREAMS that are shown of that rank."""
        if self.local_ranks is not None and local_rank not in self.local_ranks:
            return ()
        hidden = self.redirected.of(local_rank) - self.teed.of(local_rank)
        return tuple(stream for stream in STREAMS if stream not in hidden)


class LogFolder:
    """`<directory>/<generation>/rank-<R>.{stdout,stderr,error}.log`; nodes may share the folder.

    error: what torch's `record` writes about an exception, JSON.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, generation: int, rank: int, stream: str) -> Path:
        return self._directory / str(generation) / f"rank-{rank}.{stream}.log"

    def prepare(self, generation: int, rank: int) -> None:
        """Makes both files of a rank, empty. Raises OSError."""
        self.path(generation, rank, "error").unlink(missing_ok=True)  # of an earlier run with this folder
        for stream in STREAMS:
            path = self.path(generation, rank, stream)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")

    def stderr_tail(self, generation: int, rank: int) -> str:
        """Whole lines from the end, at most 4 KiB; a single longer line is cut at its front."""
        path = self.path(generation, rank, "stderr")
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - STDERR_TAIL_BYTES_MAX))
                tail = file.read(STDERR_TAIL_BYTES_MAX)
        except OSError:
            return ""
        if size > STDERR_TAIL_BYTES_MAX and b"\n" in tail[:-1]:
            tail = tail.partition(b"\n")[2]
        # Replacement characters are three bytes long: what they push beyond the bound goes.
        return tail.decode("utf-8", "replace").encode()[-STDERR_TAIL_BYTES_MAX:].decode("utf-8", "ignore")

    def recorded_error(self, generation: int, rank: int) -> str:
        """What a program under torch's `record` wrote about its exception: type and message, at most 1 KiB; empty: nothing."""
        try:
            with self.path(generation, rank, "error").open("rb") as file:
                message = json.loads(file.read(_ERROR_FILE_BYTES_MAX))["message"]
            text = message["message"] if isinstance(message, dict) else message
        except (OSError, ValueError, KeyError, TypeError):  # anybody may write there, in any form
            return ""
        return text.encode()[:_ERROR_LENGTH_MAX].decode("utf-8", "ignore") if isinstance(text, str) else ""

    def full(self, exception: str) -> str:
        """Where an exception that speaks of a full disk may come from: names the folder when it is on one; empty when not."""
        try:
            if f"[Errno {errno.ENOSPC}]" in exception and shutil.disk_usage(self._directory).free < _ROOM_BYTES_MIN:
                return f" (the disk of the logs in {self._directory} is full)"
        except OSError:
            pass
        return ""

    def prune(self, generation: int) -> None:
        """Removes our logs of generations beyond the newest GENERATIONS_KEPT; other files there are the user's.

        Raises OSError when the folder cannot be listed.
        """
        for folder in self._directory.iterdir():
            if not folder.name.isdigit() or int(folder.name) > generation - GENERATIONS_KEPT:
                continue
            try:
                for path in folder.iterdir():
                    if _LOG_NAME.fullmatch(path.name):
                        path.unlink(missing_ok=True)
                folder.rmdir()
            except OSError:
                continue  # another node of the job was faster, or the folder has files of the user's


class Echo:
    """Copies what one rank writes into a log to the terminal, line by line, with `[rank N] ` in front."""

    def __init__(self, path: Path, rank: int, out: TextIO) -> None:
        self._path = path
        self._prefix = f"[rank {rank}] "
        self._out = out
        self._offset = 0
        self._rest = b""

    def poll(self) -> bool:
        """Copies whole lines that are new, 1 MiB at most; whether there were any."""
        try:
            if self._path.stat().st_size == self._offset:
                return False
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(_ECHO_BYTES_MAX)
        except OSError:
            return False
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _ECHO_BYTES_MAX:
            lines.append(self._rest)
            self._rest = b""
        self._write(lines)
        return bool(data)

    def drain(self) -> None:
        """Copies all that is left, also what stands behind the last line break: the rank has ended."""
        while self.poll():
            pass
        self._write([self._rest] if self._rest else [])
        self._rest = b""

    def _write(self, lines: list[bytes]) -> None:
        for line in lines:
            self._out.write(f"{self._prefix}{line.decode('utf-8', 'replace')}\n")
        if lines:
            self._out.flush()
