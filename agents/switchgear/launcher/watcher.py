"""Looks at the ranks of an attempt four times a second and tells of those that make no step or are held."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from switchgear.core.clock import Clock
from switchgear.launcher import loops, proc, stacks, watch
from switchgear.launcher.activity import Activity, from_mark, from_stack
from switchgear.launcher.attempt import Attempt, LocalRank
from switchgear.launcher.disk import DiskThread
from switchgear.launcher.stack_taker import StackTaker
from switchgear.launcher.stacks import Frame, Stack
from switchgear.launcher.state import Process
from switchgear.launcher.watch import Look, RankWatch, StepTimes, Trouble
from switchgear.v1.job_service_pb2 import JobSpec
from switchgear.v1alpha import launcher_service_pb2 as pb

log = logging.getLogger(__name__)

#: Every second look is told, while there is something to tell.
_LOOKS_PER_REPORT = 2
#: A file system that answers later may be dead.
READ_TIMEOUT_S = 2.0
_FLIGHT_RECORDS = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
#: As in proc(5): a signal reaches it later or never.
_CANNOT_ANSWER = "DTtZX"

_STATES = {
    "R": pb.RankWatch.RUNNING,
    "S": pb.RankWatch.SLEEPING,
    "I": pb.RankWatch.SLEEPING,
    "D": pb.RankWatch.DISK,
    "T": pb.RankWatch.STOPPED,
    "t": pb.RankWatch.TRACED,
    "Z": pb.RankWatch.ZOMBIE,
    "X": pb.RankWatch.ZOMBIE,
}


_ACTIVITIES = {
    Activity.UNKNOWN: pb.RankWatch.ACTIVITY_UNSPECIFIED,
    Activity.STARTUP: pb.RankWatch.STARTUP,
    Activity.STEP: pb.RankWatch.STEP,
    Activity.COLLECTIVE: pb.RankWatch.COLLECTIVE,
    Activity.CHECKPOINT: pb.RankWatch.CHECKPOINT,
    Activity.EVALUATION: pb.RankWatch.EVALUATION,
    Activity.DATA: pb.RankWatch.DATA,
    Activity.COMPILE: pb.RankWatch.COMPILE,
}


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a rank's stack has told of it.

    activity: as if it had made a step. note: a line for its reader, or none. judged: False: it cannot be told what the rank is at.
    """

    stack: Stack
    activity: Activity = Activity.UNKNOWN
    note: str = ""
    judged: bool = False


@dataclass(slots=True)
class _Followed:
    """A rank of the attempt. began_ns: when it was first seen, monotonic. next_stack_s: when its stack is due again, monotonic."""

    rank: LocalRank
    process: Process
    times: StepTimes
    began_ns: int
    watch: RankWatch = field(default_factory=RankWatch)
    counted: int = 0
    seen: _Seen | None = None
    asking: bool = False
    next_stack_s: float = 0.0

    def forget(self) -> None:
        """It goes on: what was seen says nothing about the next time."""
        self.seen, self.next_stack_s = None, 0.0
        self.watch.goes_on()


