"""Gangs: how long placing one takes on 10,000 nodes, and how near together gangs are when nodes come and go.

    python benchmarks/planner_gangs.py [--seeds 0-4]

Prints a table of times (of the processor; median of 5; the first is on a fleet that nothing was asked of before) and one of locality: whole-node gangs arrive
and end on 1,024 nodes in 32 leaves; a quarter of them needs one leaf. Compared with the first free nodes by name.
"""

from __future__ import annotations

import argparse
import heapq
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np

from switchgear.planner.diagnose import Diagnosis
from switchgear.planner.fleet import Fleet
from switchgear.planner.gangs import seats_for
from switchgear.planner.mix import Mix
from switchgear.planner.model import Job, Near, Node, NoRoom, Seat, Snapshot, Task
from switchgear.planner.packing import Packer

LEVELS = ("spine", "leaf", "nvlink")
NODE = Task(gpus=8, cpu_milli=64_000)
REPEATS = 5

Placer = Callable[[Packer, Job], tuple[Seat, ...] | NoRoom]


def cluster(nodes: int, leaf: int = 32) -> tuple[Node, ...]:
    return tuple(
        Node(
            f"gpu-{at}",
            8,
            "H100",
            cpu_milli=128_000,
            memory_mib=2_000_000,
            topology=(f"s{at // (leaf * 16)}", f"l{at // leaf}", f"v{at // 4}"),
        )
        for at in range(nodes)
    )


def busy(nodes: int, seed: int = 0) -> Packer:
    """Seven nodes of ten have something on them."""
    rng = np.random.default_rng(seed)
    fleet = Fleet(cluster(nodes), LEVELS)
    for row in np.flatnonzero(rng.random(nodes) < 0.7):
        count = int(rng.integers(1, 9))
        fleet.take(Seat(fleet.nodes[row].name, tuple(range(count))), Task(gpus=count))
    return Packer(fleet, Mix.of([(NODE, 1.0), (Task(gpus=1), 1.0)]))


def gang_times_ms(nodes: int = 10_000) -> Iterator[tuple[str, float, float]]:
    """(gang, ms the first time on a fleet, ms after that) for gangs of 1,024 GPUs; and for the diagnosis of one that finds no room."""
    gangs = {
        "128 x 8 GPUs": Job("a", NODE, 0.0, tasks=128),
        "128 x 8 GPUs, one spine required, one leaf preferred": Job(
            "b", NODE, 0.0, tasks=128, near=(Near("spine"), Near("leaf", required=False))
        ),
        "256 x 4 GPUs": Job("c", Task(gpus=4), 0.0, tasks=256),
        "1,024 x 1 GPU, several to a node": Job("d", Task(gpus=1), 0.0, tasks=1024, one_a_node=False),
        "128 x 8 GPUs, one leaf required: no room": Job("e", NODE, 0.0, tasks=128, near=(Near("leaf"),)),
    }
    everywhere = np.ones(nodes, bool)
    for name, job in gangs.items():
        packer = busy(nodes)
        times = [_ms(lambda packer=packer, job=job: seats_for(packer, job, everywhere)) for _ in range(REPEATS + 1)]  # type: ignore[misc]
        yield name, times[0], statistics.median(times[1:])
    fleet = busy(nodes).fleet
    snapshot = Snapshot(fleet.nodes, levels=LEVELS)
    job = gangs["128 x 8 GPUs, one leaf required: no room"]
    times = [_ms(lambda: Diagnosis(fleet, snapshot, 0.0).causes(job, everywhere)) for _ in range(REPEATS + 1)]
    yield "... and why", times[0], statistics.median(times[1:])


def ours(packer: Packer, job: Job) -> tuple[Seat, ...] | NoRoom:
    return seats_for(packer, job, np.ones(len(packer.fleet), bool))


def first_free(packer: Packer, job: Job) -> tuple[Seat, ...] | None:
    """The first free nodes by name, in the first leaf that holds the gang where one is required."""
    fleet = packer.fleet
    free = np.flatnonzero(fleet.room(job.task))
    if job.near:
        leaf = fleet.domains[1][free]
        holds = np.flatnonzero(np.bincount(leaf) >= job.tasks)
        free = free[leaf == holds[0]] if len(holds) else free[:0]
    return tuple(fleet.seat(job.task, int(row)) for row in free[: job.tasks]) if len(free) >= job.tasks else None


def locality(place: Callable[[Packer, Job], object], seed: int, jobs: int = 4000) -> tuple[float, float]:
    """(leaves of a gang beyond the least possible, as a share of that; mean wait of gangs that need one leaf, in mean run times)."""
    rng = np.random.default_rng(seed)
    nodes, leaf = 1024, 32
    packer = Packer(Fleet(cluster(nodes, leaf), LEVELS), Mix.of([(NODE, 1.0)]))
    sizes = rng.choice([1, 2, 4, 8, 16, 32], jobs, p=[0.4, 0.15, 0.15, 0.15, 0.1, 0.05])
    run_s, alone = rng.exponential(1.0, jobs), rng.random(jobs) < 0.25
    arrive_s = np.cumsum(rng.exponential(float(sizes.mean()) / (0.9 * nodes), jobs))
    ends: list[tuple[float, int, tuple[Seat, ...]]] = []
    waiting: list[int] = []
    leaves, waits, coming, now_s = [], [], 0, 0.0
    while coming < jobs or ends:
        if coming < jobs and (not ends or arrive_s[coming] <= ends[0][0]):
            now_s = float(arrive_s[coming])
            waiting.append(coming)
            coming += 1
        else:
            now_s, _, seats = heapq.heappop(ends)
            for seat in seats:
                packer.give(seat, NODE)
        still = []
        for at in waiting:
            size = int(sizes[at])
            found = place(packer, Job(str(at), NODE, 0.0, tasks=size, near=(Near("leaf"),) if alone[at] else ()))
            if not isinstance(found, tuple):
                still.append(at)
                continue
            for seat in found:
                packer.take(seat, NODE)
            heapq.heappush(ends, (now_s + float(run_s[at]), at, found))
            used = len({packer.fleet.nodes[packer.fleet.at[seat.node]].topology[1] for seat in found})
            leaves.append(used / -(-size // leaf) - 1)
            if alone[at] and size > 1:
                waits.append(now_s - float(arrive_s[at]))
        waiting = still
    return float(np.mean(leaves)), float(np.mean(waits))


def _ms(call: Callable[[], object]) -> float:
    """Of the processor: whatever else runs on the machine does not count."""
    begun = time.process_time()
    call()
    return (time.process_time() - begun) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-4", help="of the locality table, first-last")
    first, _, last = parser.parse_args().seeds.partition("-")
    print(f"{'10,000 nodes, 1,024 GPUs':56} {'first, ms':>10} {'then, ms':>10}")
    for name, cold, warm in gang_times_ms():
        print(f"{name:56} {cold:10.1f} {warm:10.1f}")
    print(f"\n{'1,024 nodes in 32 leaves, load 0.9':40} {'leaves beyond least, %':>24} {'wait of one-leaf gangs':>24}")
    for name, place in (("switchgear", ours), ("first free by name", first_free)):
        rows = [locality(place, seed) for seed in range(int(first), int(last or first) + 1)]
        beyond, wait = (statistics.mean(column) for column in zip(*rows, strict=True))
        print(f"{name:40} {beyond * 100:24.1f} {wait:24.3f}")


if __name__ == "__main__":
    main()
