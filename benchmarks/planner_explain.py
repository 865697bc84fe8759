"""Explanations: how often the cause named first is the right one, whether each proposed change starts the job, and how long that takes.

    python benchmarks/planner_explain.py [--seeds 0-29]

Snapshots with a known cause are those of `tests/planner_causes.py`, 16 a seed. Then 1,000 and 10,000 nodes, with as many waiting jobs. Times are of the processor.
Exit code 1 when fewer than 95 % of the causes are right, or a change does not start the job.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from planner_causes import CASES, NAME, NOW_S, case

from switchgear.planner.changes import apply, parse
from switchgear.planner.defrag import defragment
from switchgear.planner.explain import explain
from switchgear.planner.model import Job, Node, Running, Seat, Snapshot, Task
from switchgear.planner.plan import plan

TASKS = {gpus: Task(gpus=gpus, cpu_milli=4000 * gpus) for gpus in (1, 2, 4, 8)}


def of_known_cause(seeds: range) -> bool:
    """Whether the bars are met."""
    times: list[float] = []
    right = changes = started = without = 0
    for cause in CASES:
        named = 0
        for seed in seeds:
            snapshot = case(cause, seed)
            begin = time.process_time()
            found = explain(snapshot, NAME, NOW_S)
            times.append(time.process_time() - begin)
            named += found.causes[0].cause is cause
            without += not found.changes
            for change in found.changes:
                after = plan(apply(snapshot, parse([str(change)])), NOW_S)
                changes += 1
                started += any(start.job.name == NAME for start in after.starts)
        right += named
        print(f"{cause:13} {named} of {len(seeds)}")
    count = len(CASES) * len(seeds)
    print(f"first cause right: {right} of {count} ({100 * right / count:.1f} %)")
    print(f"changes that start the job: {started} of {changes}; snapshots without one: {without}")
    print(f"ms an explanation: median {1000 * statistics.median(times):.0f}, most {1000 * max(times):.0f}")
    return right >= 0.95 * count and started == changes


def large(nodes: int, pending: int, sizes: tuple[int, ...]) -> tuple[Snapshot, float]:
    """Nine of ten GPUs are used, in pieces; all of one priority, so that nobody has to leave. sizes: GPUs of a task that waits."""
    random_ = random.Random(0)
    now_s = 1e6
    fleet = tuple(
        Node(f"nodes/n{at}", 8, "H100", cpu_milli=128_000, topology=(f"s{at // 256}", f"l{at // 32}"))
        for at in range(nodes)
    )
    running: list[Running] = []
    for node in fleet:
        free = list(range(8))
        while free and random_.random() < 0.93:
            gpus = random_.choice([size for size in TASKS if size <= len(free)])
            job = Job(f"jobs/r{len(running)}", TASKS[gpus], 0.0)
            start_s, saved_s = now_s - random_.uniform(700, 90_000), now_s - random_.uniform(0, 600)
            running.append(Running(job, (Seat(node.name, tuple(free[:gpus])),), start_s, saved_s, 600.0))
            free = free[gpus:]
    waits = tuple(
        Job(
            f"jobs/p{at}",
            TASKS[random_.choice(sizes)],
            now_s - random_.uniform(0, 80_000),
            tasks=random_.choice((1, 1, 2, 4, 16)),
        )
        for at in range(pending)
    )
    return Snapshot(fleet, waits, tuple(running), levels=("spine", "leaf")), now_s


def on_a_large_fleet() -> None:
    for nodes in (1000, 10_000):
        snapshot, now_s = large(nodes, nodes, (1, 2, 4, 8))
        begin = time.process_time()
        decisions = plan(snapshot, now_s)
        print(f"{nodes:,} nodes, {len(snapshot.running)} jobs run, {nodes:,} wait: a plan {_since(begin)}")
        for wait in (decisions.waits[0], decisions.waits[-1]):
            begin = time.process_time()
            found = explain(snapshot, wait.job, now_s)
            print(f"{wait.job} ({found.causes[0].cause}, {len(found.changes)} changes): {_since(begin)}")
    snapshot, now_s = large(1000, 20, (8,))
    begin = time.process_time()
    moves = defragment(snapshot, now_s)
    gain, cost = sum(move.gain_gpu_s for move in moves), sum(move.cost_gpu_s for move in moves)
    jobs = len({move.for_job for move in moves})
    print(
        f"1,000 nodes, 20 wait for whole nodes: {len(moves)} moves for {jobs} of them, gain {gain / 3600:.1f}, cost {cost / 3600:.1f} GPU-hours: {_since(begin)}"
    )


def _since(begin: float) -> str:
    return f"{time.process_time() - begin:.2f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-29", metavar="A-B")
    first, _, last = parser.parse_args().seeds.partition("-")
    is_met = of_known_cause(range(int(first), int(last) + 1))
    on_a_large_fleet()
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
