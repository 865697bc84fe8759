"""A run inside of a Slurm allocation, on the node that keeps it together: fenced from other runs of its job, within its time limit."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from switchgear.cli.output import tell
from switchgear.cli.rendezvous import Rendezvous
from switchgear.cli.slurm.drain import Drains
from switchgear.cli.slurm.flags import RideOptions
from switchgear.cli.slurm.pace import Pace, stop_reason
from switchgear.cli.slurm.requeue import requeue
from switchgear.cli.slurm.task import Task
from switchgear.cli.slurm.turns import Turn, Turns
from switchgear.core import names
from switchgear.core.clock import Clock
from switchgear.core.errors import FailedPrecondition, Reason, SwitchgearError
from switchgear.recovery import model as m
from switchgear.recovery.faults import VACATE_GRACE_S
from switchgear.slurm.client import Slurm
from switchgear.slurm.model import JobState

log = logging.getLogger(__name__)

#: How often it is looked whether another run has begun. A look is two small files.
GUARD_S = 1.0
#: How often Slurm is asked when the job ends: people may change its time limit. One job is asked for, so this may be often.
ASK_S = 60.0
TICK_S = 0.5


class Ride:
    """The `Allocation` of a run in Slurm.

    turns, turn: as begun for this run. earlier: the run before it; None: there was none. slurm: is asked by this process alone, of all
    nodes of the job.
    """

    def __init__(
        self,
        task: Task,
        options: RideOptions,
        slurm: Slurm,
        *,
        timing: m.Timing,
        clock: Clock,
        turns: Turns,
        turn: Turn,
        earlier: Turn | None,
    ) -> None:
        self.timing = timing
        self.generation = turn.generation
        # The run before may have held its turn for a lease, and then granted one.
        self.silence_s_max = timing.silence_s_max + timing.lease_s
        self._task, self._options, self._slurm, self._clock = task, options, slurm, clock
        self._turns, self._turn, self._earlier = turns, turn, earlier
        self._quiet = earlier is None or earlier.stopped
        self._quiet_s = clock.monotonic_s() + self.silence_s_max
        self._drains = Drains(slurm, options.drain, tell)
        self._slurm_names = {names.node_name(names.to_id(node)): node for node in task.nodes}
        self._pace = Pace(clock.monotonic_s())
        self._commits: set[tuple[str, int]] = set()
        self._end_unix_s = task.end_unix_s
        self._saves = asyncio.Lock()
        #: It was ended for its time, and might go on with more.
        self._out_of_time = False
        self._signalled = False

    @classmethod
    async def begin(
        cls, task: Task, options: RideOptions, slurm: Slurm, folder: Path, *, timing: m.Timing, clock: Clock
    ) -> Ride:
        """folder: for the turns of this job, on a file system that all nodes see.

        Raises FailedPrecondition (JOB_ALREADY_RUNNING) while another job of Slurm has the turn and runs; OSError.
        """
        turns = Turns(folder)
        earlier = await asyncio.to_thread(turns.newest)
        if earlier and not earlier.stopped and earlier.job_id != task.job_id:
            await _require_ended(slurm, earlier, folder)
        turn = await asyncio.to_thread(turns.begin, task.job_id, task.restarts)
        return cls(task, options, slurm, timing=timing, clock=clock, turns=turns, turn=turn, earlier=earlier)

    # As an `Allocation`.

    def is_quiet(self) -> bool:
        return self._quiet

    def left(self, given_up: Collection[str]) -> int:
        return len(self._slurm_names.keys() - set(given_up))

    async def keep(self, state: m.JobState, records: Sequence[m.Effect]) -> None:
        now_s = self._clock.monotonic_s()
        for record in records:
            match record:
                case m.SaveAttempt(attempt) if attempt.state is m.AttemptState.STARTING:
                    self._pace = self._pace.began(now_s)
                case m.SaveCheckpoint(checkpoint) if checkpoint.generation == state.generation and state.generation:
                    self._committed(checkpoint, now_s)
        if state.generation > self._turn.generation:
            if not await asyncio.to_thread(self._turns.has, self._turn):
                # Nothing may start any more, and `_guard`, which a stopped process runs too late, ends the rest.
                raise asyncio.CancelledError("another run of this job has begun")
            await self._save(generation=state.generation)

    def give_up(self, node: str, reason: str) -> None:
        self._drains.put(self._slurm_names.get(node, ""), reason)

    async def after(self, *, is_over: bool) -> tuple[str, bool]:
        given_up = tuple(sorted({*self._turn.given_up, *self._drains.nodes}))
        await self._say_stopped(given_up)
        await self._drains.finish()
        if is_over or self._signalled:
            return "", False
        if self._out_of_time and not self._options.chains:
            return "submit the job again, or use --chain: it goes on from its newest checkpoint", True
        runs = self._task.restarts + 1
        if self._task.restarts >= self._options.restarts_max:
            which = "--chain" if self._options.chains else "--max-requeues"
            return f"this was run {runs} of the job, so that it is not requeued ({which})", self._out_of_time
        refused = await requeue(self._task, given_up, self._slurm, tell)
        if refused:
            return f"the job cannot be requeued: {refused}", self._out_of_time
        return "the job is requeued", True

    # Beside the rendezvous.

    async def watch(self, place: Rendezvous) -> None:
        """Ends the run in time, or when another one has begun; until cancelled."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self.notice)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._guard(place))
                tasks.create_task(self._keep_time(place))
                tasks.create_task(self._drains.run())
        except Exception:  # unguarded, two runs could write the same checkpoints
            log.exception("this run cannot be guarded any more")
            await place.abandon("this run is not guarded against others of its job any more, see the line before")

    def notice(self) -> None:
        """SIGUSR1 (`sbatch --signal=USR1@300`): the end is near, whatever Slurm's time limit says."""
        self._pace = replace(self._pace, noticed_s=self._clock.monotonic_s())

    async def vacate(self, place: Rendezvous, patience_s: float) -> None:
        """For a signal that ends the run: when all ranks have ended in time, the next run needs not wait for them."""
        self._signalled = True
        await place.leave("the run was ended by a signal")
        deadline_s = self._clock.monotonic_s() + patience_s
        while not place.is_vacant():
            if self._clock.monotonic_s() > deadline_s:
                return
            await asyncio.sleep(0.05)
        await self._say_stopped(self._turn.given_up)

    async def closed(self, nodes: Sequence[str]) -> None:
        """Nothing of the job lives on this node any more. nodes: those of its newest attempt."""
        if {self._slurm_names.get(node) for node in nodes} <= {self._task.node}:
            await self._say_stopped(self._turn.given_up)

    async def _guard(self, place: Rendezvous) -> None:
        heard_s = self._clock.monotonic_s()
        while True:
            await asyncio.sleep(GUARD_S)
            asked_s = self._clock.monotonic_s()
            try:
                async with asyncio.timeout(self.timing.lease_s):
                    has_turn = await asyncio.to_thread(self._turns.has, self._turn)
                    if self._earlier and not self._quiet:
                        read = await asyncio.to_thread(self._turns.read, self._earlier.number)
                        self._quiet = read is not None and read.stopped
            except (OSError, ValueError, TimeoutError) as error:
                if self._clock.monotonic_s() - heard_s > self.timing.lease_s:
                    return await place.abandon(
                        f"{self._turns.folder} cannot be read for {self.timing.lease_s:g} s ({error or 'no answer'}): "
                        "another run of this job may have begun"
                    )
                continue
            heard_s = asked_s
            if not has_turn:
                return await place.abandon("another run of this job has begun: this one ends")

    async def _keep_time(self, place: Rendezvous) -> None:
        asked_s: float | None = None
        while True:
            now_s = self._clock.monotonic_s()
            if asked_s is None or now_s - asked_s >= ASK_S:
                asked_s = now_s
                await self._ask_for_the_end()
                now_s = self._clock.monotonic_s()
            left_s = math.inf if self._end_unix_s is None else self._end_unix_s - self._clock.unix_ns() / 1e9
            if reason := stop_reason(self._pace, now_s, now_s + left_s, grace_s=VACATE_GRACE_S):
                self._out_of_time = True
                return await place.leave(f"stops here: {reason}")
            await asyncio.sleep(TICK_S)

    async def _ask_for_the_end(self) -> None:
        try:
            found = await self._slurm.jobs([self._task.job_id])
        except SwitchgearError as error:
            log.info("Slurm does not say when the job ends: %s", error.message)
            return
        if found:
            self._end_unix_s = found[0].end_s

    def _committed(self, checkpoint: m.Checkpoint, now_s: float) -> None:
        key = (checkpoint.path, checkpoint.commit_ns)
        if checkpoint.state is m.CheckpointState.CORRUPT or key in self._commits:
            return
        if len(self._commits) >= 1000:  # of one attempt after the other; recovery itself knows fewer
            self._commits.clear()
        self._commits.add(key)
        self._pace = self._pace.committed(now_s)

    async def _say_stopped(self, given_up: tuple[str, ...]) -> None:
        """Spares the next run a wait; without it that run is as safe."""
        if not self._quiet and self._clock.monotonic_s() < self._quiet_s:
            return  # what the run before us has started may still live, and the next run asks for us alone
        try:
            await self._save(stopped=True, given_up=given_up)
        except OSError as error:
            tell(
                f"switchgear: cannot write {self._turns.folder} ({error.strerror}): the next run of this job waits for leases"
            )

    async def _save(self, **changes: object) -> None:
        async with self._saves:
            turn = replace(self._turn, **changes)  # type: ignore[arg-type]  # fields of a Turn, from the callers above
            await asyncio.to_thread(self._turns.write, turn)
            self._turn = turn


async def _require_ended(slurm: Slurm, earlier: Turn, folder: Path) -> None:
    try:
        found = await slurm.jobs([earlier.job_id])
    except SwitchgearError:
        return  # not known; it is fenced off all the same
    if any(job.id == earlier.job_id and job.state == JobState.RUNNING for job in found):
        raise FailedPrecondition(
            f"Slurm job {earlier.job_id} writes to {folder.parent} and runs still; end it (`scancel {earlier.job_id}`) or give this run "
            "another --checkpoint-dir",
            Reason.JOB_ALREADY_RUNNING,
            job=str(earlier.job_id),
        )
