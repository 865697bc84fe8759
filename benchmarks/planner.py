"""The planner's speed: each bar that we hold it to, in seconds of the processor on one core.

    python benchmarks/planner.py [--quick] [--json FILE]

- placements, every node scored for each, on 1,213 nodes until they are full (`planner_placement.py` does it with the lists of the FGD experiment);
- a gang of 1,024 GPUs on 10,000 nodes of which seven of ten are in use, first on a fleet and then;
- whom to stop for a gang of 512 GPUs on 1,000 full nodes;
- a whole cycle over 10,000 pending jobs: on a full and on an empty fleet, with jobs of few kinds and with each of a kind of its own;

Cycles are from the snapshot to the decisions: the arrays of the fleet, quotas, order, placement, victims, causes. Best of three, one with --quick.
Garbage is collected as in the scheduler's process.
Exit code 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import numpy as np
import planner_gangs
import planner_preemption

from switchgear.core.loop import collect_rarely
from switchgear.planner.fleet import Fleet
from switchgear.planner.mix import Mix
from switchgear.planner.model import Ended, Job, Near, Node, Policy, Queue, Running, Snapshot, Task
from switchgear.planner.packing import Packer
from switchgear.planner.plan import plan
from switchgear.planner.quota import Ledger
from switchgear.planner.victims import victims

PENDING = 10_000
#: Larger fleets are measured as well, without a bar.
NODES_OF_THE_BAR = 1_213
#: Jobs that run times are learned from.
ENDED = 5_000
NOW_S = 100_000.0


@dataclass(frozen=True)
class Bar:
    name: str
    measured: float
    bound: float | None
    unit: str
    more_is_better: bool = False

    @property
    def met(self) -> bool:
        if self.bound is None:
            return True
        return self.measured >= self.bound if self.more_is_better else self.measured < self.bound


@dataclass(frozen=True)
class Load:
    """nodes of 8 GPUs, full or empty; kinds: different requests among the jobs that wait."""

    nodes: int
    full: bool
    kinds: int
    priorities: tuple[int, ...] = (0,)

    def __str__(self) -> str:
        state, ranks = "full" if self.full else "empty", ", two priorities" if len(self.priorities) > 1 else ""
        return f"cycle, {PENDING:,} pending of {self.kinds:,} kinds, {self.nodes:,} {state} nodes{ranks}"


LOADS = (
    Load(1_213, full=True, kinds=60),
    Load(1_213, full=False, kinds=60),
    Load(1_213, full=True, kinds=PENDING),
    Load(1_213, full=True, kinds=60, priorities=(0, 0, 0, 5)),
    Load(10_000, full=True, kinds=60),
)


def snapshot(load: Load, seed: int = 1) -> Snapshot:
    """Half of the jobs without a time limit, one in three a gang, ten queues with guarantees and limits, fifty users."""
    random_ = random.Random(seed)
    nodes = tuple(
        Node(
            f"gpu-{at}",
            8,
            "H100" if at % 4 else "A100",
            cpu_milli=128_000,
            memory_mib=1 << 20,
            topology=(f"s{at // 256}", f"l{at // 32}"),
        )
        for at in range(load.nodes)
    )
    queues = tuple(Queue(f"q{at}", guaranteed=load.nodes * 0.4, limit=load.nodes * 4.0) for at in range(10))
    empty = Snapshot(nodes, queues=queues, levels=("spine", "leaf"), policy=Policy(starving_s=24 * 3600.0))
    running: tuple[Running, ...] = ()
    if load.full:
        first = tuple(_jobs("first", load.nodes * 6, _tasks(60, random_), (0,), 0.0, random_))
        started = plan(Snapshot(nodes, first, levels=empty.levels), 0.0).starts
        running = tuple(Running(one.job, one.seats, -random_.uniform(0, 1e5), None, 1800.0) for one in started)
    waiting = tuple(_jobs("job", PENDING, _tasks(load.kinds, random_), load.priorities, NOW_S, random_))
    ended = tuple(
        Ended(one.user, one.key, one.queue, one.gpus, random_.lognormvariate(7, 2), NOW_S - random_.uniform(0, 1e6))
        for one in _jobs("ended", ENDED, _tasks(60, random_), (0,), 0.0, random_)
    )
    return Snapshot(nodes, waiting, running, queues, levels=empty.levels, policy=empty.policy, ended=ended)


def _tasks(kinds: int, random_: random.Random) -> list[Task]:
    found: list[Task] = []
    for _ in range(kinds):
        gpus = random_.choice((1, 1, 1, 2, 4, 8))
        cpu_milli, memory_mib = random_.randrange(1_000, 15_000) * gpus, random_.randrange(4_000, 100_000) * gpus
        share = random_.random() < 0.3
        milli = random_.randrange(50, 950)
        found.append(
            Task(gpu_milli=milli, cpu_milli=cpu_milli // gpus, memory_mib=memory_mib // gpus)
            if share
            else Task(gpus=gpus, cpu_milli=cpu_milli, memory_mib=memory_mib)
        )
    return found


def _jobs(  # noqa: PLR0917 - one world, many knobs
    names: str, count: int, tasks: list[Task], priorities: tuple[int, ...], now_s: float, random_: random.Random
) -> Iterator[Job]:
    for at in range(count):
        size = random_.choice((1, 1, 1, 1, 2, 4))
        near = (Near("leaf", random_.random() < 0.5),) if size > 1 and random_.random() < 0.5 else ()
        yield Job(
            f"{names}-{at}",
            tasks[at % len(tasks)],
            now_s - random_.uniform(0, 2e5),
            tasks=size,
            queue=f"q{random_.randrange(10)}",
            user=f"u{random_.randrange(50)}",
            priority=random_.choice(priorities),
            near=near,
            time_limit_s=random_.choice((None, 7200.0, 86_400.0)),
        )


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Of the processor, the least of several."""
    least = float("inf")
    for _ in range(repeats):
        begin_s = time.process_time()
        run()
        least = min(least, time.process_time() - begin_s)
    return least


