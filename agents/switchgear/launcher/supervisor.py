"""The launcher without its wire: takes commands, supervises the ranks of one job on one node, makes reports.

Everything runs on one event loop and follows one rule: a command only records what is wanted, and `_advance` brings the world there
when nothing stands in the way (an attempt that still ends, imports, a check of checkpoints, a lease).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from switchgear.core.clock import Clock, SystemClock
from switchgear.launcher import checkpoints, proc
from switchgear.launcher.attempt import Attempt, LocalRank, echoes
from switchgear.launcher.checkpoints import Checked, Known
from switchgear.launcher.commits import CommitWatcher
from switchgear.launcher.environment import rank_environment
from switchgear.launcher.lease import Lease
from switchgear.launcher.logs import LogFolder
from switchgear.launcher.outbox import Outbox
from switchgear.launcher.ports import ReservedPort
from switchgear.launcher.progress import Commit, RankProgress
from switchgear.launcher.state import State, StateFolder
from switchgear.launcher.steplog import StepLog
from switchgear.launcher.steplog_files import StepLogFiles
from switchgear.launcher.zygote import Ended, Event, Exited, Gone, NotStarted, RankSpec, Ready, Started, Zygote
from switchgear.v1.job_service_pb2 import JobSpec
from switchgear.v1alpha import launcher_service_pb2 as pb

log = logging.getLogger(__name__)

#: Steps are read this often; their times are exact all the same, since the ranks write them down.
_POLL_S = 0.05
#: Every second look is reported: 10 progress reports a second at most.
_POLLS_PER_PROGRESS = 2
#: Every fourth look lists the checkpoint directory, which may be on a network.
_POLLS_PER_LISTING = 4
#: For digests and copies of step logs under way; what is left then is only missed by readers.
_CLOSE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherSettings:
    """What a launcher is started with.

    job, node: resource names. gpu_indices: None leaves CUDA_VISIBLE_DEVICES alone. state_dir: private to (node, job). python:
    interpreter of the ranks when the spec names none; empty: our own. echo: copy the ranks' output to ours. lease: what ranks may
    run on; None (standalone): for ever, since nobody else could start the job meanwhile.
    """

    job: str
    node: str
    placement_epoch: int
    address: str
    gpu_indices: tuple[int, ...] | None
    spec: JobSpec
    state_dir: Path
    python: str = ""
    echo: bool = False
    lease: Lease | None = None


class Supervisor:
    """Supervises the ranks of one job on one node; `start` first, `close` last.

    Raises FailedPrecondition (JOB_ALREADY_RUNNING) when another launcher holds the state folder.
    """

    def __init__(self, settings: LauncherSettings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._spec = settings.spec
        self._clock = clock or SystemClock()
        self._launcher_id = uuid.uuid4().hex
        self._folder = StateFolder(settings.state_dir, settings.job)
        self._python = self._spec.python or settings.python or sys.executable
        self._logs = LogFolder(Path(self._spec.log_directory or settings.state_dir / "logs"))
        self._step_logs = StepLogFiles(settings.state_dir)
        self._checkpoint_directory: Path | None = None
        if self._spec.checkpoint_directory:
            self._checkpoint_directory = Path(self._spec.working_directory, self._spec.checkpoint_directory)
        self._outbox = Outbox()
        self._port = ReservedPort(settings.address)
        self._lease = settings.lease
        self._generation = 0
        self._zygote: Zygote | None = None
        self._zygote_task: asyncio.Task[None] | None = None
        self._zygote_ready = False
        self._attempt: Attempt | None = None
        self._watcher: CommitWatcher | None = None
        self._wanted: tuple[int, pb.StartAttempt] | None = None
        self._wanted_check: tuple[int, pb.VerifyCheckpoints] | None = None
        self._stops_owed: set[int] = set()
        self._poll_task: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._checking = False
        self._closing = False
        self._idle = asyncio.Event()
        #: Set when the job has ended: time to close.
        self.finished = asyncio.Event()

    async def start(self) -> None:
        """Ends what an earlier launcher left, then warms the zygote up; returns before that is ready."""
        state = self._folder.load()
        self._generation = state.generation
        await asyncio.gather(*(proc.kill_group(process.pid, process.start_ticks) for process in state.processes))
        self._folder.save(State(state.generation))
        self._step_logs.archive(state.generation)
        self._idle.set()
        self._warm_up()
        self._poll_task = asyncio.create_task(self._poll())

    def hello(self) -> pb.LauncherReport:
        """What a control plane must know first. A start that was waiting is forgotten: it decides anew on what it reads here."""
        self._wanted = None
        return self._hello()

    def _hello(self) -> pb.LauncherReport:
        hello = pb.LauncherHello(
            job=self._settings.job,
            node=self._settings.node,
            placement_epoch=self._settings.placement_epoch,
            launcher_id=self._launcher_id,
            reserved_port=self._port.number,
            ready=self._zygote_ready,
        )
        if self._attempt is not None and self._attempt.generation == self._generation:
            for rank in self._attempt.ranks.values():
                if rank.exited is not None:
                    hello.ranks_exited.append(rank.exited)
                elif rank.started is not None:
                    hello.ranks_alive.append(rank.started)
        return pb.LauncherReport(generation=self._generation, time_unix_ns=self._clock.unix_ns(), hello=hello)

    def heartbeat(self) -> pb.LauncherReport:
        """The next heartbeat, to be sent now: the lease that answers it counts from here."""
        self._lease = (self._lease or Lease()).sent(self._clock.monotonic_s())
        beat = pb.Heartbeat(sequence=self._lease.sequence)
        return pb.LauncherReport(generation=self._generation, time_unix_ns=self._clock.unix_ns(), heartbeat=beat)

    async def reports(self) -> AsyncIterator[pb.LauncherReport]:
        """Reports in order, for ever; one reader at a time. Progress is only the newest, nothing else is ever left out."""
        while True:
            yield await self._outbox.get()

    def put_back(self, report: pb.LauncherReport) -> None:
        """Returns a report that could not be delivered; it comes first again."""
        self._outbox.put_back(report)

    @property
    def all_sent(self) -> bool:
        """Whether no report waits."""
        return self._outbox.is_empty

    async def handle(self, command: pb.LauncherCommand) -> None:
        """Takes a command; what becomes of it arrives in `reports`. Commands of older generations are rejected."""
        generation = command.generation
        kind = command.WhichOneof("kind")
        if kind == "lease":
            if self._lease is not None:
                self._lease = self._lease.granted(command.lease.sequence, command.lease.duration_seconds)
        elif kind == "finish":
            log.info("job has ended", extra={"reason": command.finish.reason})
            self._wanted = None
            self._stop(grace_s=0)
            self.finished.set()
        elif generation < self._generation or (kind == "start" and generation == self._generation):
            reason = (
                f"generation {self._generation} is newer" if generation < self._generation else "it was started before"
            )
            self._report(generation, rejected=pb.Rejected(current_generation=self._generation, reason=reason))
        elif kind == "start":
            self._accept(generation)
            self._wanted = (generation, command.start)
            self._stop(grace_s=0)
        elif kind == "stop":
            self._accept(generation)
            self._wanted = None
            self._stops_owed.add(generation)
            self._stop(command.stop.grace_seconds)
        elif kind == "verify":
            self._wanted_check = (generation, command.verify)
        self._advance()

    async def close(self, grace_s: float = 0) -> None:
        """Stops what runs (SIGTERM first when there is a grace), ends the zygote and lets the state folder go."""
        self._wanted = None
        self._stop(grace_s)
        await self._idle.wait()
        self._closing = True
        if self._zygote is not None:
            self._zygote.close()
        if self._zygote_task is not None:
            await self._zygote_task
        if self._poll_task is not None:
            self._poll_task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_TIMEOUT_S)
        self._step_logs.close()
        self._port.close()
        self._folder.close()

    def _accept(self, generation: int) -> None:
        """Fences all older generations off, on disk before anything else happens."""
        if generation > self._generation:
            self._generation = generation
            self._save()

    def _save(self) -> None:
        alive = self._attempt is not None and not self._attempt.gone
        processes = self._attempt.processes() if alive and self._attempt is not None else ()
        if self._zygote is not None:
            processes = (*processes, self._zygote.identity)
        self._folder.save(State(self._generation, processes))

    def _advance(self) -> None:
        """Takes every step towards what is wanted that nothing forbids now."""
        if self._attempt is not None and not self._attempt.gone:
            return
        for generation in sorted(self._stops_owed):
            self._report_stopped(generation)
        self._stops_owed.clear()
        if self._checking or self._closing:
            return
        if self._wanted_check is not None:
            (generation, verify), self._wanted_check = self._wanted_check, None
            self._checking = True
            self._spawn(self._check(generation, verify))
            return
        if self._wanted is None or not self._may_run():
            return
        generation, start = self._wanted
        problem = self._problem()
        if problem:
            self._start_failed(generation, problem, permanent=True)
        elif self._zygote_task is None:
            self._warm_up()
        elif self._zygote is not None and self._zygote_ready:
            self._wanted = None
            self._start(self._zygote, generation, start)

    def _may_run(self) -> bool:
        return self._settings.lease is None or (
            self._lease is not None and self._lease.is_valid(self._clock.monotonic_s())
        )

    def _problem(self) -> str:
        """What no retry can mend, empty when nothing is wrong."""
        folder, argv = self._spec.working_directory, self._spec.argv
        if not Path(folder).is_dir():
            return f"working directory {folder} does not exist on {self._settings.node}"
        if not argv:
            return "the job names no script"
        if argv[0] != "-m" and not Path(folder, argv[0]).is_file():
            return f"script {Path(folder, argv[0])} does not exist on {self._settings.node}"
        return ""

    def _start(self, zygote: Zygote, generation: int, start: pb.StartAttempt) -> None:
        known = {Path(item.path): item.step for item in start.known_steps}
        if start.resume_path and start.HasField("resume_step"):
            known[Path(start.resume_path)] = start.resume_step
        ranks: dict[int, LocalRank] = {}
        specs: list[RankSpec] = []
        try:
            for local_rank in range(self._spec.nproc_per_node):
                rank = start.first_rank + local_rank
                self._logs.prepare(generation, rank)
                step_log = self._step_logs.create(generation, rank)
                progress = RankProgress(
                    StepLog(step_log),
                    self._checkpoint_directory,
                    known,
                    start.high_water_step,
                    bool(start.resume_path),
                )
                ranks[rank] = LocalRank(rank, local_rank, progress)
                if self._settings.echo:
                    ranks[rank].echoes = echoes(self._logs, generation, rank, sys.stdout, sys.stderr)
                specs.append(self._rank_spec(generation, start, local_rank, step_log))
        except OSError as error:
            self._start_failed(generation, f"cannot make log files: {error}", permanent=False)
            return
        self._attempt = Attempt(generation, ranks, self._logs)
        if start.master_port == self._port.number:
            # It stays bound until this attempt has ended; the next one gets another.
            self._attempt.port, self._port = self._port, ReservedPort(self._settings.address)
        self._idle.clear()
        zygote.start_ranks(specs)
        if self._checkpoint_directory is not None:
            self._watcher = CommitWatcher(
                self._checkpoint_directory,
                lambda found: self._report(generation, checkpoint=found),
                self._attempt.step_at,
                finds_others=start.node_rank == 0,
            )

    def _rank_spec(self, generation: int, start: pb.StartAttempt, local_rank: int, step_log: Path) -> RankSpec:
        rank = start.first_rank + local_rank
        directory = str(self._checkpoint_directory or "")
        return RankSpec(
            rank=rank,
            generation=generation,
            argv=tuple(self._spec.argv),
            env=rank_environment(
                os.environ,
                self._spec,
                start,
                job=self._settings.job,
                generation=generation,
                local_rank=local_rank,
                gpu_indices=self._settings.gpu_indices,
                checkpoint_directory=directory,
            ),
            cwd=self._spec.working_directory,
            stdout=str(self._logs.path(generation, rank, "stdout").absolute()),
            stderr=str(self._logs.path(generation, rank, "stderr").absolute()),
            step_log=str(step_log.absolute()),
            checkpoint_directory=directory,
        )

    def _stop(self, grace_s: float) -> None:
        """Ends the current attempt: SIGTERM and, after the grace, SIGKILL; at once without a grace."""
        attempt = self._attempt
        if attempt is None or attempt.gone:
            return
        attempt.stopping = True
        self._signal(attempt, signal.SIGTERM if grace_s > 0 else signal.SIGKILL)
        if grace_s > 0:
            asyncio.get_running_loop().call_later(grace_s, self._signal, attempt, signal.SIGKILL)

    def _signal(self, attempt: Attempt, number: int) -> None:
        if not attempt.gone and self._zygote is not None:
            self._zygote.signal(attempt.live_pids(), number)

    def _warm_up(self) -> None:
        self._zygote_task = asyncio.create_task(self._run_zygote())

    async def _run_zygote(self) -> None:
        try:
            self._zygote = await Zygote.start(
                self._python,
                {**os.environ, **self._spec.environment},
                self._spec.working_directory,
                self._settings.state_dir / "zygote.log",
            )
        except OSError as error:
            self._zygote_task = None
            if self._wanted is not None:
                self._start_failed(self._wanted[0], f"cannot run {self._python}: {error.strerror}", permanent=True)
            return
        self._save()
        await self._zygote.run(self._on_event)

    def _on_event(self, event: Event) -> None:
        attempt = self._attempt
        match event:
            case Ready():
                self._zygote_ready = True
                if event.reason:
                    log.warning("ranks are spawned, not forked: %s", event.reason)
                if self._wanted is None:
                    self._outbox.put(self._hello())  # nobody starts an attempt on a launcher that is not ready
            case Started() if attempt is not None:
                self._report(attempt.generation, rank_started=attempt.started(event))
                self._save()
                if attempt.stopping:
                    self._signal(attempt, signal.SIGKILL)
            case NotStarted() if attempt is not None:
                self._start_failed(attempt.generation, event.message, permanent=False)
                self._stop(grace_s=0)
            case Exited() if attempt is not None:
                self._exited(attempt, event)
            case Gone() if attempt is not None:
                self._gone(attempt)
            case Ended():
                self._zygote = None
                self._zygote_task = None
                was_ready, self._zygote_ready = self._zygote_ready, False
                if not self._closing:
                    self._spawn(self._zygote_ended(event.message, was_ready=was_ready))
                return
        self._advance()

    def _exited(self, attempt: Attempt, event: Exited, note: str = "") -> None:
        self._look(attempt)
        self._report_progress(attempt)
        self._report(attempt.generation, rank_exited=attempt.exited(event, note))
        if event.code != 0 and not attempt.stopping:
            # The others wait for it in a collective; there is nothing to be gracious about.
            self._stop(grace_s=0)

    def _gone(self, attempt: Attempt) -> None:
        self._look(attempt)
        if self._watcher is not None:
            self._watcher.poll(ranks_live=False)
            self._spawn(self._watcher.close())
            self._watcher = None
        attempt.gone = True
        attempt.close()
        self._save()
        self._stops_owed.add(attempt.generation)
        self._spawn(self._put_away(attempt.generation))
        self._idle.set()

    async def _zygote_ended(self, message: str, *, was_ready: bool) -> None:
        """Kills by itself what the zygote would have killed: its ranks have its death signal, their children have not."""
        log.error(message)
        attempt = self._attempt
        if attempt is not None and not attempt.gone:
            await asyncio.gather(*(proc.kill_group(p.pid, p.start_ticks) for p in attempt.processes()))
            attempt.stopping = True
            for rank in attempt.ranks.values():
                if rank.lives and rank.started is not None:
                    now = self._clock.unix_ns()
                    event = Exited(rank.rank, rank.started.pid, -signal.SIGKILL, signalled=False, time_unix_ns=now)
                    self._exited(attempt, event, note=f"switchgear: {message}\n")
            self._gone(attempt)
        elif not was_ready and self._wanted is not None:
            self._start_failed(self._wanted[0], message, permanent=False)
        if was_ready:
            self._warm_up()
        self._advance()

    async def _put_away(self, generation: int) -> None:
        try:
            await asyncio.to_thread(self._step_logs.archive, generation)
            await asyncio.to_thread(self._logs.prune, generation)
        except OSError as error:
            log.warning("cannot archive step logs: %s", error)

    async def _check(self, generation: int, verify: pb.VerifyCheckpoints) -> None:
        known = {item.path: Known(item.step, item.digest) for item in verify.known}
        result = pb.VerifyResult()
        if self._checkpoint_directory is not None:
            try:
                outcome = await asyncio.to_thread(checkpoints.verify_newest, self._checkpoint_directory, known)
                result.checkpoints.extend(_checked_to_proto(checked) for checked in outcome.checked)
            except Exception as error:  # the answer must come: recovery waits for it
                log.exception("checkpoints cannot be verified")
                result.error = f"{type(error).__name__}: {error}"
        result.time_unix_ns = self._clock.unix_ns()
        self._checking = False
        self._report(generation, verify_result=result)
        self._advance()

    async def _poll(self) -> None:
        turn = 0
        while True:
            await asyncio.sleep(_POLL_S)
            turn += 1
            self._advance()
            attempt = self._attempt
            if attempt is None or attempt.gone:
                continue
            try:
                self._look(attempt)
                if turn % _POLLS_PER_PROGRESS == 0:
                    self._report_progress(attempt)
                if turn % _POLLS_PER_LISTING == 0 and self._watcher is not None:
                    self._watcher.poll(ranks_live=not attempt.stopping)
            except Exception:  # a look that fails must not end the supervision
                log.exception("cannot read progress")
            if not attempt.stopping and not self._may_run():
                log.warning("lease expired: the control plane may have given this job to other nodes")
                self._stop(grace_s=0)

    def _look(self, attempt: Attempt) -> None:
        for rank, found in attempt.poll():
            if not isinstance(found, Commit):
                loaded = pb.Loaded(rank=rank, path=str(found.path), step=found.step, time_unix_ns=found.time_unix_ns)
                self._report(attempt.generation, loaded=loaded)
            elif self._watcher is not None:
                self._watcher.committed(found)

    def _report_progress(self, attempt: Attempt) -> None:
        progress = attempt.progress()
        if progress is not None:
            self._report(attempt.generation, progress=progress)

    def _report_stopped(self, generation: int) -> None:
        stopped = pb.AttemptStopped(time_unix_ns=self._clock.unix_ns(), reserved_port=self._port.number)
        self._report(generation, attempt_stopped=stopped)

    def _start_failed(self, generation: int, message: str, *, permanent: bool) -> None:
        self._wanted = None
        failed = pb.StartFailed(message=message, reserved_port=self._port.number, permanent=permanent)
        self._report(generation, start_failed=failed)

    def _report(self, generation: int, **kind: Any) -> None:
        self._outbox.put(pb.LauncherReport(generation=generation, time_unix_ns=self._clock.unix_ns(), **kind))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _checked_to_proto(checked: Checked) -> pb.CheckpointReport:
    return pb.CheckpointReport(
        path=str(checked.path),
        state=pb.CheckpointReport.CORRUPT if checked.damage else pb.CheckpointReport.VERIFIED,
        step=checked.step,
        size_bytes=checked.size_bytes,
        digest=checked.digest,
        damage=checked.damage,
        quarantine_path="" if checked.quarantine_path is None else str(checked.quarantine_path),
        commit_time_unix_ns=checked.commit_time_unix_ns,
    )
