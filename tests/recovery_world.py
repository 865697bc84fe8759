"""A job whose launchers do what they are told, driven event by event."""

from __future__ import annotations

from dataclasses import dataclass, field

from switchgear.recovery import model as m
from switchgear.recovery.machine import step

START_NS = 1_700_000_000_000_000_000


@dataclass
class World:
    """A job on nodes `a` and `b` (two ranks each) whose launchers do what they are told."""

    max_restarts: int = 3
    checkpoint_directory: str = "/checkpoints"
    state: m.JobState = field(init=False)
    effects: list[m.Effect] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        spec = m.Spec(
            nnodes=2, nproc_per_node=2, max_restarts=self.max_restarts, checkpoint_directory=self.checkpoint_directory
        )
        self.state = m.JobState("jobs/j", spec, START_NS)

    def happen(self, *events: m.Event) -> list[m.Effect]:
        new: list[m.Effect] = []
        for event in events:
            now = m.Now(self.seconds, START_NS + int(self.seconds * 1e9))
            self.state, effects = step(self.state, event, now)
            new += effects
        self.effects += new
        return new

    def place(self, *nodes: str, epoch: int = 1, joined: dict[str, int] | None = None) -> list[m.Effect]:
        slots = tuple(m.Slot(node, "127.0.0.1", (joined or {}).get(node, epoch)) for node in nodes)
        return self.happen(m.Placed(epoch, slots))

    def hello(self, node: str, generation: int = 0, epoch: int = 1, who: str = "", **kw: object) -> list[m.Effect]:
        return self.happen(
            m.LauncherHello(node, epoch, who or f"launcher-{node}", generation, reserved_port=5000, **kw)  # type: ignore[arg-type]
        )

    def checked(
        self, node: str = "nodes/a", step: int | None = None, quarantined: tuple[str, ...] = ()
    ) -> list[m.Effect]:
        good = () if step is None else (m.Checkpoint(f"/checkpoints/{step}.pt", m.CheckpointState.VERIFIED, step),)
        bad = tuple(m.Checkpoint(path, m.CheckpointState.CORRUPT, None, damage="truncated") for path in quarantined)
        return self.happen(m.Checked(node, self.state.generation, bad + good, quarantined))

    def progress(self, to: int, *, first: bool = True, new: bool = True) -> list[m.Effect]:
        now = START_NS + int(self.seconds * 1e9)
        attempt = self.state.attempt
        assert attempt is not None
        return self.happen(
            *(
                m.Progress(
                    node,
                    self.state.generation,
                    tuple(
                        m.RankStep(
                            rank, to, now, now if first else 0, now if new else 0, to - (attempt.resume_step or 0)
                        )
                        for rank, view in attempt.ranks.items()
                        if view.node == node
                    ),
                )
                for node in attempt.nodes
            )
        )

    def run_to(self, to: int) -> None:
        self.place("nodes/a", "nodes/b")
        self.hello("nodes/a")
        self.hello("nodes/b")
        self.checked()
        self.seconds += 1
        self.progress(1)
        self.seconds += 1
        self.progress(to)

    def exit(
        self, rank: int, code: int, *, by_us: bool = False, at_s: float | None = None, **kw: object
    ) -> m.RankExited:
        node = "nodes/a" if rank < 2 else "nodes/b"
        time_ns = START_NS + int((self.seconds if at_s is None else at_s) * 1e9)
        return m.RankExited(self.state.generation, m.Exit(rank, node, 100 + rank, time_ns, code, by_us, **kw))  # type: ignore[arg-type]

    def stopped(self, *nodes: str) -> list[m.Effect]:
        return self.happen(*(m.AttemptStopped(node, self.state.generation, 5001, 0) for node in nodes))

    def calls(self) -> list[str]:
        return [call.kind for call in self.state.outbox]

    def last_incident(self) -> m.Incident:
        return [e.incident for e in self.effects if isinstance(e, m.SaveIncident)][-1]


def kinds(effects: list[m.Effect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]
