"""Faults by seed: which, where, when, and what comes on top of them while recovery is still at it."""

from __future__ import annotations

import random
from collections.abc import Callable

from simworld.cluster import Cluster
from simworld.kernel import Violation

#: Faults begin within this time of the job's start ...
STORM_S = 60.0
#: ... and have all passed by then; nodes are back and mended.
CALM_S = 130.0
#: A job that is not over by then hangs: rendezvous time-out, leases and three attempts fit in many times.
DEADLINE_S = 900.0


def run(seed: int) -> Cluster:
    """One job through one storm. Raises Violation with the seed and the transcript."""
    rng = random.Random(seed)
    cluster = Cluster(
        rng, nodes=rng.choice((2, 3, 4)), nnodes=rng.choice((1, 2, 2)), max_restarts=rng.choice((0, 1, 3, 3))
    )
    kernel = cluster.kernel
    cluster.control.crash_probability = rng.choice((0.0, 0.0, 0.01, 0.05))
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        kernel.after(rng.uniform(0.0, STORM_S), _fault(cluster, rng))
    kernel.after(CALM_S, lambda: _calm(cluster))
    try:
        kernel.run(DEADLINE_S, done=lambda: cluster.over)
        cluster.promises.kept()
    except Exception as error:
        raise Violation(f"seed {seed}: {error}\n{story(cluster)}") from error
    return cluster


def story(cluster: Cluster) -> str:
    return "\n".join(f"{at_s:8.3f}s  {line}" for at_s, line in cluster.kernel.transcript)


def _calm(cluster: Cluster) -> None:
    cluster.kernel.stormy = False
    cluster.program.raises_at.clear()
    for node in cluster.nodes.values():
        node.start_failures.clear()
        cluster.come_back(node.name)
        cluster.heal(node.name)
        cluster.repair(node.name)
    if cluster.kernel.now_s < DEADLINE_S / 2:
        cluster.kernel.after(20.0, lambda: _calm(cluster))  # a node may be cordoned late


def _fault(cluster: Cluster, rng: random.Random) -> Callable[[], None]:
    kernel, control = cluster.kernel, cluster.control
    node = rng.choice(list(cluster.nodes))
    number = rng.randrange(cluster.program.world_size)
    length_s = rng.choice((rng.uniform(0.1, 3.0), rng.uniform(3.0, 60.0)))
    later_s = rng.choice((0.0, rng.uniform(0.0, 1.0), rng.uniform(0.0, 10.0)))

    def kill_rank() -> None:
        cluster.end_rank(number, rng.choice((-9, -9, -11, -15, 3)))

    def exception() -> None:
        cluster.end_rank(number, 1, rng.choice(("ValueError: bad batch", "RuntimeError: CUDA error")))

    def program_error() -> None:
        cluster.program.raises_at[rng.randrange(1, cluster.program.steps_total)] = (number, "AssertionError: step")

    def kill_launcher() -> None:
        cluster.kill_launcher(node)

    def lose() -> None:
        cluster.lose(node)
        kernel.after(length_s * 2, lambda: cluster.come_back(node))

    def partition() -> None:
        cluster.partition(node)
        kernel.after(length_s, lambda: cluster.heal(node))

    def xid_and_crash() -> None:
        """The signal before, with or after what it did to the rank; the rank may survive it."""
        kernel.after(rng.choice((0.0, later_s)), lambda: cluster.xid(node))
        if rng.random() < 0.6:
            kernel.after(rng.choice((0.0, later_s)), exception)
        kernel.after(rng.uniform(10.0, 60.0), lambda: cluster.repair(node))

    def damage() -> None:
        for newest in range(rng.choice((1, 1, 2))):
            cluster.damage(newest * 0)
        if rng.random() < 0.7:
            kernel.after(later_s, kill_rank)

    def damage_all() -> None:
        for _ in range(5):
            cluster.damage()
        kernel.after(later_s, kill_rank)

    def crash() -> None:
        control.crash(rng.choice((length_s, 1.0)))

    def stall() -> None:
        control.stall(length_s)

    def bad_start() -> None:
        cluster.nodes[node].start_failures += rng.choice(
            (["before"], ["one rank"], ["one rank", "before"], ["for ever"])
        )
        kernel.after(later_s, kill_rank)

    def cancel() -> None:
        cluster.scheduler.cancel()

    kinds = [
        kill_rank, kill_rank, exception, program_error, kill_launcher, kill_launcher, lose, lose, partition, partition,
        xid_and_crash, xid_and_crash, xid_and_crash, damage, damage, damage_all, crash, crash, stall, bad_start,
    ]  # fmt: skip
    return cancel if rng.random() < 0.02 else rng.choice(kinds)
