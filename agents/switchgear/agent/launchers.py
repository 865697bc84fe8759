"""The launchers of this node: started apart from the agent, found again after its restart, stopped on command.

A launcher is written down before it is started and again, with pid and start time, once it runs; one that was a standby before it
hears of its job. Whatever moment the agent dies at, the next one finds what is alive and no other process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf import json_format

from switchgear.agent.launcher_process import LauncherSettings, start_launcher
from switchgear.agent.processes import find_by_arguments
from switchgear.agent.standby import kind_of
from switchgear.agent.standbys import Standbys
from switchgear.core import names, trace
from switchgear.core.errors import Invalid
from switchgear.core.process import boot_id, is_alive, start_ticks
from switchgear.v1alpha import node_agent_service_pb2 as pb

log = logging.getLogger(__name__)

#: A node runs a few jobs; more than this is a server that went astray.
LAUNCHERS_MAX = 256
#: Folders of ended launchers that are kept for a look at their logs.
FOLDERS_MAX = 200
_STATE_FILE = "agent.json"


@dataclass(slots=True)
class _Running:
    job: str
    placement_epoch: int
    pid: int
    pidfd: int
    stopping: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Launchers:
    """Starts and stops launchers; of one event loop.

    report: called with what the scheduler has to know, also while nobody is connected. standbys: of whom launchers are made.
    """

    def __init__(
        self,
        settings: LauncherSettings,
        report: Callable[[pb.NodeAgentReport], None],
        standbys: Standbys | None = None,
    ) -> None:
        self._settings = settings
        self._report = report
        self._standbys = standbys
        self._root = settings.state_dir / "launchers"
        self._root.mkdir(parents=True, exist_ok=True)
        self._trash = settings.state_dir / "launchers-ended"
        self._boot_id = boot_id()
        self._running: dict[str, _Running] = {}
        self._wanted: dict[str, pb.StartLauncher] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def running(self) -> list[pb.RunningLauncher]:
        """What is alive now, in job order."""
        return [
            pb.RunningLauncher(job=one.job, placement_epoch=one.placement_epoch, pid=one.pid)
            for _, one in sorted(self._running.items())
        ]

    def adopt(self) -> None:
        """Takes over the launchers that an earlier agent with this state directory started."""
        for folder in sorted(self._root.iterdir()):
            try:
                state = json.loads((folder / _STATE_FILE).read_text())
                job, epoch, arguments = state["job"], state["placement_epoch"], state["arguments"]
            except (OSError, ValueError, KeyError):
                continue
            if state.get("boot_id") != self._boot_id:
                continue  # it ended with its machine; after a boot its pid and start time may be another's
            pid, ticks = state.get("pid"), state.get("start_ticks")
            if pid is None:  # the agent died between start and note
                pid = next(find_by_arguments(arguments), None)
                ticks = start_ticks(pid) if pid else None
            if pid is not None and ticks is not None and is_alive(pid, ticks):
                log.info("adopting the launcher of %s", job, extra={"pid": pid, "placement_epoch": epoch})
                self._write_state(folder, job, epoch, arguments, pid)
                self._follow(job, epoch, pid)

    def start(self, command: pb.StartLauncher) -> None:
        """Idempotent by (job, placement epoch); a launcher of an older epoch is stopped first."""
        job, epoch = command.job, command.placement_epoch
        running, wanted = self._running.get(job), self._wanted.get(job)
        if running and (epoch < running.placement_epoch or (epoch == running.placement_epoch and not running.stopping)):
            return
        if wanted and epoch <= wanted.placement_epoch:
            return
        try:
            names.parse(job, "jobs/*")
        except Invalid as error:
            self._fail(job, epoch, error.message)
            return
        if len(self._running.keys() | self._wanted.keys() | {job}) > LAUNCHERS_MAX:
            self._fail(job, epoch, f"this node has {LAUNCHERS_MAX} launchers, which is the limit; stop some of them")
            return
        self._wanted[job] = command
        self._converge_soon(job)

    def keep_warm(self, command: pb.KeepWarm) -> None:
        """Takes the newest list of what should be warm."""
        if self._standbys:
            self._standbys.want([kind_of(warm) for warm in command.kinds])

    def stop(self, job: str, placement_epoch: int) -> None:
        """Stops what runs, or is about to run, for the job in this placement epoch or an older one."""
        wanted, running = self._wanted.get(job), self._running.get(job)
        if wanted and wanted.placement_epoch <= placement_epoch:
            del self._wanted[job]
        if running and running.placement_epoch <= placement_epoch:
            running.stopping = True
            self._converge_soon(job)

    async def close(self) -> None:
        """Lets go of the launchers; they live on."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for running in self._running.values():
            asyncio.get_running_loop().remove_reader(running.pidfd)
            os.close(running.pidfd)
        self._running.clear()

    def _converge_soon(self, job: str) -> None:
        if job not in self._tasks:
            self._tasks[job] = asyncio.get_running_loop().create_task(self._converge_once(job))

    async def _converge_once(self, job: str) -> None:
        try:
            await self._converge(job)
        finally:
            # Not in a callback when the task is done: until that ran, a command would be left to a task that has returned.
            del self._tasks[job]

    async def _converge(self, job: str) -> None:
        """Stops what is not wanted any more, then starts what is; commands that arrive meanwhile are seen."""
        while True:
            running, wanted = self._running.get(job), self._wanted.get(job)
            if running and (running.stopping or wanted):
                running.stopping = True
                await _terminate(running, self._settings.stop_grace_s)
            elif wanted:
                del self._wanted[job]
                about = {"switchgear.job": job, "switchgear.node": self._settings.node}
                try:
                    with trace.span("start launcher", parent=wanted.trace_parent, attributes=about):
                        self._spawn(wanted)
                except OSError as error:
                    self._fail(job, wanted.placement_epoch, f"cannot start the launcher: {error}")
                try:
                    await self._prune()
                except OSError as error:
                    log.warning("cannot delete the folders of launchers that ended long ago: %s", error)
            else:
                return

    def _spawn(self, command: pb.StartLauncher) -> None:
        (job,) = names.parse(command.job, "jobs/*")
        folder = self._root / job
        folder.mkdir(exist_ok=True)
        spec = folder / "spec.json"
        spec.write_text(json_format.MessageToJson(command.spec))
        arguments = self._arguments(command, spec, folder)
        log_path = folder / "launcher.log"
        # Programs of other kinds have no use for what a standby has imported.
        standbys = None if command.spec.no_python else self._standbys
        standby = standbys.take(kind_of(command.spec)) if standbys else None
        if standby:
            # Before it hears of the job: whatever moment the agent dies at, either this finds it or it ends.
            try:
                self._write_state(folder, command.job, command.placement_epoch, arguments, standby.pid)
            except OSError:
                standby.end()
                raise
        if standby and standby.assign(arguments, log_path):
            pid = standby.pid
        else:
            self._write_state(folder, command.job, command.placement_epoch, arguments, None)
            pid = start_launcher(self._settings, arguments, log_path)
            self._write_state(folder, command.job, command.placement_epoch, arguments, pid)
        log.info(
            "started a launcher for %s",
            command.job,
            extra={"pid": pid, "placement_epoch": command.placement_epoch, "warm": pid == (standby and standby.pid)},
        )
        self._follow(command.job, command.placement_epoch, pid)

    async def _prune(self) -> None:
        """Forgets the folders of launchers that ended long ago."""
        in_use = {self._root / job.partition("/")[2] for job in self._running.keys() | self._wanted.keys()}
        ended = sorted(set(self._root.iterdir()) - in_use, key=lambda folder: folder.stat().st_mtime)
        if len(ended) <= FOLDERS_MAX:
            return
        # Logs may be large, and a job may be started again while they are deleted: first they are put out of its way.
        self._trash.mkdir(exist_ok=True)
        for folder in ended[:-FOLDERS_MAX]:
            folder.rename(self._trash / uuid.uuid4().hex)
        await asyncio.to_thread(_delete_all, self._trash)

    def _arguments(self, command: pb.StartLauncher, spec: Path, folder: Path) -> list[str]:
        return [
            *("--job", command.job),
            *("--placement-epoch", str(command.placement_epoch)),
            *("--node", self._settings.node),
            *("--address", self._settings.address),
            *("--gpu-indices", ",".join(map(str, command.gpu_indices))),
            # A service may listen on 0.0.0.0 or behind another name: what this node was told of it wins.
            *("--recovery", self._settings.recovery or command.recovery_address),
            *("--autoscaler", self._settings.autoscaler),
            *("--spec", str(spec)),
            *("--state-dir", str(folder)),
            *("--trace-parent", trace.current() or command.trace_parent),
        ]

    def _write_state(self, folder: Path, job: str, epoch: int, arguments: Sequence[str], pid: int | None) -> None:
        state = {
            "job": job,
            "placement_epoch": epoch,
            "arguments": list(arguments),
            "pid": pid,
            "start_ticks": start_ticks(pid) if pid else None,
            "boot_id": self._boot_id,
        }
        temporary = folder / f"{_STATE_FILE}.tmp"
        temporary.write_text(json.dumps(state))
        temporary.replace(folder / _STATE_FILE)

    def _follow(self, job: str, epoch: int, pid: int) -> None:
        """A pidfd becomes readable when the process ends, whoever its parent is."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._report_exit(job, epoch, None)
            return
        running = self._running[job] = _Running(job, epoch, pid, pidfd)
        asyncio.get_running_loop().add_reader(pidfd, self._ended, running)

    def _ended(self, running: _Running) -> None:
        asyncio.get_running_loop().remove_reader(running.pidfd)
        os.close(running.pidfd)
        del self._running[running.job]
        running.ended.set()
        exit_code: int | None = None
        with contextlib.suppress(ChildProcessError):  # adopted: its exit status went to somebody else
            exit_code = os.waitstatus_to_exitcode(os.waitpid(running.pid, 0)[1])
        log.info("the launcher of %s ended", running.job, extra={"exit_code": exit_code})
        self._report_exit(running.job, running.placement_epoch, exit_code)

    def _report_exit(self, job: str, epoch: int, exit_code: int | None) -> None:
        exited = pb.LauncherExited(job=job, placement_epoch=epoch, exit_code=exit_code)
        self._report(pb.NodeAgentReport(launcher_exited=exited))

    def _fail(self, job: str, epoch: int, message: str) -> None:
        log.error("launcher of %s: %s", job, message)
        failed = pb.LauncherFailed(job=job, placement_epoch=epoch, message=message[:1000])
        self._report(pb.NodeAgentReport(launcher_failed=failed))


def _delete_all(trash: Path) -> None:
    for folder in trash.iterdir():
        shutil.rmtree(folder, ignore_errors=True)


async def _terminate(running: _Running, grace_s: float) -> None:
    """SIGTERM, a grace, SIGKILL. The launcher's own watch sees to its ranks in either case."""
    for sig in (signal.SIGTERM, signal.SIGKILL):
        if running.ended.is_set():
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(running.pidfd, sig)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await running.ended.wait()
    if not running.ended.is_set():
        log.error("the launcher of %s survives SIGKILL", running.job, extra={"pid": running.pid})
        await running.ended.wait()
