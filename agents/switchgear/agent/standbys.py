"""Launchers without a job, whose zygotes have done the imports of jobs that may come to this node.

A standby ends with its agent, since its standard input closes; one that has been given a job does not, and is found again by the pid
that is written down before it hears of the job.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format

from switchgear.agent.launcher_process import LauncherSettings, start_launcher
from switchgear.core.clock import Clock
from switchgear.v1.job_service_pb2 import JobSpec
from switchgear.v1alpha import node_agent_service_pb2 as pb

log = logging.getLogger(__name__)

#: What the scheduler names at most; each takes some hundred megabytes.
KINDS_MAX = 2
#: From the news of a kind, or a start on this node, to the next standby: ranks that start need the processors more.
DELAY_S = 5.0
#: One that failed is tried again after this, doubled each time up to the maximum: the reason is mostly in the job.
_RETRY_S = 10.0
_RETRY_S_MAX = 600.0
#: Imports that take longer never end; they must not keep other kinds from being warmed.
_IMPORTS_S_MAX = 300.0
#: SIGKILL takes milliseconds; a process with very much memory to give back takes longer, and needs nobody to wait for it.
_END_S = 2.0
_KIND_FILE = "kind.json"
_ANSWER_BYTES_MAX = 65536


@dataclass(frozen=True, slots=True)
class Kind:
    """All that the imports of a launcher's zygote depend on."""

    python: str
    working_directory: str
    environment: tuple[tuple[str, str], ...]
    preload: tuple[str, ...]

    @classmethod
    def of(cls, source: pb.Warm | JobSpec) -> Kind:
        environment = tuple(sorted(source.environment.items()))
        return cls(source.python, source.working_directory, environment, tuple(source.preload))

    def spec(self) -> JobSpec:
        return JobSpec(
            python=self.python,
            working_directory=self.working_directory,
            environment=dict(self.environment),
            preload=self.preload,
        )


class Standby:
    """One process, from its start until it ends or has a job. changed: called when it is ready, fails or ends."""

    def __init__(
        self, settings: LauncherSettings, kind: Kind, folder: Path, started_s: float, changed: Callable[[], None]
    ) -> None:
        """Starts it. Raises OSError."""
        self.started_s = started_s
        self.ready = False
        self.gone = False
        #: Why it is of no use; empty while it is.
        self.failure = ""
        self._folder = folder
        self._changed = changed
        self._answer = b""
        folder.mkdir(parents=True)
        (folder / _KIND_FILE).write_text(json_format.MessageToJson(kind.spec()))
        self._channel, theirs = socket.socketpair()
        try:
            arguments = ("--standby", str(folder))
            self.pid = start_launcher(settings, arguments, folder / "standby.log", theirs.fileno())
        except OSError:
            self._channel.close()
            raise
        finally:
            theirs.close()
        self._channel.setblocking(False)
        self._pidfd = os.pidfd_open(self.pid)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._channel, self._read)
        loop.add_reader(self._pidfd, self._ended)

    def assign(self, arguments: Sequence[str], log_path: Path) -> bool:
        """Makes it the launcher that has these arguments, and no child of this class any more; False: it has ended, so it is none."""
        message = json.dumps({"arguments": list(arguments), "log": str(log_path)}).encode() + b"\n"
        try:
            sent = self._channel.send(message)
        except OSError:
            sent = 0
        if sent != len(message):
            self.end()
            return False
        self._close_channel()
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        return True

    def end(self) -> None:
        """Kills it; its zygote ends when it hears nothing of it any more."""
        self._close_channel()
        if not self.gone:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _close_channel(self) -> None:
        if self._channel.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._channel)
            self._channel.close()

    def _read(self) -> None:
        try:
            data = self._channel.recv(_ANSWER_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._channel)  # `_ended` follows
            return
        *lines, self._answer = (self._answer + data)[-_ANSWER_BYTES_MAX:].split(b"\n")
        for line in lines:
            answer = json.loads(line)
            if answer["event"] == "ready":
                self.ready = True
            else:
                self.failure = str(answer["message"])
        self._changed()

    def _ended(self) -> None:
        self._close_channel()
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        shutil.rmtree(self._folder, ignore_errors=True)
        self.gone = True
        self.failure = self.failure or "it ended by itself"
        self._changed()


