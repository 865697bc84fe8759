"""A launcher without a job, whose zygote does the imports of jobs of one kind.

It ends with its agent, since its standard input closes; once it has been given a job it does not, and is found again by the pid that is
written down before it hears of the job.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from google.protobuf import json_format

from switchgear.agent.launcher_process import LauncherSettings, start_launcher
from switchgear.core.warm import WarmKind
from switchgear.v1.job_service_pb2 import JobSpec
from switchgear.v1alpha import node_agent_service_pb2 as pb

_KIND_FILE = "kind.json"
_ANSWER_BYTES_MAX = 65536


def kind_of(source: pb.Warm | JobSpec) -> WarmKind:
    """The kind of a job that is a Python file."""
    return WarmKind.of(source.python, source.working_directory, source.environment.items(), source.preload)


class Standby:
    """One process, from its start until it ends or has a job. changed: called when it is ready, fails or ends."""

    def __init__(
        self, settings: LauncherSettings, kind: WarmKind, folder: Path, started_s: float, changed: Callable[[], None]
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
        spec = JobSpec(
            python=kind.python,
            working_directory=kind.working_directory,
            environment=dict(kind.environment),
            preload=kind.preload,
        )
        (folder / _KIND_FILE).write_text(json_format.MessageToJson(spec))
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
