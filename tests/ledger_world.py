"""A job of four ranks on two nodes whose history is told second by second, and what its ledger says of it."""

from __future__ import annotations

from recovery_world import START_NS, World

from switchgear.recovery import model as m
from switchgear.recovery.goodput import of_job

GPUS = 4


def at(seconds: float) -> int:
    return START_NS + round(seconds * 1e9)


def now(world: World) -> m.Now:
    return m.Now(world.seconds, at(world.seconds))


def told(world: World) -> dict[str, float]:
    """Seconds of all GPUs in each bucket that is not empty, up to now. All of them together are the wall clock to the nanosecond."""
    found = of_job(world.state, now(world))
    assert sum(found.buckets.values()) == GPUS * ((world.state.end_ns or at(world.seconds)) - START_NS)
    return {bucket.value: booked / GPUS / 1e9 for bucket, booked in found.buckets.items() if booked}


def booked(world: World) -> dict[str, float]:
    """Those that nothing can change any more."""
    ledger = world.state.ledger
    assert sum(ledger.gpu_ns.values()) == GPUS * (ledger.settled_ns - ledger.start_ns)
    return {bucket.value: gpu_ns / GPUS / 1e9 for bucket, gpu_ns in ledger.gpu_ns.items()}


def started(world: World, at_s: float) -> None:
    per_node = {"nodes/a": (0, 1), "nodes/b": (2, 3)}
    world.happen(
        *(
            m.RankStarted(node, world.state.generation, rank, 100 + rank, at(at_s))
            for node in world.state.attempt.nodes  # type: ignore[union-attr]
            for rank in per_node.get(node, (2, 3))
        )
    )


def steps(world: World, to: int, at_s: float, *, checkpoint_s: float = 0.0, first_s: float | None = None) -> None:
    """All ranks have completed step `to` at that time; heard of now. first_s: of the first step, when it is not heard of already."""
    attempt = world.state.attempt
    assert attempt is not None
    first_ns = at(at_s if first_s is None else first_s)
    new_ns = at(at_s) if to > attempt.high_water_step else 0
    for node in attempt.nodes:
        reports = (
            m.RankStep(rank, to, at(at_s), first_ns, new_ns, checkpoint_ns=round(checkpoint_s * 1e9))
            for rank, view in attempt.ranks.items()
            if view.node == node
        )
        world.happen(m.Progress(node, world.state.generation, tuple(reports)))


def watched(world: World, activity: m.Activity, process: m.ProcessState) -> None:
    """All ranks have made no step since 24 s."""
    for node, ranks in (("nodes/a", (0, 1)), ("nodes/b", (2, 3))):
        idle_s = world.seconds - 24
        said = (m.RankWatch(r, idle_s, activity, process, idle_s, 91, 0.1, 0.0) for r in ranks)
        world.happen(m.Watched(node, world.state.generation, tuple(said)))


def begun(*, steps_to: int = 100) -> World:
    """Placed at 10 s, ranks at 12 s, first step at 15 s, then ten steps a second up to `steps_to`."""
    world = World()
    world.seconds = 10
    world.place("nodes/a", "nodes/b")
    world.hello("nodes/a")
    world.hello("nodes/b")
    world.checked()
    world.seconds = 12.5
    started(world, 12)
    world.seconds = 15.5
    steps(world, 1, 15)
    for number in range(11, steps_to + 1, 10):
        world.seconds = 15 + number / 10
        steps(world, number, world.seconds - 0.1)
    return world


def killed(world: World, fault_s: float, detected_s: float, stopped_s: float) -> None:
    """A rank ends; all is gone, and the answer of the check is awaited."""
    world.seconds = detected_s
    world.happen(world.exit(1, -9, at_s=fault_s))
    world.happen(*(world.exit(rank, -9, by_us=True) for rank in (0, 2, 3)))
    world.stopped("nodes/a")
    world.seconds = stopped_s
    world.stopped("nodes/b")
