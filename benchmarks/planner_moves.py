"""Defragmentation: whether moves that are advised pay for themselves, in virtual time.

    python benchmarks/planner_moves.py [--seeds 0-23]

Small clusters on which jobs of 1 to 32 GPUs arrive and end, as they are and with all advised moves made each ten minutes. A move is made at once, which
loses more than what is advised, since no checkpoint is awaited. Delay: time from submission to end beyond the work, times GPUs.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass

from switchgear.planner.defrag import defragment
from switchgear.planner.model import Decisions, Job, Node, Snapshot, Task
from switchgear.planner.plan import plan
from switchgear.planner.simulate.clock import Arrival, Clock

NODES, JOBS = 24, 260
#: Between two arrivals, which keeps most GPUs in use.
BETWEEN_S = 3.5 * 8000 / (NODES * 8 * 0.85)
EACH_S = 600.0
TASKS = {gpus: Task(gpus=gpus) for gpus in (1, 2, 4, 8)}


@dataclass(frozen=True, slots=True)
class Result:
    wait_s: float
    delay_gpu_h: float
    moves: int
    gain_gpu_h: float
    cost_gpu_h: float


def run(seed: int, *, moving: bool) -> Result:
    random_ = random.Random(seed)
    nodes = tuple(Node(f"n{at}", 8, "H100", topology=(f"l{at // 4}",)) for at in range(NODES))
    arrivals, now_s = [], 0.0
    for at in range(JOBS):
        gpus = random_.choice((1, 1, 2, 4, 8, 8))
        tasks = random_.choice((1, 1, 1, 2, 4)) if gpus == 8 else 1
        seconds = min(random_.lognormvariate(8.2, 1.2), 80_000)
        job = Job(f"j{at}", TASKS[gpus], now_s, tasks=tasks, user=random_.choice("abc"))
        arrivals.append(Arrival(job, seconds, 600.0))
        now_s += random_.expovariate(1) * BETWEEN_S
    moves = 0
    gain = cost = 0.0
    next_s = 0.0

    def planned(snapshot: Snapshot, now_s: float) -> Decisions:
        nonlocal moves, gain, cost, next_s
        if not moving or now_s < next_s or not snapshot.pending:
            return plan(snapshot, now_s)
        next_s = now_s + EACH_S
        advised = defragment(snapshot, now_s)
        moves, gain, cost = (
            moves + len(advised),
            gain + sum(one.gain_gpu_s for one in advised),
            cost + sum(one.cost_gpu_s for one in advised),
        )
        clock.move({one.job: one.seats for one in advised})
        return plan(clock.snapshot(), now_s)

    clock = Clock(Snapshot(nodes, levels=("leaf",)), arrivals, planned)
    clock.run()
    waits, delay = 0.0, 0.0
    for arrival in arrivals:
        outcome = clock.outcomes[arrival.job.name]
        assert outcome.start_s is not None
        assert outcome.end_s is not None
        waits += outcome.start_s - outcome.submit_s
        delay += (outcome.end_s - outcome.submit_s - outcome.seconds) * arrival.job.gpus
    return Result(waits / JOBS, delay / 3600, moves, gain / 3600, cost / 3600)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-23", metavar="A-B")
    first, _, last = parser.parse_args().seeds.partition("-")
    pairs = []
    for seed in range(int(first), int(last) + 1):
        still, moved = pair = run(seed, moving=False), run(seed, moving=True)
        pairs.append(pair)
        print(
            f"seed {seed}: {moved.moves} moves, told gain {moved.gain_gpu_h:.0f} and cost {moved.cost_gpu_h:.1f}, "
            f"delay {still.delay_gpu_h:.0f} -> {moved.delay_gpu_h:.0f} GPU-hours, mean wait {still.wait_s:.0f} -> {moved.wait_s:.0f} s",
            flush=True,
        )
    delays = [sum(pair[at].delay_gpu_h for pair in pairs) for at in (0, 1)]
    waits = [sum(pair[at].wait_s for pair in pairs) / len(pairs) for at in (0, 1)]
    less = sum(moved.delay_gpu_h < still.delay_gpu_h for still, moved in pairs)
    print(
        f"delay {delays[0]:.0f} -> {delays[1]:.0f} GPU-hours, less in {less} of {len(pairs)}; mean wait {waits[0]:.0f} -> {waits[1]:.0f} s"
    )


if __name__ == "__main__":
    main()
