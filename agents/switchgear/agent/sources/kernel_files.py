"""Files of /proc and /sys, read without the cost of Python's file objects."""

from __future__ import annotations

import os
from pathlib import Path

from switchgear.agent.readings import Reading, SeriesKey, known, unknown

PROCFS = Path("/proc")
SYSFS = Path("/sys")
#: An attribute of sysfs has no more.
PAGE_BYTES = 4096
#: More than any table that is read here has, with a thousand mounts of containers; what is longer is cut.
TABLE_BYTES_MAX = 1 << 22
# Of one read. Beyond 128 KiB each costs a mapping of its own, and ten times the time.
_CHUNK_BYTES = 1 << 16
#: Open files that one `KernelFiles` keeps; a service often may have 1,024 in all.
OPEN_MAX = 256


class KernelFiles:
    """Files that are read at every tick: opened once, and each time read from their start.

    On sysfs that costs a tenth of opening them anew. A file that fails is closed, and opened again at the next read, so that a
    device which is back under its name is found. Not for several threads at once.
    """

    def __init__(self) -> None:
        self._fds = dict[str, int]()

    def read(self, path: str) -> bytes:
        """The first page, which is all of an attribute of sysfs. Raises OSError."""
        fd = self._fds.get(path)
        if fd is None:
            if len(self._fds) >= OPEN_MAX:
                return read_once(path)
            fd = self._fds[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, PAGE_BYTES, 0)
        except OSError:
            del self._fds[path]
            os.close(fd)
            raise

    def table(self, path: str) -> str:
        """The whole of a table of procfs, at most TABLE_BYTES_MAX; the kernel gives it in pieces of about a page. Raises OSError."""
        text = self.read(path)
        fd = self._fds.get(path)
        return (table_once(path) if fd is None else _rest(fd, text)).decode(errors="replace")

    def reading(self, path: str, key: SeriesKey, scale: float = 1.0) -> Reading:
        """The number that the file holds, times `scale`, or unknown with the reason."""
        try:
            return known(key, int(self.read(path)) * scale)
        except OSError as error:
            return unknown(key, f"{path.rpartition('/')[2]}: {error.strerror}")
        except ValueError:
            return unknown(key, f"{path.rpartition('/')[2]} is not a number")

    def close_under(self, folder: str) -> None:
        """Forgets the files below `folder`, whose device is gone."""
        for path in [path for path in self._fds if path.startswith(folder)]:
            os.close(self._fds.pop(path))

    def close(self) -> None:
        self.close_under("")


def read_once(path: str | Path) -> bytes:
    """The first page. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, PAGE_BYTES)
    finally:
        os.close(fd)


def table_once(path: str | Path) -> bytes:
    """The whole of a table of procfs, at most TABLE_BYTES_MAX. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _rest(fd, b"")
    finally:
        os.close(fd)


def _rest(fd: int, text: bytes) -> bytes:
    while len(text) < TABLE_BYTES_MAX and (more := os.pread(fd, _CHUNK_BYTES, len(text))):
        text += more
    return text


def word(path: str | Path) -> str:
    """The one line that the file holds; "" when it cannot be read."""
    try:
        return read_once(path).decode(errors="replace").strip()
    except OSError:
        return ""


def number(path: str | Path) -> int | None:
    """The number that the file holds; None when it cannot be read or is none."""
    try:
        return int(read_once(path))
    except (OSError, ValueError):
        return None


def names(folder: str | Path) -> list[str]:
    """The names in the folder, in order; none when it cannot be listed."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - a Path for each name costs more than reading what it names
    except OSError:
        return []


def exists(path: str | Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - the same
