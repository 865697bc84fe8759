"""The launcher's end of the zygote: a warm process, run with the job's interpreter, that forks ranks on request."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

from switchgear.core.warm import WarmKind
from switchgear.launcher import proc
from switchgear.launcher.state import Process
from switchgear.v1.job_service_pb2 import JobSpec

#: The zygote's own last act takes at most half of it.
_END_TIMEOUT_S = 10.0
_LAST_WORDS_BYTES_MAX = 2048
_HELD_LOOKS_MAX = 5
#: Anything else (no memory, no process, no room) passes.
_NO_INTERPRETER = (errno.ENOENT, errno.EACCES, errno.ENOEXEC)


@dataclass(frozen=True, slots=True)
class RankSpec:
    """All that a rank is started with; `env` is its whole environment."""

    rank: int
    generation: int
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    stdout: str
    stderr: str
    step_log: str
    checkpoint_directory: str
    #: argv is a program of any kind, not a Python file.
    program: bool = False


def kind_of(spec: JobSpec, python: str = "") -> WarmKind:
    """What the zygote of a job imports. python: the interpreter when the job names none; empty: our own."""
    return WarmKind.of(
        spec.python or python or sys.executable,
        spec.working_directory,
        spec.environment.items(),
        spec.preload,
        torch=not spec.no_python,
    )


@dataclass(frozen=True, slots=True)
class Ready:
    """The imports are done.

    torch: its version; None: this interpreter has none. reason: why ranks are spawned, empty when forked. failed: why modules of the
    preload are missing. files: some that were imported, with their time of change in nanoseconds.
    """

    torch: str | None
    reason: str
    failed: tuple[str, ...] = ()
    files: Mapping[str, int] = field(default_factory=dict)

    def changed(self) -> str:
        """A file that is not as it was imported any more; empty when there is none. Asks the disk."""
        for path, mtime_ns in self.files.items():
            try:
                if Path(path).stat().st_mtime_ns != mtime_ns:
                    return path
            except OSError:
                return path
        return ""


@dataclass(frozen=True, slots=True)
class Started:
    rank: int
    pid: int
    time_unix_ns: int


@dataclass(frozen=True, slots=True)
class NotStarted:
    rank: int
    message: str


@dataclass(frozen=True, slots=True)
class Exited:
    """code: as of waitpid, negative for a signal. signalled: a signal of ours reached it before it ended."""

    rank: int
    pid: int
    code: int
    signalled: bool
    time_unix_ns: int


@dataclass(frozen=True, slots=True)
class Gone:
    """No process that a rank left behind lives any more."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The zygote itself is gone, by its own fault or a stranger's. message: its last words. was_ready: its imports had been done."""

    message: str
    was_ready: bool


Event = Ready | Started | NotStarted | Exited | Gone | Ended


def zygote_path() -> Path:
    """The zygote's file, found without importing the package that it lies in."""
    spec = find_spec("switchgear.train")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("switchgear.train is missing: install the whole distribution again")
    return Path(spec.submodule_search_locations[0]) / "zygote.py"


class ZygoteError(Exception):
    """It cannot be started. permanent: the interpreter is missing, closed to us or no program, which no retry mends."""

    def __init__(self, message: str, *, permanent: bool) -> None:
        super().__init__(message)
        self.permanent = permanent


