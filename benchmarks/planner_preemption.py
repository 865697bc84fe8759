"""Preemption: how long it takes to find whom to stop on a full fleet, and how much work is lost by it.

    python benchmarks/planner_preemption.py [--nodes 1000] [--seeds 0-2]

A queue reclaims room for a gang of tasks of 8 GPUs. Fleets are full of gangs of 1 to 16 whole nodes; of jobs of 1 GPU; or of jobs that have half of two
neighbouring nodes each, so that all share nodes with all. Prints times (of the processor; a first call, which makes its arrays) and GPU-hours lost, work
done again and restarts, beside what is lost when the newest jobs of the lowest priority are stopped until the gang fits and those that were not needed go
on, a usual order.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterator

import numpy as np

from switchgear.planner.claims import Claim
from switchgear.planner.fleet import Fleet
from switchgear.planner.future import without
from switchgear.planner.gangs import find
from switchgear.planner.holdings import Holdings
from switchgear.planner.mix import Mix
from switchgear.planner.model import Job, Near, Node, NoRoom, Queue, Running, Seat, Snapshot, Task
from switchgear.planner.packing import Packer
from switchgear.planner.quota import Ledger
from switchgear.planner.victims import victims

NODE = tuple(range(8))
#: Nodes up to which the other order is tried: it looks at the whole fleet again for each job that it lets go on.
COMPARED_MAX = 2000
GANGS = (
    ("64 x 8 GPUs", Job("urgent", Task(gpus=8), 0.0, tasks=64, queue="owner")),
    ("16 x 8 GPUs, one leaf", Job("urgent", Task(gpus=8), 0.0, tasks=16, queue="owner", near=(Near("leaf"),))),
    ("64 x 8 GPUs, one spine", Job("urgent", Task(gpus=8), 0.0, tasks=64, queue="owner", near=(Near("spine"),))),
)


def full(kind: str, count: int, seed: int) -> Snapshot:
    """Leaves of 16 nodes, spines of 64; the owner is guaranteed half, the borrower a tenth of what it has."""
    random_ = random.Random(seed)
    nodes = tuple(Node(f"n{at}", 8, topology=(f"s{at // 64}", f"l{at // 16}")) for at in range(count))
    running = tuple(_running(name, task, seats, random_) for name, task, seats in _jobs(kind, count, random_))
    queues = Queue("owner", guaranteed=4.0 * count), Queue("borrower", guaranteed=0.8 * count)
    return Snapshot(nodes, (), running, queues, levels=("spine", "leaf"))


def _jobs(kind: str, count: int, random_: random.Random) -> Iterator[tuple[str, Task, tuple[Seat, ...]]]:
    if kind == "gangs":
        at = 0
        while at < count:
            size = min(random_.choice((1, 1, 1, 2, 4, 8, 16)), count - at)
            yield f"j{at}", Task(gpus=8), tuple(Seat(f"n{node}", NODE) for node in range(at, at + size))
            at += size
    elif kind == "one GPU each":
        yield from ((f"j{at}-{gpu}", Task(gpus=1), (Seat(f"n{at}", (gpu,)),)) for at in range(count) for gpu in NODE)
    else:
        for at in range(count):
            yield f"j{at}", Task(gpus=4), (Seat(f"n{at}", NODE[:4]), Seat(f"n{(at + 1) % count}", NODE[4:]))


def _running(name: str, task: Task, seats: tuple[Seat, ...], random_: random.Random) -> Running:
    """For up to a day; most save every half hour or hour, some never did."""
    job = Job(name, task, 0.0, tasks=len(seats), queue="borrower", priority=random_.choice((0, 0, 1)))
    start_s = -random_.uniform(1_000, 86_400)
    interval_s = random_.choice((None, 1800.0, 3600.0))
    saved_s = None if interval_s is None else max(-random_.uniform(0, interval_s), start_s)
    return Running(job, seats, start_s, saved_s, interval_s)


def newest_first(packer: Packer, snapshot: Snapshot, job: Job) -> float | None:
    """GPU-seconds lost."""
    holdings = Holdings(packer.fleet, snapshot.running)
    claim = Claim(Ledger(snapshot), holdings, job, job.gpus, started_by_s=-snapshot.policy.guaranteed_run_s)
    everywhere = np.ones(len(packer.fleet), bool)
    may = np.flatnonzero(claim.perhaps)
    order = may[np.lexsort((-holdings.start_s[may], holdings.priority[may]))]
    gone = np.zeros(len(holdings), bool)

    def fits() -> bool:
        return not isinstance(find(without(packer.fleet, holdings, gone), job, everywhere), NoRoom)

    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        gone[:] = False
        gone[order[:middle]] = True
        low, high = (low, middle) if fits() else (middle + 1, high)
    gone[:] = False
    gone[order[:low]] = True
    if not fits():
        return None
    for at in order[:low][::-1]:
        gone[at] = False
        gone[at] = not fits()
    return float(holdings.losses(0.0, snapshot.policy.checkpoint_wait_s)[0][gone].sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--seeds", default="0-2", metavar="FIRST-LAST")
    arguments = parser.parse_args()
    first, last = map(int, arguments.seeds.split("-"))
    print("| full of | for | ms | jobs stopped | GPU-hours lost | newest first |\n|---|---|---|---|---|---|")
    for kind in ("gangs", "one GPU each", "halves of two nodes"):
        for name, job in GANGS:
            ms, stopped, lost, newest = [], [], [], []
            for seed in range(first, last + 1):
                snapshot = full(kind, arguments.nodes, seed)
                packer = Packer(Fleet(snapshot.nodes, snapshot.levels, snapshot.running), Mix())
                ledger, everywhere = Ledger(snapshot), np.ones(len(snapshot.nodes), bool)
                started_s = time.process_time()
                found = victims(packer, snapshot, ledger, job, 0.0, everywhere)
                ms.append((time.process_time() - started_s) * 1000)
                if found is None:
                    raise SystemExit(f"seed {seed}: no room for {name} on a fleet full of {kind}")
                stopped.append(len(found))
                lost.append(sum(one.lost_gpu_s for one in found) / 3600)
                if arguments.nodes <= COMPARED_MAX:
                    newest.append((newest_first(packer, snapshot, job) or 0.0) / 3600)
            means = (f"{statistics.mean(values):.0f}" if values else "" for values in (ms, stopped, lost, newest))
            print(f"| {kind} | {name} | {' | '.join(means)} |")


if __name__ == "__main__":
    main()
