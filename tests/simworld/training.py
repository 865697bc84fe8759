"""The user's program: gangs of ranks that step together, keep checkpoints in a shared folder and fail as real ones do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from simworld.kernel import Kernel

from switchgear.recovery import model as m

STEP_S = 0.5
CHECKPOINT_STEPS = 10
CHECKPOINTS_KEPT = 4
RENDEZVOUS_TIMEOUT_S = 60.0
SPAWN_S = (0.05, 0.3)
LOAD_S = (0.2, 1.0)
PEER_LOST = "RuntimeError: [gloo/transport/tcp/pair.cc] Connection closed by peer"


@dataclass(slots=True)
class File:
    """A checkpoint in the folder. damaged_s: when it went bad."""

    path: str
    step: int
    digest: str
    commit_s: float
    commit_ns: int
    damaged_s: float | None = None
    #: Nobody can tell, but whoever loads it crashes.
    poisoned: bool = False


class Folder:
    """The checkpoint directory that all nodes share."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.quarantined: list[str] = []

    def newest(self, known: tuple[m.Checkpoint, ...] = ()) -> list[File]:
        """Newest first: by step where all steps are known, by time otherwise, as the launcher does it."""
        steps = {c.path: c.step for c in known if c.step is not None}
        by_step = all(path in steps for path in self.files)
        return sorted(
            self.files.values(), key=lambda f: (steps[f.path] if by_step else 0, f.commit_ns, f.path), reverse=True
        )

    def verify(
        self, known: tuple[m.Checkpoint, ...], skip: tuple[str, ...] = ()
    ) -> tuple[tuple[m.Checkpoint, ...], tuple[str, ...]]:
        """Checkpoints from the newest to the first good one; what is damaged goes into quarantine."""
        catalog = {c.path: c for c in known if c.step is not None}
        checked: list[m.Checkpoint] = []
        moved: list[str] = []
        for file in self.newest(known):
            entry = catalog.get(file.path)
            good = file.damaged_s is None
            state = m.CheckpointState.VERIFIED if good else m.CheckpointState.CORRUPT
            replaced = good and entry is not None and entry.digest not in {"", file.digest}
            step = entry.step if entry and not replaced else None
            checked.append(
                m.Checkpoint(
                    file.path, state, step, digest=file.digest, commit_ns=file.commit_ns, damage="" if good else "CRC"
                )
            )
            if good and file.digest not in skip:
                break
            if good:
                continue
            del self.files[file.path]
            moved.append(f"quarantine/{file.path}")
        self.quarantined += moved
        return tuple(checked), tuple(moved)


@dataclass(eq=False, slots=True)
class SimRank:
    """A process. It belongs to a launcher, which hears of its end through `on_exit`."""

    rank: int
    node: str
    pid: int
    generation: int
    on_exit: Callable[[SimRank, m.Exit], None]
    started_ns: int = 0
    alive: bool = False
    by_us: bool = False
    step: int | None = None
    step_time_ns: int = 0
    first_step_ns: int = 0
    first_new_step_ns: int = 0
    exit: m.Exit | None = None
    #: "hung", "stopped" or "blocked" in a step; empty while it is well. since_s: since when.
    stuck: str = ""
    since_s: float = 0.0
    #: Killed while blocked: it will not run another instruction of its own.
    doomed: bool = False


@dataclass(slots=True)
class Gang:
    """All ranks of one generation."""

    generation: int
    base: int = 0
    ready: dict[int, SimRank] = field(default_factory=dict)
    count: int = 0
    over: bool = False
    #: Ranks that it needs.
    world_size: int = 0


