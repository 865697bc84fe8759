"""A launcher that has no job yet: its zygote has done the imports, and it waits to be told what others have on their command line.

The agent that started it holds the other end of its standard input, a Unix socket. Down comes one line of JSON, `{"arguments": [...],
"log": PATH}`; from there on it is a launcher like any other and outlives the agent. When the socket closes before that whole line has
come, the agent is gone or wants it no more: it ends, and its zygote with it. Up goes one line, `{"event": "ready"}` or
`{"event": "failed", "message": TEXT}`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format

from switchgear.core import log as log_setup
from switchgear.core import trace
from switchgear.core.clock import SystemClock
from switchgear.launcher import main as launcher
from switchgear.launcher.warm_zygote import Launching, NotWarm, WarmZygote
from switchgear.launcher.zygote import Ended, Event, Ready, kind_of
from switchgear.v1.job_service_pb2 import JobSpec

log = logging.getLogger(__name__)

#: In its folder: the kind of its zygote, as a JobSpec in canonical proto JSON.
KIND_FILE = "kind.json"
#: Imports are no hurry while nobody waits for them.
NICE = 10
#: Of `oom_score_adj`: when memory runs short, what nobody uses yet goes first.
_OOM_FIRST = 1000
#: A look at the files that were imported; a file system that takes longer would take it again at the imports.
_LOOK_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class _Assignment:
    arguments: list[str]
    log: Path
    time_ns: int


def main(folder: Path) -> int:
    """folder: where its output and that of its zygote go until it has a job; KIND_FILE is there."""
    log_setup.configure(component="launcher")
    trace.configure("launcher")
    channel = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return asyncio.run(_run(folder, channel))


async def _run(folder: Path, channel: socket.socket) -> int:
    spec = json_format.Parse((folder / KIND_FILE).read_text(encoding="utf-8"), JobSpec())
    zygote = WarmZygote(kind_of(spec), folder / "zygote.log", NICE)
    oom_score = _set_oom_score(os.getpid(), _OOM_FIRST)
    assignment = await _wait(zygote, channel)
    if assignment is None:
        await zygote.close()
        return 0
    _set_oom_score(os.getpid(), oom_score)
    if zygote.identity is not None:
        _set_oom_score(zygote.identity.pid, oom_score)
    output = os.open(assignment.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    parser = argparse.ArgumentParser()
    launcher.add_arguments(parser)
    args = parser.parse_args(assignment.arguments)
    fit = await _fit(zygote, args.state_dir)
    shutil.rmtree(folder, ignore_errors=True)
    return await launcher.run_job(args, fit, assignment.time_ns)


async def _wait(zygote: WarmZygote, channel: socket.socket) -> _Assignment | None:
    """Warms up and waits for a job; None when there will be none."""
    reader, writer = await asyncio.open_connection(sock=channel)

    def tell(event: Event | Launching | NotWarm) -> None:
        match event:
            case Ready():
                writer.write(b'{"event": "ready"}\n')
            case NotWarm() | Ended():
                # Whoever starts the job will find the same, and say so in its place.
                writer.write(json.dumps({"event": "failed", "message": event.message}).encode() + b"\n")

    try:
        zygote.attach(tell)
        line = await reader.readline()
    except (ConnectionError, ValueError):  # ValueError: a line without end
        return None
    finally:
        writer.close()
    if not line.endswith(b"\n"):
        return None
    message = json.loads(line)
    return _Assignment(message["arguments"], Path(message["log"]), SystemClock().unix_ns())


async def _fit(zygote: WarmZygote, state_dir: Path) -> WarmZygote | None:
    """The zygote, for the launcher in that folder; None, and it is gone, when what it imported has changed since."""
    if zygote.ready:
        try:
            changed = await asyncio.wait_for(asyncio.to_thread(zygote.ready.changed), _LOOK_TIMEOUT_S)
        except TimeoutError:
            changed = "a file that cannot be looked at"
        if changed:
            log.info("imports again, since %s has changed", changed)
            await zygote.close()
            return None
    zygote.hurry()
    zygote.move_log(state_dir / "zygote.log")
    return zygote


def _set_oom_score(pid: int, score: int) -> int:
    """Returns what it was; 0 when that cannot be told or changed."""
    path = Path(f"/proc/{pid}/oom_score_adj")
    try:
        before = int(path.read_text(encoding="ascii"))
        path.write_text(str(score), encoding="ascii")
    except OSError:
        return 0
    return before
