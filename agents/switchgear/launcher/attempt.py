"""One attempt on this node: its ranks, from the fork to the last descendant's end."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field

from switchgear.launcher import proc
from switchgear.launcher.logs import Echo, LogFolder
from switchgear.launcher.ports import ReservedPort
from switchgear.launcher.progress import Commit, Load, RankProgress
from switchgear.launcher.state import Process
from switchgear.launcher.zygote import Exited, Started
from switchgear.v1alpha import launcher_service_pb2 as pb

_NOTE_LENGTH_MAX = 300


@dataclass(slots=True)
class LocalRank:
    """One rank of the attempt. started: None until the zygote says so; exited: None while it lives."""

    rank: int
    local_rank: int
    progress: RankProgress
    echoes: Sequence[Echo] = ()
    started: pb.RankStarted | None = None
    process: Process | None = None
    exited: pb.RankExited | None = None


@dataclass(slots=True)
class Attempt:
    """A started attempt. port: held for its rendezvous until it has ended; stopping: we are ending it; gone: nothing of it lives."""

    generation: int
    ranks: dict[int, LocalRank]
    logs: LogFolder
    port: ReservedPort | None = None
    stopping: bool = False
    gone: bool = False
    _reported: tuple[tuple[int, int], ...] = ()
    _oom_kills: int = field(default_factory=proc.oom_kills)

    def started(self, event: Started) -> pb.RankStarted:
        """Notes that a rank runs."""
        rank = self.ranks[event.rank]
        rank.started = pb.RankStarted(
            rank=rank.rank, local_rank=rank.local_rank, pid=event.pid, time_unix_ns=event.time_unix_ns
        )
        ticks = proc.start_ticks(event.pid)
        rank.process = None if ticks is None else Process(event.pid, ticks)
        return rank.started

    def exited(self, event: Exited, note: str = "") -> pb.RankExited:
        """Notes that a rank has ended; call `poll` before, so that its last step counts. note: why, when nobody has seen its end."""
        rank = self.ranks[event.rank]
        tail = self.logs.stderr_tail(self.generation, rank.rank)
        exception = rank.progress.log.exception or self.logs.recorded_error(self.generation, rank.rank)
        first, *_ = note.splitlines() or [""]
        rank.exited = pb.RankExited(
            rank=rank.rank,
            local_rank=rank.local_rank,
            pid=event.pid,
            time_unix_ns=event.time_unix_ns,
            exit_code=event.code,
            stopped_by_us=event.signalled,
            stderr_tail=f"{tail}{note}\n" if note else f"{tail}{self._out_of_memory(event)}",
            exception=f"{exception}{self.logs.full(exception)}" or first[:_NOTE_LENGTH_MAX],
            step=rank.progress.step(),
        )
        for echo in rank.echoes:
            echo.drain()
        return rank.exited

    def _out_of_memory(self, event: Exited) -> str:
        if event.code != -signal.SIGKILL or event.signalled or proc.oom_kills() == self._oom_kills:
            return ""
        return "switchgear: meanwhile the kernel has killed a process of this machine for want of memory\n"

    def poll(self) -> list[tuple[int, Load | Commit]]:
        """Reads what is new from every rank's step log and logs; returns what they did with checkpoints."""
        found: list[tuple[int, Load | Commit]] = []
        for rank in self.ranks.values():
            found.extend((rank.rank, item) for item in rank.progress.poll())
            if rank.exited is None:
                for echo in rank.echoes:
                    echo.poll()
        return found

    def progress(self) -> pb.Progress | None:
        """Where all ranks stand; None when no rank has made a step or written a checkpoint since the last call."""
        counts = tuple((rank.progress.count, rank.progress.log.checkpoint_ns) for rank in self.ranks.values())
        if counts == self._reported or not any(count for count, _ in counts):
            return None
        self._reported = counts
        return pb.Progress(ranks=[rank.progress.to_proto(rank.rank) for rank in self.ranks.values()])

    def step_at(self, modified_ns: int) -> int | None:
        """Newest step that the first local rank had completed when a file was last written; None when that cannot be told."""
        return next(iter(self.ranks.values())).progress.step_at(modified_ns)

    def exits(self) -> list[pb.RankExited]:
        return [rank.exited for rank in self.ranks.values() if rank.exited is not None]

    def alive(self) -> list[pb.RankStarted]:
        return [rank.started for rank in self.ranks.values() if rank.started is not None and rank.exited is None]

    def lost(self, unix_ns: int) -> list[Exited]:
        """The ends of all ranks that still count as alive, when nobody is left who could have reaped them."""
        code = -signal.SIGKILL
        return [Exited(rank.rank, rank.pid, code, signalled=False, time_unix_ns=unix_ns) for rank in self.alive()]

    def processes(self) -> tuple[Process, ...]:
        return tuple(rank.process for rank in self.ranks.values() if rank.process is not None)

    def live_pids(self) -> list[int]:
        return [rank.pid for rank in self.alive()]

    def close(self) -> None:
        """Lets go of the maps and the port."""
        for rank in self.ranks.values():
            rank.progress.log.close()
        if self.port is not None:
            self.port.close()
