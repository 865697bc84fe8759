"""A launcher in virtual time: it does what `switchgear.launcher` does, one simulated process and rank at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from simworld.kernel import Kernel
from simworld.network import Link, Stream
from simworld.training import SPAWN_S, STEP_S, File, Gang, Program, SimRank

from switchgear.recovery import model as m

HEARTBEAT_S = 3.0
IMPORT_S = (0.5, 2.0)
KILL_S = (0.01, 1.0)
GONE_S = (0.001, 0.2)
VERIFY_S = (0.02, 1.5)
BACKOFF_S = (0.1, 2.0)
WATCH_S = 0.5
#: Without a step for so long a rank is watched.
SUSPECT_S = 1.0
_PROCESS = {
    "": m.ProcessState.SLEEPING,
    "hung": m.ProcessState.SLEEPING,
    "stopped": m.ProcessState.STOPPED,
    "blocked": m.ProcessState.DISK,
}


@dataclass(frozen=True, slots=True)
class Heartbeat:
    sequence: int


@dataclass(frozen=True, slots=True)
class Grant:
    """The lease that answers a heartbeat."""

    sequence: int
    duration_s: float


@dataclass(eq=False, slots=True)
class LocalAttempt:
    generation: int
    ranks: dict[int, SimRank]
    spawning: set[int]
    stopping: bool = False
    gone: bool = False


@dataclass(eq=False)
class SimNode:
    """A machine. disk: newest generation that a launcher of the job accepted here; processes: ranks that live."""

    name: str
    link: Link = field(default_factory=Link)
    alive: bool = True
    disk_generation: int = 0
    ranks: list[SimRank] = field(default_factory=list)
    launcher: SimLauncher | None = None
    launchers_started: int = 0
    ports_used: int = 0
    #: When the scheduler learns that the agent's connection has ended; None while it stands.
    agent_gone_s: float | None = None
    #: Starts that fail here from now on: "one rank", "before" or "for ever".
    start_failures: list[str] = field(default_factory=list)


class SimLauncher:
    """connect: opens a stream to recovery; None when nobody answers."""

    def __init__(
        self,
        kernel: Kernel,
        node: SimNode,
        epoch: int,
        program: Program,
        connect: Callable[[SimNode, Callable[[object], None]], Stream | None],
    ) -> None:
        self.kernel, self.node, self.epoch, self.program = kernel, node, epoch, program
        self._connect = connect
        node.launchers_started += 1
        self.launcher_id = f"{node.name.split('/')[-1]}{node.launchers_started}"
        self.alive, self.closing = True, False
        for rank in list(node.ranks):  # what an earlier launcher left is killed before anything else
            program.end(rank, -9)
        node.ranks.clear()
        self.generation = node.disk_generation
        self.attempt: LocalAttempt | None = None
        self.port = self._new_port()
        self._outbox: deque[m.Event] = deque()
        self.stream: Stream | None = None
        self._ready = False
        self._wanted: m.Start | None = None
        self._wanted_check: m.Check | None = None
        self._stops_owed: set[int] = set()
        self._checking = False
        self._lease_until_s = -1.0
        self._beats: dict[int, float] = {}
        self._sequence = 0
        self._backoff_s = BACKOFF_S[0]
        kernel.after(kernel.between(*IMPORT_S), self._warm)
        self._dial()

    def _new_port(self) -> int:
        self.node.ports_used += 1
        return 20_000 + self.node.ports_used

    # The wire.

    def _dial(self) -> None:
        if not self.alive:
            return
        stream = self._connect(self.node, self._take)
        if stream is None:
            self._dial_again()
            return
        self.stream = stream
        stream.on_client_end = self._lost
        self._wanted = None
        stream.up.send(self._hello())
        self._beat(stream)
        while self._outbox:
            stream.up.send(self._outbox.popleft())

    def _dial_again(self) -> None:
        self.kernel.after(
            self._backoff_s * (1 if self.kernel.rng is None else self.kernel.rng.uniform(0.5, 1)), self._dial
        )
        self._backoff_s = min(self._backoff_s * 2, BACKOFF_S[1])

    def _lost(self) -> None:
        self.stream = None
        self._dial_again()

    def _beat(self, stream: Stream) -> None:
        if not self.alive or self.stream is not stream:
            return
        self._sequence += 1
        self._beats[self._sequence] = self.kernel.now_s
        stream.up.send(Heartbeat(self._sequence))
        self.kernel.after(HEARTBEAT_S, lambda: self._beat(stream))

    def _report(self, event: m.Event) -> None:
        if not self.alive:
            return
        if self.stream:
            self.stream.up.send(event)
        elif not isinstance(event, m.Progress):
            self._outbox.append(event)

    def _hello(self) -> m.LauncherHello:
        alive: list[tuple[int, int, int]] = []
        exits: list[m.Exit] = []
        if self.attempt and self.attempt.generation == self.generation:
            for rank in self.attempt.ranks.values():
                if rank.exit:
                    exits.append(rank.exit)
                elif rank.alive:
                    alive.append((rank.rank, rank.pid, rank.started_ns))
        return m.LauncherHello(
            self.node.name, self.epoch, self.launcher_id, self.generation, self.port, tuple(alive), tuple(exits)
        )

    def _take(self, command: object) -> None:
        if not self.alive:
            return
        self._backoff_s = BACKOFF_S[0]
        match command:
            case Grant(sequence, duration_s):
                if sequence in self._beats:
                    self._lease_until_s = max(self._lease_until_s, self._beats[sequence] + duration_s)
                    self._beats = {s: at for s, at in self._beats.items() if s > sequence}
                    self.kernel.after(self._lease_until_s - self.kernel.now_s, self._lease_over)
            case m.Finish():
                self.close()
            case m.Start():
                generation = command.attempt.generation
                if generation > self.generation:
                    self._accept(generation)
                    self._wanted = command
                    self._stop()
            case m.Stop():
                if command.generation >= self.generation:
                    self._accept(command.generation)
                    self._wanted = None
                    self._stops_owed.add(command.generation)
                    self._stop()
            case m.Check():
                if command.generation >= self.generation:
                    self._wanted_check = command
        self._advance()

    # What is wanted.

    def _accept(self, generation: int) -> None:
        self.generation = self.node.disk_generation = max(self.generation, generation)

    def _advance(self) -> None:
        if not self.alive or (self.attempt and not self.attempt.gone):
            return
        for generation in sorted(self._stops_owed):
            self._report(m.AttemptStopped(self.node.name, generation, self.port, self.kernel.now_ns))
        self._stops_owed.clear()
        if self._checking or self.closing:
            return
        if self._wanted_check:
            check, self._wanted_check = self._wanted_check, None
            self._checking = True
            self.kernel.after(self.kernel.between(*VERIFY_S), lambda: self._checked(check))
        elif self._wanted and self._may_run() and self._ready:
            start, self._wanted = self._wanted, None
            self._start(start)

    def _may_run(self) -> bool:
        return self.kernel.now_s < self._lease_until_s

    def _warm(self) -> None:
        self._ready = True
        if self._wanted is None:
            self._report(self._hello())
        self._advance()

    def _checked(self, check: m.Check) -> None:
        if not self.alive:
            return
        checkpoints, quarantined = self.program.folder.verify(check.checkpoints, check.skip)
        self._checking = False
        self._report(m.Checked(self.node.name, check.generation, checkpoints, quarantined))
        self._advance()

    def _start(self, start: m.Start) -> None:
        generation = start.attempt.generation
        trouble = self.node.start_failures.pop(0) if self.node.start_failures else ""
        if trouble == "for ever":
            self.node.start_failures.append(trouble)
        if trouble in {"before", "for ever"}:
            permanent = trouble == "for ever"
            message = "the script does not exist" if permanent else "no space left on device"
            self._report(m.StartFailed(self.node.name, generation, message, permanent, self.port))
            return
        if start.attempt.master_port == self.port:
            self.port = self._new_port()
        per_node = start.spec.nproc_per_node
        numbers = range(start.node_rank * per_node, (start.node_rank + 1) * per_node)
        attempt = self.attempt = LocalAttempt(generation, {}, set(numbers))
        for number in numbers:
            pid = 1000 * generation + 100 * self.node.launchers_started + number
            rank = SimRank(number, self.node.name, pid, generation, lambda rank, e: self._exited(attempt, rank, e))
            delay_s = self.kernel.between(*SPAWN_S)
            fails = trouble == "one rank" and number == numbers[0]
            self.kernel.after(delay_s, partial(self._spawn, attempt, start, rank, fails=fails))
        self.kernel.after(WATCH_S, partial(self._watch, attempt, told=False))

    def _spawn(self, attempt: LocalAttempt, start: m.Start, rank: SimRank, *, fails: bool) -> None:
        if not self.alive:
            return
        attempt.spawning.discard(rank.rank)
        if fails:
            message = "fork: Resource temporarily unavailable"
            self._report(
                m.StartFailed(self.node.name, attempt.generation, message, permanent=False, reserved_port=self.port)
            )
            self._stop()
            self._gone_when_over(attempt)
            return
        attempt.ranks[rank.rank] = rank
        self.node.ranks.append(rank)
        self.program.spawned(rank, start.attempt.resume_path, start.attempt.high_water_step, len(start.attempt.ranks))
        self._report(m.RankStarted(self.node.name, attempt.generation, rank.rank, rank.pid, rank.started_ns))
        if attempt.stopping:
            self._kill(rank)

    # Ends.

    def _stop(self) -> None:
        attempt = self.attempt
        if attempt is None or attempt.gone or attempt.stopping:
            return
        attempt.stopping = True
        for rank in attempt.ranks.values():
            self._kill(rank)

    def _kill(self, rank: SimRank) -> None:
        def ends() -> None:
            rank.by_us = True
            self.program.end(rank, -9)

        if rank.alive:
            self.kernel.after(self.kernel.between(*KILL_S), ends)

    def _exited(self, attempt: LocalAttempt, rank: SimRank, rank_exit: m.Exit) -> None:
        if rank in self.node.ranks:
            self.node.ranks.remove(rank)
        if not self.alive:
            return
        self.report_progress(attempt.generation)
        self._report(m.RankExited(attempt.generation, rank_exit))
        if rank_exit.code != 0:
            self._stop()
        self._gone_when_over(attempt)

    def _gone_when_over(self, attempt: LocalAttempt) -> None:
        if not attempt.spawning and not any(rank.alive for rank in attempt.ranks.values()):
            self.kernel.after(self.kernel.between(*GONE_S), lambda: self._gone(attempt))

    def _gone(self, attempt: LocalAttempt) -> None:
        if not self.alive or attempt.gone:
            return
        attempt.gone = True
        self._stops_owed.add(attempt.generation)
        self._advance()
        if self.closing:
            self.die()

    def _lease_over(self) -> None:
        if self.alive and not self._may_run():
            self._stop()

    def close(self) -> None:
        """Stops what runs, then ends: told so by recovery or by SIGTERM of the agent."""
        if not self.alive or self.closing:
            return
        self._wanted = None
        self._stop()
        self.closing = True
        if self.attempt is None or self.attempt.gone:
            self.die()

    def die(self) -> None:
        """The process ends, whatever the reason; ranks that live have its death signal."""
        if not self.alive:
            return
        self.alive = False
        for rank in list(self.node.ranks):
            self.kernel.after(self.kernel.between(0.001, 0.1), partial(self.program.end, rank, -9))
        if self.stream:
            self.stream.on_client_end = lambda: None
            self.stream.close_client()
        self.node.launcher = None

    def vanish(self) -> None:
        """The node is gone; nobody is told."""
        self.alive = False
        self.node.launcher = None
        if self.stream:
            self.stream.on_client_end = lambda: None

    # News of the ranks.

    def report_progress(self, generation: int) -> None:
        attempt = self.attempt
        if attempt is None or attempt.generation != generation or not any(r.step for r in attempt.ranks.values()):
            return
        steps = tuple(
            m.RankStep(r.rank, r.step, r.step_time_ns, r.first_step_ns, r.first_new_step_ns, self._count(r))
            for r in attempt.ranks.values()
        )
        self._report(m.Progress(self.node.name, generation, steps))

    def _count(self, rank: SimRank) -> int:
        gang = self.program.gangs.get(rank.generation)
        return gang.count if gang and rank.step else 0

    def report_load(self, rank: SimRank, path: str, step: int | None) -> None:
        self._report(m.Loaded(self.node.name, rank.generation, rank.rank, path, step, self.kernel.now_ns))

    def report_checkpoint(self, generation: int, file: File, state: m.CheckpointState) -> None:
        checkpoint = m.Checkpoint(file.path, state, file.step, digest=file.digest, commit_ns=file.commit_ns)
        self._report(m.CheckpointSeen(generation, checkpoint))

    def _watch(self, attempt: LocalAttempt, *, told: bool) -> None:
        """Each half second; told: the last report named a rank."""
        if not self.alive or attempt.gone or self.attempt is not attempt:
            return
        watches = tuple(self._watched(rank) for rank in attempt.ranks.values() if rank.alive and self._suspicious(rank))
        if (watches or told) and self.stream:  # old ones are worth nothing
            self._report(m.Watched(self.node.name, attempt.generation, watches))
        self.kernel.after(WATCH_S, partial(self._watch, attempt, told=bool(watches)))

    def _suspicious(self, rank: SimRank) -> bool:
        return rank.stuck in {"stopped", "blocked"} or self._idle_s(rank) > SUSPECT_S

    def _idle_s(self, rank: SimRank) -> float:
        return (self.kernel.now_ns - (rank.step_time_ns or rank.started_ns)) / 1e9

    def _watched(self, rank: SimRank) -> m.RankWatch:
        gang = self.program.gangs.get(rank.generation)
        count = gang.count if gang else 0
        waits = m.Activity.COLLECTIVE if rank.step_time_ns else m.Activity.STARTUP
        stuck = m.Activity.STEP if rank.step_time_ns else m.Activity.STARTUP
        return m.RankWatch(
            rank.rank,
            self._idle_s(rank),
            stuck if rank.stuck else waits,
            _PROCESS[rank.stuck],
            self.kernel.now_s - rank.since_s if rank.stuck else 0.0,
            count,
            STEP_S if count >= 3 else None,
            0.0,
            where="train (train.py:9)" if rank.stuck else "train (train.py:12)",
            stack=f"stack of rank {rank.rank}",
        )

    def follows(self, gang: Gang) -> bool:
        return self.attempt is not None and self.attempt.generation == gang.generation and not self.attempt.gone
