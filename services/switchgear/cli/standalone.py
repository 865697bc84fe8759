"""`switchgear run --standalone`: the launcher and the recovery machine in one process, with no server and no database."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from google.protobuf.json_format import MessageToJson

from switchgear.cli import exits
from switchgear.cli.goodput import tell_report
from switchgear.cli.output import tell
from switchgear.cli.run_options import Stopping
from switchgear.cli.state import default_state_dir
from switchgear.cli.stop_signals import StopSignal
from switchgear.core import names
from switchgear.core.clock import Clock, SystemClock
from switchgear.launcher.logs import EchoRule
from switchgear.launcher.state import is_held
from switchgear.launcher.supervisor import LauncherSettings, Supervisor
from switchgear.recovery import model as m
from switchgear.recovery import translate
from switchgear.recovery.actor import JobActor
from switchgear.recovery.goodput_messages import goodput_to_proto
from switchgear.recovery.machine import step
from switchgear.v1.job_service_pb2 import JobSpec

log = logging.getLogger(__name__)

#: Folders of ended standalone jobs that are kept for `switchgear logs`.
JOBS_KEPT = 50
TICK_S = 1.0
SPEC_FILE = "job.json"


async def run(name: str, spec: JobSpec, echo: EchoRule, stopping: Stopping) -> int:
    """Runs the job to its end; returns the exit code, after a signal 128 and its number.

    Raises FailedPrecondition (JOB_ALREADY_RUNNING) when a job of this name runs here.
    """
    folder = default_state_dir() / "standalone" / name
    forget_old(folder.parent)
    stop = StopSignal(stopping)
    job = Standalone(names.job_name(name), spec, folder, echo, stop)
    code = await stop.watch(job.run())
    if code is None:
        print(f"{job.name} was stopped", file=sys.stderr)
        return stop.exit_code
    return code


class Standalone:
    """One job on this machine."""

    def __init__(self, name: str, spec: JobSpec, folder: Path, echo: EchoRule, stop: StopSignal) -> None:
        self.name = name
        self._spec, self._folder, self._stop = spec, folder, stop
        if not spec.log_directory:
            spec.log_directory = str(folder / "logs")
        self._clock = SystemClock()
        self._node = names.node_name(names.to_id(socket.gethostname()))
        self._supervisor = Supervisor(
            LauncherSettings(
                job=name,
                node=self._node,
                placement_epoch=1,
                address="127.0.0.1",
                gpu_indices=None,
                spec=spec,
                state_dir=folder,
                echo=echo,
            ),
            self._clock,
        )
        self._commands: asyncio.Queue[m.Command] = asyncio.Queue()

    async def run(self) -> int:
        grace_s, actor = 0.0, None
        try:
            # For `switchgear logs`: where they are.
            (self._folder / SPEC_FILE).write_text(MessageToJson(self._spec))
            await self._supervisor.start()
            hello = self._supervisor.hello()
            # Generations of a job of this name go on counting: they fence off what an earlier run may have left.
            state = m.JobState(
                self.name,
                replace(translate.spec_from_proto(self._spec), replaceable=False),
                self._clock.unix_ns(),
                generation=hello.generation,
            )
            actor = JobActor(state, self._clock, keep=self._keep, send=self._commands.put_nowait, carry=self._tell)
            async with asyncio.TaskGroup() as tasks:
                parts = (self._obey(), self._report(actor), self._tick(actor, hello.hello.launcher_id))
                helpers = [tasks.create_task(part) for part in parts]
                await actor.post(m.Placed(1, (m.Slot(self._node, "127.0.0.1", 1),)))
                event = translate.event_from_report(self._node, hello.hello.launcher_id, hello)
                if event:
                    await actor.post(event)
                await actor.run()
                for helper in helpers:
                    helper.cancel()
            return exits.OK if actor.state.outcome is m.JobOutcome.SUCCEEDED else exits.JOB_FAILED
        except asyncio.CancelledError:
            grace_s = self._stop.grace_s
            raise
        finally:
            await self._supervisor.close(grace_s, self._stop.for_ranks)
            if actor:
                tell_report(report_at_end(actor.state, self._clock))

    async def _obey(self) -> None:
        while True:
            await self._supervisor.handle(translate.command_to_proto(await self._commands.get()))

    async def _report(self, actor: JobActor) -> None:
        async for report in self._supervisor.reports():
            event = translate.event_from_report(self._node, "", report)
            if event:
                await actor.post(event)

    async def _tick(self, actor: JobActor, launcher_id: str) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            await actor.post(m.LauncherSeen(self._node, launcher_id))
            actor.tick()

    async def _keep(self, state: m.JobState, records: Sequence[m.Effect]) -> None:  # noqa: ARG002
        """Told, not stored: the launcher itself keeps the generation, and a run that is started again asks anew for the rest."""
        for line in lines_of(records):
            tell(f"switchgear: {line}")

    async def _tell(self, call: m.Call) -> None:
        if line := line_of(call):
            tell(f"switchgear: {line}")


def report_at_end(state: m.JobState, clock: Clock) -> str:
    """Where the time of a job went that ends now, if it has not ended already."""
    now = m.Now(clock.monotonic_s(), clock.unix_ns())
    ended, _ = step(state, m.EndedOutside("the run was stopped"), now)
    return goodput_to_proto(ended, now).report


def lines_of(records: Sequence[m.Effect]) -> list[str]:
    """What people are told of records that a control plane would store."""
    ended = (m.IncidentState.RESOLVED, m.IncidentState.ESCALATED)
    lines = list[str]()
    for record in records:
        match record:
            case m.SaveCheckpoint(damaged) if damaged.state is m.CheckpointState.CORRUPT:
                lines.append(f"checkpoint {damaged.path} is damaged and not used: {damaged.damage}")
            case m.SaveIncident(incident) if incident.state in ended:
                lines.append(incident.summary)
    return lines


def line_of(call: m.Call) -> str:
    """What people are told of a call that nobody is there to take; empty: nothing."""
    recovering = call.kind == "set_state" and call.outcome is m.JobOutcome.RECOVERING
    return f"{call.reason}; stopping the attempt" if recovering else ""


def forget_old(folder: Path, pattern: str = "*") -> None:
    """Removes what the oldest jobs there left, beyond JOBS_KEPT; those that run are left alone.

    pattern: of the names of their folders, where other machines keep theirs in the same place.
    """
    try:
        ended = [path for path in folder.glob(pattern) if path.is_dir() and not is_held(path)]
        old = sorted(ended, key=lambda path: path.stat().st_mtime)[:-JOBS_KEPT]
    except OSError:
        return
    for path in old:
        shutil.rmtree(path, ignore_errors=True)
