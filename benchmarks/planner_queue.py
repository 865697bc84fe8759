"""The planner's order, backfill, run times and forecasts on a trace, and what they cost.

    python benchmarks/planner_queue.py --jobs jobs.csv --start 2017-10-09 --nodes 64 [--days 14] [--every-hours 2]
    python benchmarks/planner_queue.py --times

The first replays the trace under the planner and asks every two hours when all that wait will start. Prints hours of waiting, coverage and pinball loss of
the run times told at submission beside quantiles by size, and how many starts were inside the forecast intervals: as sampled and as they are told, and the
widening that would have been right. `switchgear simulate queue` compares with other policies. The second prints what parts of a plan cost.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from switchgear.planner.fairshare import shares
from switchgear.planner.forecast import WIDENING, interval_s, sampled_starts
from switchgear.planner.model import Ended, Job, Node, Policy, Running, Seat, Snapshot, Task
from switchgear.planner.order import order
from switchgear.planner.plan import plan
from switchgear.planner.runtimes import RunTimes
from switchgear.planner.simulate.planned import LEVELS, Planned, history
from switchgear.planner.simulate.queue import Decision, View, replay
from switchgear.planner.simulate.scores import LARGE_GPUS, QueueScore, RunTimeScore, quantiles_by_size
from switchgear.planner.simulate.trace import Trace, read


class Watched(Planned):
    """Notes forecasts: (large, made at, sampled waits), by job; and of those that started what they waited."""

    def __init__(self, trace: Trace, before: list[Ended], *, nodes: int, every_s: float) -> None:
        super().__init__(trace, before, nodes=nodes, gpus_per_node=8)
        self._every_s, self._next_s = every_s, 0.0
        self._open: dict[int, list[tuple[float, np.ndarray]]] = {}
        self.seen: list[tuple[bool, float, np.ndarray]] = []

    def decide(self, view: View) -> Decision:
        decision = super().decide(view)
        for job, _ in decision.starts:
            large = bool(self._jobs[job].gpus >= LARGE_GPUS)
            self.seen.extend((large, view.now_s - made_s, waits_s) for made_s, waits_s in self._open.pop(job, ()))
        started = {job for job, _ in decision.starts}
        left = tuple(self._jobs[job] for job in view.pending.tolist() if job not in started)
        if left and view.now_s >= self._next_s:
            self._next_s = view.now_s + self._every_s
            snapshot = Snapshot(self._nodes, left, tuple(self._running.values()), policy=Policy(preemption=False))
            run_times = self._learned(view)
            turns = order(snapshot, {}, run_times, view.now_s)
            waits_s = sampled_starts(snapshot, snapshot.running, turns, run_times, view.now_s) - view.now_s
            for job, sampled_s in zip(turns, waits_s.T, strict=True):
                self._open.setdefault(self._number[job.name], []).append((view.now_s, sampled_s))
        return decision


def on_trace(args: argparse.Namespace) -> None:
    with args.jobs.open(newline="") as file:
        full = read(file)
    start_s = datetime.fromisoformat(args.start).replace(tzinfo=UTC).timestamp()
    inside = (full.submit_s >= start_s) & (full.submit_s < start_s + args.days * 86400)
    trace = full.only(np.flatnonzero(inside))
    before = history(full.only(np.flatnonzero(full.submit_s < start_s)), start_s)
    policy = Watched(trace, before, nodes=args.nodes, every_s=args.every_hours * 3600)
    began_s = time.process_time()
    outcome = replay(trace, policy, nodes=args.nodes, gpus_per_node=8)
    load = (trace.run_s * trace.gpus).sum() / (args.nodes * 8 * args.days * 86400)
    print(f"{args.start}, {args.nodes} nodes, load {load:.2f}, {time.process_time() - began_s:.0f} s of a processor")
    print(QueueScore.of(outcome))
    print("learned", RunTimeScore.of(trace.run_s, policy.quantiles_s, LEVELS))
    print("by size", RunTimeScore.of(trace.run_s, quantiles_by_size(outcome, before, LEVELS), LEVELS))
    for large in (False, True):
        part = [(waited_s, waits_s) for is_large, waited_s, waits_s in policy.seen if is_large is large]
        if part:
            print(f"starts of {'large' if large else 'small'} jobs", forecast_score(part, large))


def forecast_score(seen: list[tuple[float, np.ndarray]], large: bool) -> str:
    raw = told = 0
    misses, widths_h = [], []
    for waited_s, waits_s in seen:
        low_s, high_s = np.quantile(waits_s, (0.1, 0.9))
        raw += low_s <= waited_s <= high_s
        _, below_s, above_s = interval_s(waits_s, large=large)
        told += below_s <= waited_s <= above_s
        widths_h.append((above_s - below_s) / 3600)
        low, high, actual = np.log(np.array((low_s, high_s, waited_s)) + WIDENING.scale_s)
        misses.append(max(low - actual, actual - high))
    return (
        f"{len(seen)} forecasts, inside as sampled {raw / len(seen):.3f}, as told {told / len(seen):.3f}, median width "
        f"{np.median(widths_h):.1f} h, widening for 0.8: {np.quantile(misses, 0.8):.2f}"
    )


def times() -> None:
    random = np.random.default_rng(1)
    ended = tuple(
        Ended(f"user-{at % 40}", f"key-{at % 200}", "", float(2 ** (at % 4)), float(random.lognormal(7, 2)), float(at))
        for at in range(10_000)
    )
    for nodes, waiting in ((64, 1_000), (1_213, 1_000), (1_213, 10_000)):
        print(f"{nodes} nodes, {waiting} wait, 10,000 ended; milliseconds of a processor")
        _times(_full(nodes, waiting, ended))


def _full(nodes: int, waiting: int, ended: tuple[Ended, ...]) -> Snapshot:
    tasks = {gpus: Task(gpus=gpus) for gpus in (1, 2, 4, 8)}
    pending = tuple(
        Job(f"p{at}", tasks[2 ** (at % 4)], 1e4 + at, user=f"user-{at % 40}", key=f"key-{at % 200}")
        for at in range(waiting)
    )
    running = tuple(
        Running(
            Job(f"r{row}-{at}", tasks[4], 0.0, user=f"user-{row % 40}"),
            (Seat(f"n{row}", tuple(range(4 * at, 4 * at + 4))),),
            1e4,
        )
        for row in range(nodes)
        for at in range(2)
    )
    return Snapshot(tuple(Node(f"n{row}", 8) for row in range(nodes)), pending, running, ended=ended)


def _times(snapshot: Snapshot) -> None:
    now_s = 2.5e4
    run_times = RunTimes.of(snapshot, now_s)
    had = shares(snapshot)
    first = snapshot.pending[:1_000]
    _timed("learn run times", lambda: RunTimes.of(snapshot, now_s))
    _timed("order", lambda: order(snapshot, had, run_times, now_s))
    _timed("forecast of 1,000", lambda: sampled_starts(snapshot, snapshot.running, first, run_times, now_s))
    _timed("plan", lambda: plan(snapshot, now_s))


def _timed(name: str, run: Callable[[], object]) -> None:
    took = []
    for _ in range(5):
        began_s = time.process_time()
        run()
        took.append(time.process_time() - began_s)
    print(f"  {name}: {min(took) * 1e3:.0f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=Path)
    parser.add_argument("--start", default="2017-10-09")
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--days", type=float, default=14.0)
    parser.add_argument("--every-hours", type=float, default=2.0)
    parser.add_argument("--times", action="store_true")
    arguments = parser.parse_args()
    if not arguments.times and not arguments.jobs:
        parser.error("give --jobs FILE, or --times")
    times() if arguments.times else on_trace(arguments)
