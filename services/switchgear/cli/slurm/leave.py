"""`python -m switchgear.cli.slurm.leave JOB COUNT [NODE …]`: requeues the Slurm job that it runs in, for as many nodes, without these.

A process of its own, since the one that asks for it is ended by what it asks for. The nodes can only be excluded once the job is
requeued and while it still ends, so this ignores SIGTERM. Slurm then lets the job wait for two minutes; where this process outlives
the job (proctrack/linuxproc, proctrack/pgid), it takes that wait away. Prints one line: empty, or why the job was not requeued.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from switchgear.core.errors import SwitchgearError
from switchgear.slurm.client import Slurm
from switchgear.slurm.commands import Commands
from switchgear.slurm.model import JobFlag, JobState

#: Slurm's KillWait is 30 s; a job that has not ended long after that waits for a node that does not answer.
PATIENCE_S = 600.0
POLL_S = 0.5
T = TypeVar("T")


async def excuse(slurm: Commands, job: int, count: int, nodes: Sequence[str]) -> None:
    """Has the requeued job start without these nodes, on `count` others."""
    async with asyncio.timeout(PATIENCE_S):
        found = await _until_done(lambda: slurm.jobs([job]))
        excluded = {*nodes, *(found[0].excluded_nodes if found else ())}
        if nodes:
            await _until_done(lambda: slurm.exclude(job, sorted(excluded)))
            await _until_done(lambda: slurm.set_node_count(job, count))


async def start_soon(slurm: Slurm, job: int) -> None:
    """Once it has ended, it need not wait for its start time."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = await _until_done(lambda: slurm.jobs([job]))
            if not found or found[0].state == JobState.RUNNING:
                return
            if found[0].state == JobState.PENDING and JobFlag.COMPLETING not in found[0].flags:
                await _until_done(lambda: slurm.start_now(job))
                return
            await asyncio.sleep(POLL_S)


async def _until_done(call: Callable[[], Awaitable[T]]) -> T:
    """Again and again: a controller that is away comes back, and one that writes to its accounting refuses updates meanwhile."""
    while True:
        try:
            return await call()
        except SwitchgearError:
            await asyncio.sleep(POLL_S)


def _answer(text: str) -> None:
    """To whoever asked, when they have not been ended yet; they read until we let go."""
    try:
        os.write(sys.stdout.fileno(), f"{text}\n".encode())
    except BrokenPipeError:
        pass
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _ends_with(job: int) -> bool:
    """Whether Slurm ends this process with the job: then to wait for the job's end would only delay it."""
    return f"job_{job}/" in Path("/proc/self/cgroup").read_text(encoding="utf-8")


async def _main(job: int, count: int, nodes: Sequence[str]) -> None:
    slurm = Commands()
    try:
        await slurm.requeue(job)
    except SwitchgearError as error:
        _answer(error.message)
        return
    _answer("")
    await excuse(slurm, job, count, nodes)
    if not _ends_with(job):
        await start_soon(slurm, job)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if os.fork() == 0:  # no descendant of the job's processes any more, once the parent has ended
        asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