class Program:
    """What the job computes. raises_at: step -> (rank, exception text), for ever or until it is taken out."""

    def __init__(self, kernel: Kernel, world_size: int, steps_total: int) -> None:
        self.kernel, self.world_size, self.steps_total = kernel, world_size, steps_total
        self.folder = Folder()
        self.live: list[SimRank] = []
        self.gangs: dict[int, Gang] = {}
        self.raises_at: dict[int, tuple[int, str]] = {}
        self.steps_made = 0
        #: Newest step by generation that made one, for the oracle of progress.
        self.reached: dict[int, int] = {}
        self.is_reachable: Callable[[str], bool] = lambda _: True
        self.on_spawn: Callable[[SimRank], None] = lambda _: None
        self.on_step: Callable[[Gang], None] = lambda _: None
        #: Before the world takes notice of a step: for the promise that no older generation makes one.
        self.on_any_step: Callable[[Gang], None] = lambda _: None
        self.on_commit: Callable[[SimRank, File, m.CheckpointState], None] = lambda *_: None
        self.on_load: Callable[[SimRank, str, int], None] = lambda *_: None

    def spawned(self, rank: SimRank, resume_path: str, high_water_step: int, world_size: int) -> None:
        rank.alive, rank.started_ns = True, self.kernel.now_ns
        self.live.append(rank)
        self.gangs.setdefault(rank.generation, Gang(rank.generation, world_size=world_size))
        self.on_spawn(rank)
        self.kernel.after(self.kernel.between(*LOAD_S), lambda: self._load(rank, resume_path, high_water_step))

    def _load(self, rank: SimRank, path: str, high_water_step: int) -> None:
        if not rank.alive:
            return
        gang = self.gangs[rank.generation]
        if path:
            file = self.folder.files.get(path)
            if file is None or file.damaged_s is not None:
                self.end(rank, 1, "RuntimeError: PytorchStreamReader failed reading zip archive")
                return
            if file.poisoned:
                self.end(rank, -11)
                return
            gang.base = file.step
            self.on_load(rank, path, file.step)
        gang.ready[rank.rank] = rank
        if len(gang.ready) == gang.world_size:
            self.kernel.after(STEP_S, lambda: self._step(gang, high_water_step))
        else:
            self.kernel.after(RENDEZVOUS_TIMEOUT_S, lambda: self._rendezvous_over(gang, rank))

    def _rendezvous_over(self, gang: Gang, rank: SimRank) -> None:
        if rank.alive and len(gang.ready) < gang.world_size:
            self.end(rank, 1, "DistNetworkError: timed out waiting for all ranks")

    def _step(self, gang: Gang, high_water_step: int) -> None:
        if gang.over:
            return
        if any(rank.stuck or not self.is_reachable(rank.node) for rank in gang.ready.values()):
            self.kernel.after(STEP_S, partial(self._step, gang, high_water_step))  # the collective waits
            return
        step = gang.base + gang.count + 1
        if step in self.raises_at:
            number, text = self.raises_at[step]
            self.end(gang.ready[number % gang.world_size], 1, text)
            return
        self.on_any_step(gang)
        gang.count += 1
        self.steps_made += 1
        self.reached[gang.generation] = step
        for rank in gang.ready.values():
            rank.step, rank.step_time_ns = step, self.kernel.now_ns
            rank.first_step_ns = rank.first_step_ns or self.kernel.now_ns
            if step > high_water_step:
                rank.first_new_step_ns = rank.first_new_step_ns or self.kernel.now_ns
        self.on_step(gang)
        if step % CHECKPOINT_STEPS == 0:
            self._commit(gang.ready[0], step)
        if step >= self.steps_total:
            gang.over = True
            for rank in gang.ready.values():
                self.kernel.after(self.kernel.between(0.0, 0.3), partial(self.end, rank, 0))
        else:
            self.kernel.after(STEP_S, lambda: self._step(gang, high_water_step))

    def _commit(self, rank: SimRank, step: int) -> None:
        path = f"step-{step}.pt"
        digest = f"{rank.generation}-{step}"
        file = File(path, step, digest, self.kernel.now_s, self.kernel.now_ns)
        self.folder.files[path] = file
        self.on_commit(rank, file, m.CheckpointState.COMMITTED)
        for old in sorted(self.folder.files.values(), key=lambda f: f.commit_ns)[:-CHECKPOINTS_KEPT]:
            del self.folder.files[old.path]
            self.on_commit(rank, old, m.CheckpointState.EXPIRED)

    def end(self, rank: SimRank, code: int, exception: str = "") -> None:
        """The process ends; peers in a collective notice it or hang. One that is blocked in the kernel ends for itself alone."""
        if not rank.alive:
            return
        if rank.stuck == "blocked":
            rank.doomed = True
            self.gangs[rank.generation].over = True
            return
        rank.alive = False
        self.live.remove(rank)
        rank.exit = m.Exit(
            rank.rank, rank.node, rank.pid, self.kernel.now_ns, code, rank.by_us, exception, "", rank.step
        )
        gang = self.gangs[rank.generation]
        if gang.ready and code != 0:
            gang.over = True
            for peer in gang.ready.values():
                if peer.alive and peer.node != rank.node and self.kernel.rng and self.kernel.rng.random() < 0.6:
                    self.kernel.after(self.kernel.between(0.005, 0.5), partial(self.end, peer, 1, PEER_LOST))
        rank.on_exit(rank, rank.exit)

    def get_stuck(self, rank: SimRank, how: str) -> None:
        rank.stuck, rank.since_s = how, self.kernel.now_s

    def free(self, rank: SimRank) -> None:
        """The kernel lets go of it: a kill that waited takes effect."""
        rank.stuck = ""
        if rank.doomed:
            self.end(rank, -9)

    def poison(self, file: File) -> None:
        self.folder.files[file.path] = replace(file, poisoned=True)

    def damage(self, file: File) -> None:
        self.folder.files[file.path] = replace(file, damaged_s=self.kernel.now_s)
