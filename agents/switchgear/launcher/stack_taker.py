"""Asks a running rank for its Python stack: by py-spy where that is found and permitted, else by the signal that the rank answers."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from switchgear.core.clock import Clock
from switchgear.launcher import proc, stacks, steplog
from switchgear.launcher.stacks import Frame
from switchgear.launcher.state import Process
from switchgear.launcher.zygote import zygote_path

log = logging.getLogger(__name__)

#: Reading the symbols of a process with all of CUDA takes py-spy seconds the first time.
_PY_SPY_TIMEOUT_S = 10.0
#: Until it is tried again after a failure: mostly it lacks a right, but a machine may only have been too busy.
_PY_SPY_RETRY_S = 60.0
#: A rank answers within a millisecond. One that waits for a processor does when it gets one.
_ANSWER_TIMEOUT_S = 1.0
_STARVED_TIMEOUT_S = 5.0
_ANSWER_POLL_S = 0.01
#: Ranks that are asked at the same time: each takes a core for a moment.
_AT_ONCE = 2


class StackTaker:
    """For the ranks of one launcher. python: the job's interpreter, beside which py-spy may lie."""

    def __init__(self, python: str, clock: Clock) -> None:
        self._py_spy = _find_py_spy(python)
        self._py_spy_due_s = 0.0
        self._py_spy_trouble = ""
        self._clock = clock
        self._ours = f"{zygote_path().parent}{os.sep}"
        self._turn = asyncio.Semaphore(_AT_ONCE)

    async def take(self, process: Process, fd: int | None) -> list[Frame]:
        """The stack of a rank's main thread, outermost frame first; empty when it cannot be had.

        fd: where it answers STACK_SIGNAL; None: it does not.
        """
        async with self._turn:
            if proc.start_ticks(process.pid) != process.start_ticks:
                return []
            if self._py_spy and self._clock.monotonic_s() >= self._py_spy_due_s:
                try:
                    return await asyncio.to_thread(self._by_py_spy, self._py_spy, process.pid)
                except (OSError, ValueError, subprocess.SubprocessError) as error:
                    self._py_spy_due_s = self._clock.monotonic_s() + _PY_SPY_RETRY_S
                    reason = _reason(error)
                    if reason != self._py_spy_trouble:
                        log.warning("py-spy cannot read ranks, the signal is used for a while: %s", reason)
                    self._py_spy_trouble = reason
            return [] if fd is None else await asyncio.to_thread(self._by_signal, process, fd)

    def _by_py_spy(self, py_spy: str, pid: int) -> list[Frame]:
        # Without `--nonblocking` it would stop the rank while it reads.
        command = [py_spy, "dump", "--nonblocking", "--json", "--pid", str(pid)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PY_SPY_TIMEOUT_S, check=True)
        return stacks.from_py_spy(done.stdout, pid, self._ours)

    def _by_signal(self, process: Process, fd: int) -> list[Frame]:
        try:
            text = _ask(process, f"/proc/{process.pid}/fd/{fd}")
        except OSError as error:
            log.info("rank with pid %d does not tell its stack: %s", process.pid, error)
            return []
        return stacks.from_faulthandler(text, self._ours)


def _find_py_spy(python: str) -> str:
    beside = [str(Path(interpreter).parent) for interpreter in (python, sys.executable) if interpreter]
    return next((found for folder in (*beside, None) if (found := shutil.which("py-spy", path=folder))), "")


def _ask(process: Process, answer: str) -> str:
    """Raises OSError when it has ended or cannot be asked."""
    pidfd = os.pidfd_open(process.pid)
    try:
        # From here on the number cannot mean another process: what follows asks the one that we have open.
        if proc.start_ticks(process.pid) != process.start_ticks:
            raise ProcessLookupError(process.pid, "it has ended")
        # A program that replaced the rank's, or closed all its files, would end by the signal or spoil a file of its own.
        if not proc.catches(process.pid, steplog.STACK_SIGNAL) or steplog.STACK_FILE not in os.readlink(answer):  # noqa: PTH115  # no path, a name
            raise PermissionError(process.pid, "it has become another program")
        with open(answer, "r+b", buffering=0) as file:  # noqa: PTH123  # the same
            file.truncate(0)
            signal.pidfd_send_signal(pidfd, steplog.STACK_SIGNAL)
            return _when_complete(answer, process.pid)
    finally:
        os.close(pidfd)


def _when_complete(answer: str, pid: int) -> str:
    """What is written in there, as soon as the handler has returned and nothing is added."""
    begin_s = time.monotonic()
    before = b""
    while True:
        time.sleep(_ANSWER_POLL_S)
        writing = proc.blocks(pid, steplog.STACK_SIGNAL)
        now = Path(answer).read_bytes()
        patience_s = _STARVED_TIMEOUT_S if proc.state(pid) == "R" else _ANSWER_TIMEOUT_S
        if (now and now == before and not writing) or time.monotonic() - begin_s > patience_s:
            return now.decode("utf-8", "replace")
        before = now


def _reason(error: Exception) -> str:
    said = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
    return str(said).strip()[-500:]