def placements_per_s(nodes: int = 1_213) -> float:
    """Of single tasks of 60 kinds, no two that follow each other alike, until ten in a row fit nowhere."""
    tasks = _tasks(60, random.Random(2))
    fleet = Fleet(snapshot(Load(nodes, full=False, kinds=1)).nodes)
    packer = Packer(fleet, Mix.of((task, 1.0) for task in tasks))
    made = missed = 0
    begin_s = time.process_time()
    while missed < 10:
        task = tasks[(made + missed) % len(tasks)]
        row = packer.best(task)
        if row < 0:
            missed += 1
        else:
            packer.take(packer.seat(task, row), task)
            made, missed = made + 1, 0
    return made / (time.process_time() - begin_s)


def reclaim_s(kind: str, nodes: int = 1_000) -> float:
    """To find whom to stop for a queue's gang of 64 x 8 GPUs."""
    world = planner_preemption.full(kind, nodes, 0)
    packer, ledger = Packer(Fleet(world.nodes, world.levels, world.running), Mix()), Ledger(world)
    gang = dict(planner_preemption.GANGS)["64 x 8 GPUs"]
    return seconds(lambda: victims(packer, world, ledger, gang, 0.0, np.ones(nodes, bool)), 1)


def bars(repeats: int) -> Iterator[Bar]:
    yield Bar("placements on 1,213 nodes", placements_per_s(), 3_000, "a second", more_is_better=True)
    for name, first_ms, then_ms in planner_gangs.gang_times_ms():
        yield Bar(f"gang of 1,024 GPUs on 10,000 nodes, {name}: first", first_ms, 100, "ms")
        yield Bar(f"gang of 1,024 GPUs on 10,000 nodes, {name}: then", then_ms, 100, "ms")
    for kind in ("gangs", "one GPU each", "halves of two nodes"):
        yield Bar(f"reclaim for 512 GPUs on 1,000 nodes full of {kind}", reclaim_s(kind), 1, "s")
    for load in LOADS:
        bound = 2 if load.nodes <= NODES_OF_THE_BAR else None
        yield Bar(str(load), seconds(partial(plan, snapshot(load), NOW_S), repeats), bound, "s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="each cycle once")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    arguments = parser.parse_args()
    collect_rarely()
    found: list[Bar] = []
    print("| | measured | bar |\n|---|---|---|")
    for bar in bars(1 if arguments.quick else 3):
        found.append(bar)
        sign = "≥" if bar.more_is_better else "<"
        missed = "" if bar.met else " MISSED"
        asked = "" if bar.bound is None else f"{sign} {bar.bound:,g} {bar.unit}{missed}"
        print(f"| {bar.name} | {bar.measured:,.3g} {bar.unit} | {asked} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([{**asdict(bar), "met": bar.met} for bar in found], indent=1) + "\n")
    return 0 if all(bar.met for bar in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