class Watcher:
    """report: takes the generation and each `Watch` of the attempt that is given to `look`. spawn: runs work beside the loop.

    python: the job's interpreter. directory: of its checkpoints.
    """

    def __init__(
        self,
        clock: Clock,
        spec: JobSpec,
        python: str,
        directory: Path | None,
        *,
        report: Callable[[int, pb.Watch], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._clock = clock
        self._directory = directory
        self._report = report
        self._spawn = spawn
        self._steps = spec.workload != JobSpec.INFERENCE
        environment = {**os.environ, **spec.environment}
        #: Where torch's flight recorder writes, without the rank's number; empty when the job does not say.
        self._flight_records = next((environment[name] for name in _FLIGHT_RECORDS if name in environment), "")
        self._taker = StackTaker(python, clock)
        #: Of the program's source and the checkpoint directory, which may lie on a dead mount.
        self._disk = DiskThread("sources")
        self._disk_hangs = False
        self._times: dict[int, StepTimes] = {}
        self._attempt: Attempt | None = None
        self._followed: dict[int, _Followed] = {}
        self._looks = 0
        self._telling = False

    def close(self) -> None:
        """Lets its thread end."""
        self._disk.close()

    def look(self, attempt: Attempt) -> None:
        """To be called each quarter of a second while the attempt runs."""
        now_ns = round(self._clock.monotonic_s() * 1e9)
        if attempt is not self._attempt:
            self._attempt, self._followed, self._telling = attempt, {}, False
        for rank in attempt.ranks.values():
            if rank.process is not None and rank.rank not in self._followed:
                times = self._times.setdefault(rank.rank, StepTimes())
                times.new_attempt()
                self._followed[rank.rank] = _Followed(rank, rank.process, times, now_ns)
        told = [item for followed in self._followed.values() if (item := self._told(followed, now_ns)) is not None]
        self._looks += 1
        if told and (not self._telling or self._looks % _LOOKS_PER_REPORT == 0):
            self._telling = True
            self._report(attempt.generation, pb.Watch(ranks=told))
        elif not told and self._telling:
            self._telling = False
            self._report(attempt.generation, pb.Watch())

    def _told(self, followed: _Followed, now_ns: int) -> pb.RankWatch | None:
        """What is to be told of it now; None when all is well, or not clear yet."""
        rank = followed.rank
        now = proc.sample(followed.process.pid) if rank.exited is None else None
        if now is None:
            return None
        self._learn(followed)
        progress_ns = _progress_ns(followed)
        silent = self._steps and now_ns - progress_ns > watch.SILENT_S_MIN * 1e9
        held = proc.held_threads(followed.process.pid) if silent or now.state == "D" else {}
        followed.watch.take(Look(now_ns, progress_ns, now.state, now.cpu_ns, held))
        step_s = followed.times.learned_s()
        trouble = followed.watch.trouble(step_s, started=rank.progress.count > 0)
        if trouble is None or (trouble is Trouble.SILENT and not self._steps):
            followed.forget()
            return None
        if silent and now.state not in _CANNOT_ANSWER and not followed.asking and now_ns >= followed.next_stack_s * 1e9:
            followed.asking = True
            log = followed.rank.progress.log  # closed when the attempt is over
            call = [Frame(function, path, line) for line, function, path in log.call]
            sleeps = followed.watch.sleeps()
            self._spawn(self._see(followed, log.stack_fd, call, sleeps=sleeps, writing=log.writing))
        if trouble is Trouble.SILENT and not _is_clear(followed, step_s):
            return None
        return self._to_proto(followed, progress_ns, step_s, now_ns)

    async def _see(self, followed: _Followed, fd: int | None, call: Stack, *, sleeps: bool, writing: bool) -> None:
        """Takes its stack, and what it tells, off the loop."""
        try:
            stack = await self._taker.take(followed.process, fd)
            followed.seen = seen = await self._judged(followed, stack, call, sleeps=sleeps, writing=writing)
            if seen.judged:
                followed.watch.saw(seen.activity, round(self._clock.monotonic_s() * 1e9))
        finally:
            followed.asking = False
            followed.next_stack_s = self._clock.monotonic_s() + watch.next_stack_s(followed.watch.silent_s())

    async def _judged(self, followed: _Followed, stack: Stack, call: Stack, *, sleeps: bool, writing: bool) -> _Seen:
        """What a stack tells; that its rank is at something unknown while the files that it takes cannot be read."""
        if self._disk_hangs and self._disk.pending:
            return _Seen(stack)
        work = self._disk.run(self._judge, followed, stack, call, sleeps=sleeps, writing=writing)
        try:
            seen = await asyncio.wait_for(work, READ_TIMEOUT_S)
        except TimeoutError:
            if not self._disk_hangs:
                log.warning("files that tell what ranks do cannot be read: a file system does not answer")
            self._disk_hangs = True
            return _Seen(stack)
        self._disk_hangs = False
        return seen

    def _judge(self, followed: _Followed, stack: Stack, call: Stack, *, sleeps: bool, writing: bool) -> _Seen:
        directory = self._real_directory
        said = from_stack(
            stack,
            writing=writing and directory is not None and proc.writes_below(followed.process.pid, directory),
            importing=loops.imports(stack, call),
            sleeps=sleeps,
            beyond=loops.beyond(stack, call),
            place_of=lambda stack: loops.place_of(stack, call),
            line_of=loops.line_of,
        )
        return _Seen(
            stack, said, self._flight_record(followed.rank), judged=bool(stack) or said is not Activity.UNKNOWN
        )

    @cached_property
    def _real_directory(self) -> Path | None:
        return None if self._directory is None else self._directory.resolve()

    def _flight_record(self, rank: LocalRank) -> str:
        """A line that names what torch's flight recorder has written of the rank in this attempt; empty when it has not."""
        path = Path(f"{self._flight_records}{rank.rank}")
        try:
            written_ns = path.stat().st_mtime_ns if self._flight_records else 0
        except OSError:
            return ""
        return f"flight recorder: {path}\n" if rank.started and written_ns > rank.started.time_unix_ns else ""

    def _learn(self, followed: _Followed) -> None:
        """Takes the durations of the steps since the last look; one with more in it than a step teaches nothing."""
        log, count = followed.rank.progress.log, followed.rank.progress.count
        if count == followed.counted:
            return
        if followed.watch.paused:
            followed.counted += 1
        followed.watch.paused = False
        for number in range(max(followed.counted, count - watch.STEPS, 1) + 1, count + 1):
            before, record = log.record(number - 1), log.record(number)
            if before is not None and record is not None and not before.end_ns < log.phase_end_ns <= record.end_ns:
                followed.times.add(record.end_ns - before.end_ns)
        followed.counted = count

    def _to_proto(self, followed: _Followed, progress_ns: int, step_s: float | None, now_ns: int) -> pb.RankWatch:
        log, seen, looks = followed.rank.progress.log, followed.seen, followed.watch
        unix_minus_mono_ns = self._clock.unix_ns() - now_ns
        count = followed.rank.progress.count
        stack: Stack = () if seen is None else seen.stack
        at = Activity.STARTUP if count == 0 else from_mark(log.phase)
        if at is None:
            at = Activity.UNKNOWN if seen is None else seen.activity
        return pb.RankWatch(
            rank=followed.rank.rank,
            process_state=_STATES.get(looks.state, pb.RankWatch.PROCESS_STATE_UNSPECIFIED),
            process_state_since_unix_ns=looks.state_since_ns + unix_minus_mono_ns,
            activity=_ACTIVITIES[at],
            progress_time_unix_ns=progress_ns + unix_minus_mono_ns,
            count=count,
            step_seconds=step_s or 0.0,
            cpu_share=looks.cpu_share(),
            where=stacks.where(stack),
            stack="" if seen is None else stacks.text(stack, seen.note),
        )


def _is_clear(followed: _Followed, step_s: float | None) -> bool:
    """Whether what a silent rank is at is known as well as it can be.

    Before its first step that takes more: nothing says yet that it will ever make steps. It will when an earlier attempt did, and it
    is more than busy when it waits for other ranks.
    """
    if followed.rank.progress.count > 0 or step_s is not None:
        return followed.seen is not None
    return followed.seen is not None and followed.seen.activity is Activity.COLLECTIVE


def _progress_ns(followed: _Followed) -> int:
    """Last sign of progress, monotonic."""
    log = followed.rank.progress.log
    if not log.started:
        return followed.began_ns
    newest = log.record(log.count)
    signs_ns = (log.phase_end_ns, log.other_step_ns, followed.watch.pause_end_ns)
    return max(followed.began_ns, *signs_ns, 0 if newest is None else newest.end_ns)
