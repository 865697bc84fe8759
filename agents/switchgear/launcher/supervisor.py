"""The launcher without its wire: takes commands, supervises the ranks of one job on one node, makes reports.

Everything runs on one event loop and follows one rule: a command only records what is wanted, and `_advance` brings the world there
when nothing stands in the way (an attempt that still ends, imports, a check of checkpoints, a lease). What may hang on a dead network
mount runs in a thread of its own, so that neither heartbeats nor the lease nor a stop wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import uuid
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any

from switchgear.core.clock import Clock, SystemClock
from switchgear.core.errors import FailedPrecondition, Reason
from switchgear.launcher.attempt import Attempt
from switchgear.launcher.checkpoint_folder import CheckpointFolder
from switchgear.launcher.disk import DiskThread
from switchgear.launcher.lease import Lease
from switchgear.launcher.logs import LogFolder
from switchgear.launcher.outbox import Outbox
from switchgear.launcher.ports import ReservedPort
from switchgear.launcher.preparation import Preparation
from switchgear.launcher.progress import Commit
from switchgear.launcher.settings import LauncherSettings
from switchgear.launcher.state import State, StateFolder, kill_all
from switchgear.launcher.steplog_files import StepLogFiles
from switchgear.launcher.warm_zygote import Launching, NotWarm, WarmZygote
from switchgear.launcher.watcher import Watcher
from switchgear.launcher.zygote import Ended, Event, Exited, Gone, NotStarted, RankSpec, Ready, Started, kind_of
from switchgear.v1alpha import launcher_service_pb2 as pb

__all__ = ["LauncherSettings", "Supervisor"]

log = logging.getLogger(__name__)

#: Steps are read this often; their times are exact all the same, since the ranks write them down.
_POLL_S = 0.05
#: Every second look is reported: 10 progress reports a second at most.
_POLLS_PER_PROGRESS = 2
#: Every fourth look lists the checkpoint directory, which may be on a network.
_POLLS_PER_LISTING = 4
#: Every fifth looks at the processes themselves.
_POLLS_PER_WATCH = 5
#: For digests and copies of step logs under way; what is left then is only missed by readers.
_CLOSE_TIMEOUT_S = 10.0
#: SIGKILL takes milliseconds; a rank with very much memory to give back takes seconds.
_STOP_PATIENCE_S = 10.0


class Supervisor:
    """Supervises the ranks of one job on one node; `start` first, `close` last.

    Raises FailedPrecondition (JOB_ALREADY_RUNNING) when another launcher holds the state folder.
    """

    def __init__(
        self, settings: LauncherSettings, clock: Clock | None = None, zygote: WarmZygote | None = None
    ) -> None:
        self._settings = settings
        self._spec = settings.spec
        self._clock = clock or SystemClock()
        self._launcher_id = uuid.uuid4().hex
        self._folder = StateFolder(settings.state_dir, settings.job)
        self._logs = LogFolder(Path(self._spec.log_directory or settings.state_dir / "logs"))
        self._step_logs = StepLogFiles(settings.state_dir)
        self._disk = DiskThread("disk")
        directory = Path(self._spec.working_directory, self._spec.checkpoint_directory)
        self._checkpoints = CheckpointFolder(directory if self._spec.checkpoint_directory else None, self._disk)
        self._preparation = Preparation(settings, self._logs, self._step_logs, self._checkpoints.directory)
        self._outbox = Outbox()
        self._port = ReservedPort(settings.address)
        self._lease = settings.lease
        self._generation = 0
        self._zygote = zygote or WarmZygote(kind_of(self._spec, settings.python), settings.state_dir / "zygote.log")
        self._watcher = Watcher(
            self._clock,
            self._spec,
            self._zygote.kind.python,
            self._checkpoints.directory,
            report=lambda generation, watch: self._report(generation, watch=watch),
            spawn=self._spawn,
        )
        self._attempt: Attempt | None = None
        self._wanted: tuple[int, pb.StartAttempt] | None = None
        self._wanted_check: tuple[int, pb.VerifyCheckpoints] | None = None
        self._stops_owed: set[int] = set()
        self._poll_task: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        #: At work in the disk thread for the next attempt: a check of checkpoints, or its preparation.
        self._checking = False
        self._preparing = False
        #: The attempt has ended; its last commits are being looked for.
        self._looking = False
        self._closing = False
        self._idle = asyncio.Event()
        #: Set when the job has ended: time to close, which stops what still runs.
        self.finished = asyncio.Event()

    async def start(self) -> None:
        """Ends what an earlier launcher left, then warms the zygote up; returns before that is ready.

        Raises FailedPrecondition when something that it left cannot be killed.
        """
        state = self._folder.load()
        self._generation = state.generation
        if not await kill_all(state.processes):
            raise FailedPrecondition(
                f"processes of an earlier attempt of {self._settings.job} cannot be killed (state D, waiting for a device); reboot the node",
                Reason.JOB_ALREADY_RUNNING,
                job=self._settings.job,
            )
        self._save()
        self._step_logs.archive(state.generation)
        self._step_logs.sweep()
        self._idle.set()
        self._zygote.attach(self._on_event)
        self._poll_task = asyncio.create_task(self._poll())

    @property
    def generation(self) -> int:
        """Newest that was accepted, also by an earlier launcher of this folder; 0 before `start`."""
        return self._generation

    def hello(self) -> pb.LauncherReport:
        """What a control plane must know first. A start that was waiting is forgotten: it decides anew on what it reads here."""
        self._wanted = None
        self._outbox.drop_hellos()
        return self._hello()

    def _hello(self) -> pb.LauncherReport:
        hello = pb.LauncherHello(
            job=self._settings.job,
            node=self._settings.node,
            placement_epoch=self._settings.placement_epoch,
            launcher_id=self._launcher_id,
            reserved_port=self._port.number,
            # A zygote that cannot start is ready too: to say so when it is asked for an attempt.
            ready=self._zygote.ready is not None or not self._zygote.present,
            # `start` has ended what the launcher before had left.
            all_gone=self._attempt is None or self._attempt.gone,
        )
        if self._attempt is not None and self._attempt.generation == self._generation:
            hello.ranks_exited.extend(self._attempt.exits())
            hello.ranks_alive.extend(self._attempt.alive())
        return pb.LauncherReport(generation=self._generation, time_unix_ns=self._clock.unix_ns(), hello=hello)

    def heartbeat(self) -> pb.LauncherReport:
        """The next heartbeat, to be sent now: the lease that answers it counts from here."""
        self._lease = (self._lease or Lease()).sent(self._clock.monotonic_s())
        beat = pb.Heartbeat(sequence=self._lease.sequence)
        return pb.LauncherReport(generation=self._generation, time_unix_ns=self._clock.unix_ns(), heartbeat=beat)

    async def reports(self) -> AsyncIterator[pb.LauncherReport]:
        """Reports in order, until `close` has made the last; one reader at a time.

        Of progress only the newest counts; nothing else is ever left out.
        """
        while (report := await self._outbox.get()) is not None:
            yield report

    def put_back(self, report: pb.LauncherReport) -> None:
        """Returns a report that could not be delivered; it comes first again."""
        self._outbox.put_back(report)

    async def handle(self, command: pb.LauncherCommand) -> None:
        """Takes a command; what becomes of it arrives in `reports`. Commands of older generations are rejected."""
        generation = command.generation
        kind = command.WhichOneof("kind")
        if kind == "lease":
            if self._lease is not None:
                self._lease = self._lease.granted(command.lease.sequence, command.lease.duration_seconds)
                self._hand_on_lease()
        elif kind == "finish":
            log.info("job has ended", extra={"reason": command.finish.reason})
            self._wanted = None
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

    async def close(self, grace_s: float = 0, number: int = signal.SIGTERM) -> None:
        """Stops what runs (by signal `number` first when there is a grace), ends the zygote and lets the state folder go."""
        self._wanted = None
        self._stop(grace_s, number)
        try:
            async with asyncio.timeout(grace_s + 2 * _STOP_PATIENCE_S):
                await self._idle.wait()
        except TimeoutError:
            log.error("some process of the attempt cannot be killed: leaving it behind")
        self._closing = True
        await self._zygote.close()
        if self._poll_task is not None:
            self._poll_task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_TIMEOUT_S)
        self._outbox.close()
        self._step_logs.close()
        self._disk.close()
        self._checkpoints.close()
        self._watcher.close()
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
        if self._zygote.identity is not None:
            processes = (*processes, self._zygote.identity)
        try:
            self._folder.save(State(self._generation, processes))
        except OSError as error:
            # The zygote still ends its ranks when we end, and the control plane counts generations too.
            log.error("cannot write the state folder: %s", error)

    def _advance(self) -> None:
        """Takes every step towards what is wanted that nothing forbids now."""
        if self._looking or (self._attempt is not None and not self._attempt.gone):
            return
        for generation in sorted(self._stops_owed):
            self._report_stopped(generation)
        self._stops_owed.clear()
        if self._checking or self._preparing or self._closing:
            return
        if self._wanted_check is not None:
            (generation, request), self._wanted_check = self._wanted_check, None
            self._checking = True
            self._spawn(self._check(generation, request))
        elif self._wanted is not None and self._may_run() and (self._zygote.ready or not self._zygote.present):
            self._preparing = True
            self._spawn(self._prepare(self._wanted))

    def _may_run(self) -> bool:
        return self._settings.lease is None or (
            self._lease is not None and self._lease.is_valid(self._clock.monotonic_s())
        )

    def _hand_on_lease(self) -> None:
        """The zygote keeps the deadline too: it goes on where we are stopped, or wait for a dead file system."""
        if self._settings.lease is None or self._lease is None or self._lease.expires_at_s is None:
            return
        self._zygote.lease(self._lease.expires_at_s)

    async def _prepare(self, wanted: tuple[int, pb.StartAttempt]) -> None:
        """Starts the attempt, unless something else is wanted by the time that its files are there."""
        generation, start = wanted
        try:
            problem = await self._disk.run(self._preparation.problem)
            if self._wanted is not wanted:
                return
            if problem:
                self._start_failed(generation, problem, permanent=True)
            elif not self._zygote.present:
                self._zygote.warm_up()
            else:
                await self._checkpoints.survey()
                attempt, specs = await self._disk.run(self._preparation.attempt, generation, start)
                if self._wanted is not wanted or not self._zygote.ready or self._closing or not self._may_run():
                    attempt.close()
                    return
                self._start(attempt, start, specs)
        except Exception as error:  # recovery waits for an answer, whatever it is
            if not isinstance(error, OSError):
                log.exception("cannot prepare generation %d", generation)
            if self._wanted is wanted:
                self._start_failed(generation, f"cannot make what an attempt needs: {error}", permanent=False)
        finally:
            self._preparing = False
            self._advance()

    def _start(self, attempt: Attempt, start: pb.StartAttempt, specs: Sequence[RankSpec]) -> None:
        if start.master_port == self._port.number:
            # It stays bound until this attempt has ended; the next one gets another.
            attempt.port, self._port = self._port, ReservedPort(self._settings.address)
        self._wanted = None
        self._attempt = attempt
        self._idle.clear()
        self._hand_on_lease()
        self._zygote.start_ranks(specs)
        self._checkpoints.watch(
            lambda found: self._report(attempt.generation, checkpoint=found),
            attempt.step_at,
            finds_others=start.node_rank == 0,
        )

    def _stop(self, grace_s: float, number: int = signal.SIGTERM) -> None:
        """Ends the current attempt: signal `number` and, after the grace, SIGKILL; at once without a grace."""
        attempt = self._attempt
        if attempt is None or attempt.gone:
            return
        attempt.stopping = True
        self._checkpoints.ranks_ended()
        self._signal(attempt, number if grace_s > 0 else signal.SIGKILL)
        if grace_s > 0:
            asyncio.get_running_loop().call_later(grace_s, self._signal, attempt, signal.SIGKILL)

    def _signal(self, attempt: Attempt, number: int) -> None:
        if attempt.gone:
            return
        self._zygote.signal(attempt.live_pids(), number)
        if number == signal.SIGKILL:
            asyncio.get_running_loop().call_later(_STOP_PATIENCE_S, self._force, attempt)

    def _force(self, attempt: Attempt) -> None:
        """The zygote did not do it: it is stopped or stuck. Without it we kill the groups ourselves."""
        if not attempt.gone:
            log.error("the zygote does not end its ranks: ending it")
            self._zygote.kill()

    def _not_warm(self, message: str, *, permanent: bool) -> None:
        log.error(message)
        if self._wanted is None:
            self._outbox.put(self._hello())
        else:
            self._start_failed(self._wanted[0], message, permanent=permanent)

    def _on_event(self, event: Event | Launching | NotWarm) -> None:
        attempt = self._attempt
        match event:
            case Launching():
                self._save()
                return
            case NotWarm():
                self._not_warm(event.message, permanent=event.permanent)
                return
            case Ready():
                for why in event.failed:
                    log.warning("the preload goes without %s", why)
                if event.reason:
                    log.warning("ranks are spawned, not forked: %s", event.reason)
                if self._wanted is None:
                    self._outbox.put(self._hello())
            case Started() if attempt is not None and not attempt.gone:
                self._report(attempt.generation, rank_started=attempt.started(event))
                self._save()
                if attempt.stopping:
                    self._signal(attempt, signal.SIGKILL)
            case Started():
                log.error("rank %d was started for an attempt that has ended: ending it", event.rank)
                self._zygote.signal([event.pid], signal.SIGKILL)
            case NotStarted() if attempt is not None:
                self._start_failed(attempt.generation, event.message, permanent=False)
                self._stop(grace_s=0)
            case Exited() if attempt is not None:
                self._exited(attempt, event)
            case Gone() if attempt is not None:
                self._gone(attempt)
            case Ended():
                if not self._closing:
                    self._spawn(self._zygote_ended(event))
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
        self._checkpoints.ranks_ended()
        self._looking = True
        # What recovery does after the attempt's end depends on the commits that it knows.
        self._spawn(self._checkpoints.last_look(self._looked))
        attempt.gone = True
        attempt.close()
        self._save()
        self._stops_owed.add(attempt.generation)
        self._spawn(asyncio.to_thread(self._preparation.put_away, attempt.generation))
        self._idle.set()

    def _looked(self) -> None:
        self._looking = False
        self._advance()

    async def _zygote_ended(self, end: Ended) -> None:
        """Kills by itself what the zygote would have killed: its ranks have its death signal, their children have not."""
        attempt = self._attempt
        if attempt is not None and not attempt.gone:
            log.error(end.message)
            while not await kill_all(attempt.processes()):
                log.error("some process of the attempt cannot be killed (state D, waiting for a device)")
            attempt.stopping = True
            for event in attempt.lost(self._clock.unix_ns()):
                self._exited(attempt, event, note=f"switchgear: {end.message}")
            self._gone(attempt)
        if end.was_ready:
            self._zygote.warm_up()
        else:
            self._not_warm(end.message, permanent=False)
        self._advance()

    async def _check(self, generation: int, request: pb.VerifyCheckpoints) -> None:
        result = await self._checkpoints.verify(request)
        result.time_unix_ns = self._clock.unix_ns()
        self._checking = False
        self._report(generation, verify_result=result)
        self._advance()

    async def _poll(self) -> None:
        turn = 0
        said = ""
        while True:
            await asyncio.sleep(_POLL_S)
            turn += 1
            attempt = self._attempt
            try:
                if turn % _POLLS_PER_WATCH == 0:
                    self._zygote.look()
                if attempt is None or attempt.gone:
                    self._advance()
                    continue
                if not attempt.stopping and not self._may_run():
                    log.warning("lease expired: the control plane may have given this job to other nodes")
                    self._stop(grace_s=0)
                self._look(attempt)
                if turn % _POLLS_PER_PROGRESS == 0:
                    self._report_progress(attempt)
                if turn % _POLLS_PER_LISTING == 0:
                    self._checkpoints.poll()
                if turn % _POLLS_PER_WATCH == 0 and not attempt.stopping:
                    self._watcher.look(attempt)
            except Exception as error:  # a look that fails must not end the supervision
                if said != repr(error):  # twenty times a second would fill the disk
                    log.exception("cannot look after the attempt")
                said = repr(error)

    def _look(self, attempt: Attempt) -> None:
        for rank, found in attempt.poll():
            if not isinstance(found, Commit):
                loaded = pb.Loaded(rank=rank, path=str(found.path), step=found.step, time_unix_ns=found.time_unix_ns)
                self._report(attempt.generation, loaded=loaded)
            else:
                self._checkpoints.committed(found)

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