class Zygote:
    """One zygote process; what happens in it arrives at `on_event`, on the loop, in order."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        log_path: Path,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self.log_path = log_path
        self.identity = Process(process.pid, proc.start_ticks(process.pid) or 0)
        #: Its imports are done: it can fork ranks.
        self.ready: Ready | None = None
        #: Why it had to be killed, as the end of a clause.
        self._trouble = ""
        self._held_looks = 0

    @classmethod
    async def start(cls, kind: WarmKind, log_path: Path, nice: int = 0) -> Zygote:
        """Starts it; `run` then tells when it is ready. nice: of its imports, as far as it may take that back.

        Raises ZygoteError, whatever it is that hinders it.
        """
        try:
            return await cls._start(kind, log_path, nice)
        except Exception as error:  # an attempt may wait for it, and the next one tries again
            if isinstance(error, OSError) and error.filename == kind.python and error.errno in _NO_INTERPRETER:
                raise ZygoteError(f"cannot run {kind.python}: {error.strerror}", permanent=True) from error
            message = f"cannot start the process that forks the ranks: {error}"
            raise ZygoteError(message, permanent=False) from error

    @classmethod
    async def _start(cls, kind: WarmKind, log_path: Path, nice: int) -> Zygote:
        ours, theirs = socket.socketpair()
        # One thread while it imports, whatever the job asks for: its ranks set their own number. A pool would not survive the fork.
        env = {**os.environ, **dict(kind.environment), "OMP_NUM_THREADS": "1"}
        options = {"preload": kind.preload, "torch": kind.torch, "nice": nice}
        try:
            with theirs, log_path.open("wb") as output:
                process = subprocess.Popen(  # noqa: ASYNC220  # a vfork; asyncio's own would add a thread that waits
                    [kind.python, str(zygote_path()), str(theirs.fileno()), json.dumps(options)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=env,
                    cwd=kind.working_directory,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            raise
        try:
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            process.kill()
            process.wait()
            raise
        return cls(process, reader, writer, log_path)

    async def run(self, on_event: Callable[[Event], None]) -> None:
        """Delivers events until the zygote has ended; `Ended` is the last."""
        try:
            while True:
                (length,) = struct.unpack(">I", await self._reader.readexactly(4))
                event = _parse(json.loads(await self._reader.readexactly(length)))
                if isinstance(event, Ready):
                    self.ready = event
                on_event(event)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except Exception as error:  # `Ended` must come: an attempt may wait for it
            self.kill(f" after it said what nobody understands ({error})")
        self._writer.close()
        code = await asyncio.to_thread(self._wait)
        message = f"the process that forks the ranks ended with {code}{self._trouble}{self._last_words()}"
        on_event(Ended(message, was_ready=self.ready is not None))

    def start_ranks(self, specs: Sequence[RankSpec]) -> None:
        self._send({"op": "start", "ranks": [asdict(spec) for spec in specs]})

    def signal(self, pids: Sequence[int], number: int) -> None:
        """Sends a signal to the groups of those ranks that still live."""
        self._send({"op": "signal", "pids": list(pids), "signal": number})

    def lease(self, until_s: float) -> None:
        """Has it end all ranks at that time on CLOCK_MONOTONIC, whatever becomes of us; the newest deadline counts."""
        self._send({"op": "lease", "until_s": until_s})

    def kill(self, trouble: str = "") -> None:
        """SIGKILL to the zygote itself; `Ended` follows, with the trouble. Its ranks have its death signal, their children have not."""
        self._trouble = trouble
        self._process.kill()

    def look(self) -> None:
        """Kills it when it is stopped, for it starts and reaps nothing then; to be called each quarter of a second.

        Looks are counted, not seconds: who stops us as well, to go on later, stops nothing for good.
        """
        held = proc.state(self._process.pid) == "T"
        self._held_looks = self._held_looks + 1 if held else 0
        if self._held_looks == _HELD_LOOKS_MAX:
            self.kill(" after it had been stopped (SIGSTOP) for a second")

    def close(self) -> None:
        """Lets it go: it kills every process that is left, then ends, which `run` awaits."""
        if self.ready is None:
            # Imports may never end, and do not hear us. Before `run` returns the number is nobody else's.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._writer.close()

    def _last_words(self) -> str:
        try:
            tail = self.log_path.read_bytes()[-_LAST_WORDS_BYTES_MAX:].decode("utf-8", "replace").strip()
        except OSError:
            return ""
        return f": {tail}" if tail else ""

    def _wait(self) -> int:
        try:
            return self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _send(self, message: object) -> None:
        data = json.dumps(message).encode()
        self._writer.write(struct.pack(">I", len(data)) + data)


def _parse(message: dict[str, object]) -> Event:
    kind = message.pop("event")
    match kind:
        case "ready":
            return Ready(
                torch=_str_or_none(message["torch"]),
                reason=str(message["reason"]),
                failed=tuple(message.get("failed", ())),  # type: ignore[arg-type]
                files=message.get("files", {}),  # type: ignore[arg-type]
            )
        case "started":
            return Started(**message)  # type: ignore[arg-type]
        case "start_failed":
            return NotStarted(**message)  # type: ignore[arg-type]
        case "exited":
            return Exited(**message)  # type: ignore[arg-type]
        case "gone":
            return Gone()
    raise ValueError(f"unknown event {kind!r} from the zygote")


def _str_or_none(value: object) -> str | None:
    return None if value is None else str(value)
