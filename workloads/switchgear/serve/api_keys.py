"""Keys of the router's clients: a file with one a line, read again while the router runs, so that keys change without a restart."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from switchgear.core.clock import Clock
from switchgear.core.errors import FailedPrecondition, Reason, SwitchgearError, Unauthenticated

log = logging.getLogger(__name__)

#: Also bounds the number of keys, to some 500: each request is compared with all of them.
FILE_BYTES_MAX = 16 << 10
#: Nothing slows a guesser down but the length: 24 random bytes in base64.
KEY_LENGTH_MIN = 32
#: A change of the file holds at every request within this.
FRESH_S = 1.0
_MAKE = "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
# The group may read, which is how an orchestrator hands a secret to a process that does not own the file.
_FOR_OTHERS = stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH


class ApiKeys:
    """The keys in `path`, none of them kept: their SHA-256 is.

    Raises FailedPrecondition (KEY_FILE), see `read`. Afterwards a file that cannot be used changes nothing: the last keys hold, and
    the log says why.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._digests = [_digest(key) for key in read(path)]
        self._read_s = clock.monotonic_s()
        self._trouble = ""

    def require(self, authorization: str | None) -> None:
        """Raises Unauthenticated unless the value of an `Authorization` header has a key of the file."""
        self._refresh()
        scheme, _, key = (authorization or "").strip().partition(" ")
        digest = _digest(key.strip())
        # All are compared, whichever fits.
        fitting = sum(hmac.compare_digest(digest, good) for good in self._digests)
        if scheme.lower() != "bearer" or not fitting:
            raise Unauthenticated(
                "there is no valid API key; send one of those that the router's operator gives out, in the header "
                "`Authorization: Bearer KEY`",
                Reason.UNAUTHENTICATED,
            )

    def _refresh(self) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - self._read_s < FRESH_S:
            return
        self._read_s = now_s
        try:
            self._digests = [_digest(key) for key in read(self._path)]
            trouble = ""
        except SwitchgearError as error:
            trouble = error.message
        if trouble and trouble != self._trouble:
            log.error("the API keys stay as they were: %s", trouble)
        self._trouble = trouble


def read(path: Path) -> Sequence[str]:
    """The keys of the file, at least one; blank lines and lines that begin with `#` are none.

    Raises FailedPrecondition (KEY_FILE) when it cannot be read, is no regular file, is larger than FILE_BYTES_MAX, may be read or
    written by others, or has a line that is no key, or none that is. No message has a key in it.
    """
    keys = list[str]()
    for number, line in enumerate(_content(path).splitlines(), 1):
        key = line.strip()
        if not key or key.startswith(b"#"):
            continue
        if len(key) < KEY_LENGTH_MIN or not all(0x21 <= byte <= 0x7E for byte in key):
            raise _unusable(
                path, f"line {number} is no key of at least {KEY_LENGTH_MIN} ASCII characters; make one with {_MAKE}"
            )
        keys.append(key.decode())
    if not keys:
        raise _unusable(path, f"there is no key in it; make one with {_MAKE}")
    return keys


def _content(path: Path) -> bytes:
    try:
        # Does not wait for a writer when it is a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise _unusable(path, "it is no regular file, which can be read again; write the keys into one")
            if mode & _FOR_OTHERS:
                raise _unusable(path, f"other users may read or change it; run: chmod 600 {path}")
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(FILE_BYTES_MAX + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unusable(
            path,
            f"it cannot be read ({error.strerror}); write one key a line into a file that only the router's user may read",
        ) from error
    if len(content) > FILE_BYTES_MAX:
        raise _unusable(path, f"it has more than {FILE_BYTES_MAX} bytes; remove keys that nobody uses")
    return content


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _unusable(path: Path, why: str) -> FailedPrecondition:
    return FailedPrecondition(f"key file {path}: {why}", Reason.KEY_FILE, path=str(path))
