"""Secrets in files, for the headers of requests. What is wrong with one is told without it."""

from __future__ import annotations

import errno
from pathlib import Path

_BYTES_MAX = 16 * 1024
_PRINTABLE = frozenset(range(0x20, 0x7F))


def read_secret(file: Path) -> bytes:
    """What is in the file, without the white space around. Raises OSError with the file's name."""
    with file.open("rb") as opened:
        return opened.read(_BYTES_MAX).strip()


def header_secret(file: Path) -> str:
    """The same as the value of a header. Raises OSError with the file's name for what cannot be one.

    Clients of HTTP and gRPC refuse such a value too, and put it into their messages.
    """
    secret = read_secret(file)
    if not _PRINTABLE.issuperset(secret):
        raise OSError(errno.EINVAL, "the secret must be one line of printable ASCII", str(file))
    return secret.decode()