class Standbys:
    """Keeps one standby of each wanted kind, `kinds_max` at most; of one event loop. `run` does the work.

    delay_s: see DELAY_S.
    """

    def __init__(self, settings: LauncherSettings, kinds_max: int, clock: Clock, delay_s: float = DELAY_S) -> None:
        self._settings = settings
        self._kinds_max = kinds_max
        self._clock = clock
        self._delay_s = delay_s
        self._root = settings.state_dir / "standbys"
        self._wanted: tuple[Kind, ...] = ()
        self._standbys: dict[Kind, Standby] = {}
        self._due_s: dict[Kind, float] = {}
        self._failures: dict[Kind, int] = {}
        self._wake = asyncio.Event()

    @property
    def ready(self) -> int:
        """Those that could start ranks at once."""
        return sum(standby.ready for standby in self._standbys.values())

    def want(self, kinds: Sequence[Kind]) -> None:
        """The kinds that should be warm, the first ones first; others end."""
        self._wanted = tuple(kinds[: self._kinds_max])
        due_s = self._clock.monotonic_s() + self._delay_s
        self._due_s = {kind: self._due_s.get(kind, due_s) for kind in self._wanted}
        self._failures = {kind: count for kind, count in self._failures.items() if kind in self._wanted}
        self._wake.set()

    def take(self, kind: Kind) -> Standby | None:
        """Gives away the one of that kind, ready or not. For a while nothing is warmed beside the launcher that starts now."""
        due_s = self._clock.monotonic_s() + self._delay_s
        self._due_s = {kind: max(due, due_s) for kind, due in self._due_s.items()}
        self._wake.set()
        standby = self._standbys.get(kind)
        return None if standby is None or standby.failure else self._standbys.pop(kind)

    async def run(self) -> None:
        """Until cancelled; then all standbys end."""
        shutil.rmtree(self._root, ignore_errors=True)
        try:
            while True:
                self._wake.clear()
                try:
                    async with asyncio.timeout(self._advance()):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            await self._end_all()

    async def _end_all(self) -> None:
        for standby in self._standbys.values():
            standby.end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                while not all(standby.gone for standby in self._standbys.values()):
                    self._wake.clear()
                    await self._wake.wait()

    def _advance(self) -> float | None:
        """Brings what is there towards what is wanted; answers when to look again, None: when something changes."""
        now_s = self._clock.monotonic_s()
        for kind, standby in list(self._standbys.items()):
            if not standby.ready and now_s - standby.started_s > _IMPORTS_S_MAX:
                standby.failure = f"its imports took longer than {_IMPORTS_S_MAX:.0f} s"
            if standby.failure or kind not in self._wanted:
                del self._standbys[kind]
                standby.end()
            if standby.failure and kind in self._wanted:
                self._failed(kind, standby.failure)
            elif standby.ready:
                self._failures.pop(kind, None)
        importing = [standby for standby in self._standbys.values() if not standby.ready]
        if importing:  # one after the other
            return importing[0].started_s + _IMPORTS_S_MAX - now_s
        missing = [kind for kind in self._wanted if kind not in self._standbys]
        if not missing:
            return None
        kind = min(missing, key=self._due_s.__getitem__)
        if self._due_s[kind] > now_s:
            return self._due_s[kind] - now_s
        self._start(kind)
        return 0

    def _start(self, kind: Kind) -> None:
        try:
            folder = self._root / uuid.uuid4().hex
            self._standbys[kind] = Standby(self._settings, kind, folder, self._clock.monotonic_s(), self._wake.set)
        except OSError as error:
            self._failed(kind, str(error))

    def _failed(self, kind: Kind, why: str) -> None:
        count = self._failures[kind] = self._failures.get(kind, 0) + 1
        retry_s = min(_RETRY_S * 2 ** min(count - 1, 10), _RETRY_S_MAX)
        self._due_s[kind] = self._clock.monotonic_s() + retry_s
        log.warning("no launcher can be kept warm", extra={"folder": kind.working_directory, "why": why})
