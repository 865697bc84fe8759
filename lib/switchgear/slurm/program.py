"""One run of one of Slurm's programs: bounded in time and in what it may write, and ended with all that it has started."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Ended:
    """How a program has ended."""

    #: Negative: the number of the signal that ended it.
    code: int
    out: bytes
    errors: str
    #: It was killed, because it took too long or wrote too much.
    timed_out: bool = False
    overflowed: bool = False


class Program:
    """Blocks while it runs: for a thread of its own.

    It is started by `subprocess`, which uses vfork: a server with gigabytes of memory is not copied for it, and what gRPC hooks into
    fork is not called.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], stdin: str) -> None:
        self._command, self._environment, self._stdin = command, environment, stdin
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def run(self, timeout_s: float, out_max_bytes: int, errors_max_bytes: int) -> Ended:
        """Returns when it has ended or was killed. Raises OSError when it cannot be started."""
        deadline_s = time.monotonic() + timeout_s
        out, errors = bytearray(), bytearray()
        overflowed = False
        with self._start() as process, selectors.DefaultSelector() as selector:
            try:
                for stream, text, max_bytes in (
                    (process.stdout, out, out_max_bytes),
                    (process.stderr, errors, errors_max_bytes),
                ):
                    if stream is not None:
                        selector.register(stream, selectors.EVENT_READ, (text, max_bytes))
                while selector.get_map() and not overflowed and (left_s := deadline_s - time.monotonic()) > 0:
                    for key, _ in selector.select(left_s):
                        text, max_bytes = key.data
                        chunk = os.read(key.fd, _CHUNK_BYTES)
                        text += chunk
                        overflowed = overflowed or len(text) > max_bytes
                        if not chunk:
                            selector.unregister(key.fileobj)
                if not overflowed:
                    process.wait(max(0.0, deadline_s - time.monotonic()))
                timed_out = False
            except subprocess.TimeoutExpired:
                timed_out = True
            finally:
                _kill(process)
        return Ended(process.returncode, bytes(out), errors.decode(errors="replace"), timed_out, overflowed)

    def stop(self) -> None:
        """Ends it, from another thread; when it has not started yet, as soon as it has."""
        self._stopped = True
        if self._process is not None:
            _kill(self._process)

    def _start(self) -> subprocess.Popen[bytes]:
        # A file, not a pipe: a script may be longer than what a pipe holds.
        with os.fdopen(os.memfd_create("script"), "w+b") as script:
            script.write(self._stdin.encode())
            script.seek(0)
            self._process = subprocess.Popen(
                self._command,
                stdin=script,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment,
                start_new_session=True,
            )
        if self._stopped:
            _kill(self._process)
        return self._process


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
