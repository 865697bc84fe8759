"""Faults by seed: which, where, when, and what comes on top of them while recovery is still at it."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from simworld.cluster import Cluster
from simworld.kernel import Violation

from switchgear.recovery import model as m

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
        rng,
        nodes=rng.choice((2, 3, 4)),
        nnodes=rng.choice((1, 2, 2)),
        nnodes_min=rng.choice((0, 0, 1)),
        max_restarts=rng.choice((0, 1, 3, 3)),
    )
    storm = Storm(cluster, rng)
    storm.gather()
    if seed % 10 == 7:  # on top of what is drawn, so that the stories of other seeds stay as they were
        cluster.kernel.after(rng.uniform(0.0, STORM_S), storm.cut_off_all_loudly)
    if seed % 10 == 3:
        for _ in range(rng.choice((1, 2, 4))):
            cluster.kernel.after(rng.uniform(0.0, STORM_S), cluster.scheduler.preempt)
    try:
        cluster.kernel.run(DEADLINE_S, done=lambda: cluster.over)
        cluster.promises.kept()
    except Exception as error:
        story = "\n".join(cluster.kernel.lines())
        raise Violation(f"seed {seed}: {error}\n{story}") from error
    return cluster


class Storm:
    """Some kinds of faults, chosen anew for each seed: few kinds that meet often find more than many that meet seldom."""

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self.cluster, self.rng, self.kernel = cluster, rng, cluster.kernel
        everything: list[Callable[[], None]] = [
            self.kill_rank, self.raise_exception, self.break_program, self.kill_launcher, self.lose, self.cut_off, self.xid,
            self.xid_then_loss, self.damage, self.damage_all, self.kill_recovery, self.hang_store, self.fail_starts,
            self.scheduler_away, self.get_stuck, self.get_stuck, self.lose_loudly, self.cut_off_loudly,
            self.poison,
        ]  # fmt: skip
        self.kinds = rng.sample(everything, rng.choice((1, 2, 3, len(everything))))
        if rng.random() < 0.2:  # what ends connections and leaves ranks waiting has to meet to be dangerous
            self.kinds = [self.lose_loudly, self.cut_off_loudly, self.cut_off_loudly, rng.choice(everything)]
        if rng.random() < 0.03:
            self.kinds.append(cluster.scheduler.cancel)

    def gather(self) -> None:
        self.cluster.control.crash_probability = self.rng.choice((0.0, 0.0, 0.01, 0.05))
        for _ in range(self.rng.choice((1, 1, 2, 3, 5))):
            self._plan()
        self.kernel.after(CALM_S, self._calm)

    def _plan(self) -> None:
        """One fault at some time, or up to three as soon as recovery enters a phase, where a second fault hurts most."""
        if self.rng.random() < 0.5:
            self.kernel.after(self.rng.uniform(0.0, STORM_S), self.rng.choice(self.kinds))
            return
        phase, generation = self.rng.choice(tuple(m.Phase)), self.rng.choice((0, 1, 1, 2))
        for _ in range(self.rng.choice((1, 2, 3))):
            self.cluster.control.on_phase.append((phase, generation, partial(self._soon, self.rng.choice(self.kinds))))

    def _soon(self, fault: Callable[[], None]) -> None:
        if self.kernel.stormy:
            self.kernel.after(self._delay_s(0.1, 2.0), fault)

    def _calm(self) -> None:
        """Faults have passed; people mend what is broken, and again when something is cordoned late."""
        self.kernel.stormy = False
        self.cluster.program.raises_at.clear()
        self.cluster.scheduler.away_until_s = 0.0
        for node in self.cluster.nodes.values():
            node.start_failures.clear()
            self.cluster.free()
            if node.name not in self.cluster.gone_for_good:
                self.cluster.come_back(node.name)
            self.cluster.heal(node.name)
            self.cluster.repair(node.name)
        self.kernel.after(20.0, self._calm)

    # What is drawn for each fault when it happens.

    def _node(self) -> str:
        return self.rng.choice(list(self.cluster.nodes))

    def _length_s(self) -> float:
        return self.rng.choice((self.rng.uniform(0.1, 3.0), self.rng.uniform(3.0, 60.0)))

    def _delay_s(self, soon_s: float = 1.0, late_s: float = 10.0) -> float:
        return self.rng.choice((0.0, self.rng.uniform(0.0, soon_s), self.rng.uniform(0.0, late_s)))

    # The faults.

    def kill_rank(self) -> None:
        self.cluster.end_rank(
            self.rng.randrange(self.cluster.program.world_size), self.rng.choice((-9, -9, -11, -15, 3))
        )

    def raise_exception(self) -> None:
        text = self.rng.choice(("ValueError: bad batch", "RuntimeError: CUDA error"))
        self.cluster.end_rank(self.rng.randrange(self.cluster.program.world_size), 1, text)

    def break_program(self) -> None:
        step = self.rng.randrange(1, self.cluster.program.steps_total)
        self.cluster.break_step(step, self.rng.randrange(self.cluster.program.world_size), "AssertionError: step")

    def kill_launcher(self) -> None:
        self.cluster.kill_launcher(self._node())

    def get_stuck(self) -> None:
        """It may get out of it by itself, before or after somebody has noticed."""
        rank, how = self.rng.randrange(self.cluster.program.world_size), self.rng.choice(("hung", "stopped", "blocked"))
        self.cluster.get_stuck(rank, how)
        if self.rng.random() < 0.5:
            self.kernel.after(self._length_s(), self.cluster.free)

    def lose_loudly(self) -> None:
        self.lose(self._seat(), loud=True)

    def cut_off_loudly(self) -> None:
        self.cut_off(self._seat(), loud=True)

    def cut_off_all_loudly(self) -> None:
        """The control plane, while ranks of one node may wait for those of another that go on in a moment."""
        if self.rng.random() < 0.7:
            self.cluster.get_stuck(self.rng.randrange(self.cluster.program.world_size), "hung")
            self.kernel.after(self.rng.uniform(1.0, 6.0), self.cluster.free)
        cut_s, length_s = self.rng.uniform(0.5, 2.5), self._length_s()
        for seat in self.cluster.scheduler.placement:
            late_s = self.rng.choice((0.0, self.rng.uniform(0.0, 1.5)))
            self.kernel.after(cut_s + late_s, partial(self.cluster.cut_off, seat.node, ranks_too=False, loud=True))
            self.kernel.after(cut_s + late_s + length_s, partial(self.cluster.heal, seat.node))

    def _seat(self) -> str:
        """A node of the job, while it has one."""
        placement = self.cluster.scheduler.placement
        return self.rng.choice(placement).node if placement else self._node()

    def lose(self, name: str = "", *, loud: bool = False) -> None:
        node = name or self._node()
        self.cluster.lose(node, loud=loud)
        spare = sum(n.alive for n in self.cluster.nodes.values()) > self.cluster.scheduler.nnodes
        if spare and self.rng.random() < 0.4:
            self.cluster.gone_for_good.add(node)
        else:
            self.kernel.after(self._length_s() * 2, partial(self.cluster.come_back, node))

    def cut_off(self, name: str = "", *, loud: bool = False) -> None:
        node = name or self._node()
        self.cluster.cut_off(node, ranks_too=self.rng.random() < 0.6, loud=loud)
        self.kernel.after(self._length_s(), partial(self.cluster.heal, node))

    def xid(self) -> None:
        """The signal before, with or after what it did to a rank; the rank may survive it."""
        node = self._node()
        self.kernel.after(self._delay_s(), partial(self.cluster.xid, node))
        if self.rng.random() < 0.6:
            self.kernel.after(self._delay_s(), self.raise_exception)
        self.kernel.after(self.rng.uniform(10.0, 60.0), partial(self.cluster.repair, node))

    def xid_then_loss(self) -> None:
        node = self._node()
        self.cluster.xid(node)
        self.kernel.after(self._delay_s(), partial(self.lose, node))

    def damage(self) -> None:
        for _ in range(self.rng.choice((1, 1, 2))):
            self.cluster.damage()
        if self.rng.random() < 0.7:
            self.kernel.after(self._delay_s(), self.kill_rank)

    def poison(self) -> None:
        self.cluster.poison()
        self.kernel.after(self._delay_s(), self.kill_rank)

    def damage_all(self) -> None:
        for _ in range(len(self.cluster.program.folder.files)):
            self.cluster.damage()
        self.kernel.after(self._delay_s(), self.kill_rank)

    def kill_recovery(self) -> None:
        self.cluster.control.crash(self._length_s())

    def hang_store(self) -> None:
        self.cluster.control.stall(self._length_s())

    def fail_starts(self) -> None:
        failures = self.rng.choice((["before"], ["one rank"], ["one rank", "before"], ["for ever"]))
        node = self._node()
        for failure in failures:
            self.cluster.fail_start(node, failure)
        self.kernel.after(self._delay_s(), self.kill_rank)

    def scheduler_away(self) -> None:
        self.cluster.scheduler_away(self._length_s())
