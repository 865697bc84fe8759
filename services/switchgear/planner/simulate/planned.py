"""The planner as a policy of `simulate.queue`: each decision is a plan."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from switchgear.planner.fleet import Reals
from switchgear.planner.model import Ended, Job, Node, Policy, Running, Snapshot, Task
from switchgear.planner.plan import plan
from switchgear.planner.runtimes import History, RunTimes
from switchgear.planner.simulate.clock import ENDED_MAX
from switchgear.planner.simulate.queue import FREE, Decision, View, whole_nodes
from switchgear.planner.simulate.trace import Trace

#: Between two plans at least: so often a scheduler looks when much happens.
CYCLE_S = 15.0
#: What was learned is used for so long: a sweep's first ends are soon known to the rest.
LEARN_S = 60.0
#: Run times are told with these chances to be shorter.
LEVELS = (0.1, 0.5, 0.9)


class Planned:
    """Jobs of one queue, alike when the trace says so (`Trace.keys`); nobody is stopped.

    quantiles_s: of the run time of each job, as told at its submission, shape (jobs, LEVELS).
    """

    def __init__(self, trace: Trace, history: Iterable[Ended], *, nodes: int, gpus_per_node: int) -> None:
        """history: jobs that ended before the first of the trace came."""
        self._nodes = tuple(Node(f"node-{row:05}", gpus_per_node) for row in range(nodes))
        self._row = {node.name: row for row, node in enumerate(self._nodes)}
        self._jobs = _jobs(trace, gpus_per_node)
        self._number = {job.name: at for at, job in enumerate(self._jobs)}
        self._running: dict[int, Running] = {}
        self._history = History(history, ENDED_MAX)
        self._run_times: RunTimes | None = None
        self._learned_s = self._planned_s = -np.inf
        self.quantiles_s: Reals = np.full((len(trace), len(LEVELS)), np.nan)

    def submitted(self, job: int, view: View) -> None:
        self.quantiles_s[job] = self._learned(view).quantiles(self._jobs[job], 0.0, LEVELS)

    def ended(self, job: int, start_s: float, now_s: float) -> None:
        of = self._running.pop(job).job
        self._history.add(Ended(of.user, of.key, of.queue, of.gpus, now_s - start_s, now_s, of.submit_s))

    def decide(self, view: View) -> Decision:
        if not len(view.pending):
            return Decision()
        if view.now_s < self._planned_s + CYCLE_S:
            return Decision(wake_s=self._planned_s + CYCLE_S)
        most_free = (view.slots == FREE).sum(axis=1).max()
        if most_free < min(self._jobs[job].task.gpus for job in view.pending.tolist()):
            return Decision()
        self._planned_s = view.now_s
        pending = tuple(self._jobs[job] for job in view.pending.tolist())
        snapshot = Snapshot(self._nodes, pending, tuple(self._running.values()), policy=Policy(preemption=False))
        decisions = plan(snapshot, view.now_s, run_times=self._learned(view), told=False)
        starts = []
        for start in decisions.starts:
            job = self._number[start.job.name]
            self._running[job] = Running(start.job, start.seats, view.now_s)
            starts.append((job, tuple(self._row[seat.node] for seat in start.seats)))
        return Decision(starts)

    def _learned(self, view: View) -> RunTimes:
        if self._run_times is None or view.now_s >= self._learned_s + LEARN_S:
            self._learned_s = view.now_s
            running = ((one.job, view.now_s - one.start_s) for one in self._running.values())
            self._run_times = RunTimes(self._history, running, (self._jobs[job] for job in view.pending.tolist()))
        return self._run_times


def history(trace: Trace, until_s: float) -> list[Ended]:
    """The jobs of a trace that had ended by then if none of them had to wait, in order of their ends."""
    end_s = trace.submit_s + trace.run_s
    rows = np.flatnonzero(end_s <= until_s)
    return [
        Ended(
            "",
            trace.keys[row],
            "",
            float(trace.gpus[row]),
            float(trace.run_s[row]),
            float(end_s[row]),
            float(trace.submit_s[row]),
        )
        for row in rows[np.argsort(end_s[rows], kind="stable")].tolist()
    ]


def _jobs(trace: Trace, gpus_per_node: int) -> list[Job]:
    tasks = {gpus: Task(gpus=gpus) for gpus in range(1, gpus_per_node + 1)}
    jobs = []
    for at, (submit_s, gpus, key) in enumerate(
        zip(trace.submit_s.tolist(), trace.gpus.tolist(), trace.keys, strict=True)
    ):
        nodes = whole_nodes(gpus, gpus_per_node)
        task = tasks[gpus_per_node if nodes else gpus]
        jobs.append(Job(f"job-{at:07}", task, submit_s, max(nodes, 1), key=key, preemptible=False))
    return jobs
