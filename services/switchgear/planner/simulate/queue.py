"""A trace on a cluster of equal nodes in virtual time, under any policy."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from switchgear.core.errors import Invalid, Reason
from switchgear.planner.fleet import Ints, Mask, Reals
from switchgear.planner.simulate.trace import Trace

#: A GPU that nobody has.
FREE = -1


@dataclass(frozen=True)
class View:
    """The cluster at one moment. Jobs are numbers of the trace.

    pending: in order of submission. slots: who has each GPU, `FREE` where nobody does, shape (nodes, GPUs of a node). start_s: of the run that
    goes on; NaN while a job does not run, shape (jobs,).
    """

    now_s: float
    pending: Ints
    slots: Ints
    start_s: Reals

    @property
    def running(self) -> Ints:
        found: Ints = np.flatnonzero(~np.isnan(self.start_s))
        return found


@dataclass(frozen=True)
class Decision:
    """Jobs to stop, whose GPUs are free at once; then jobs to start, with their nodes. wake_s: decide again then, whatever happens."""

    starts: Sequence[tuple[int, tuple[int, ...]]] = ()
    stops: Sequence[int] = ()
    wake_s: float = np.inf


class QueuePolicy(Protocol):
    def submitted(self, job: int, view: View) -> None: ...

    def ended(self, job: int, start_s: float, now_s: float) -> None: ...

    def decide(self, view: View) -> Decision: ...


@dataclass(frozen=True)
class QueueOutcome:
    """wait_s: time from submission to the end in which a job did not work. turnaround_s: all of that time. Shapes (jobs,)."""

    trace: Trace
    end_s: Reals
    preemptions: int

    @property
    def turnaround_s(self) -> Reals:
        return self.end_s - self.trace.submit_s

    @property
    def wait_s(self) -> Reals:
        return self.turnaround_s - self.trace.run_s


def whole_nodes(gpus: int, gpus_per_node: int) -> int:
    """Nodes that a job takes whole; 0 for one that fits on a node with others."""
    return -(-gpus // gpus_per_node) if gpus > gpus_per_node else 0


def replay(
    trace: Trace,
    policy: QueuePolicy,
    *,
    nodes: int,
    gpus_per_node: int,
    restart_s: float = 0.0,
    progress: Callable[[int, float], None] | None = None,
) -> QueueOutcome:
    """Every job of the trace to its end, from an empty cluster.

    A job that fits on a node runs on one, a larger one on whole nodes. A job that was stopped goes on with its work done, after restart_s more.
    What happens at one time is seen together, ends first. progress: is told jobs that came and the time, at each submission.
    Raises Invalid when a job is larger than the cluster.
    """
    if len(trace) and trace.gpus.max() > nodes * gpus_per_node:
        raise Invalid(
            f"a job has {trace.gpus.max()} GPUs, and {nodes} nodes of {gpus_per_node} have {nodes * gpus_per_node}: give more nodes",
            Reason.BODY_INVALID,
        )
    return _World(trace, policy, np.full((nodes, gpus_per_node), FREE, np.int64), restart_s).run(progress)


class _World:
    def __init__(self, trace: Trace, policy: QueuePolicy, slots: Ints, restart_s: float) -> None:
        jobs = len(trace)
        self._trace, self._policy, self._slots, self._restart_s = trace, policy, slots, restart_s
        self._left_s = trace.run_s.copy()
        self._start_s, self._end_s = np.full(jobs, np.nan), np.full(jobs, np.nan)
        self._pending: Mask = np.zeros(jobs, bool)
        #: (end, job, start of the run): a run that was stopped since has another start, or none.
        self._ends: list[tuple[float, int, float]] = []
        self._arrived = self._preemptions = 0

    def run(self, progress: Callable[[int, float], None] | None) -> QueueOutcome:
        trace, jobs, wake_s = self._trace, len(self._trace), np.inf
        while True:
            while self._ends and self._start_s[self._ends[0][1]] != self._ends[0][2]:
                heapq.heappop(self._ends)
            arrival_s = trace.submit_s[self._arrived] if self._arrived < jobs else np.inf
            now_s = float(min(arrival_s, self._ends[0][0] if self._ends else np.inf, wake_s))
            if not np.isfinite(now_s):
                if self._pending.any():
                    raise RuntimeError(f"{self._pending.sum()} jobs wait, nothing runs, and the policy starts nothing")
                return QueueOutcome(trace, self._end_s, self._preemptions)
            self._leave(now_s)
            while self._arrived < jobs and trace.submit_s[self._arrived] <= now_s:
                self._pending[self._arrived] = True
                self._arrived += 1
                self._policy.submitted(self._arrived - 1, self._view(now_s))
                if progress:
                    progress(self._arrived, now_s)
            decision = self._policy.decide(self._view(now_s))
            wake_s = max(decision.wake_s, now_s + 1e-3)
            self._stop(decision.stops, now_s)
            for job, on in decision.starts:
                self._start(job, on, now_s)

    def _view(self, now_s: float) -> View:
        return View(now_s, np.flatnonzero(self._pending[: self._arrived]), self._slots, self._start_s)

    def _leave(self, now_s: float) -> None:
        while self._ends and self._ends[0][0] <= now_s:
            _, job, began_s = heapq.heappop(self._ends)
            if self._start_s[job] == began_s:
                self._slots[self._slots == job] = FREE
                self._start_s[job], self._end_s[job] = np.nan, now_s
                self._policy.ended(job, began_s, now_s)

    def _stop(self, jobs: Sequence[int], now_s: float) -> None:
        for job in jobs:
            self._left_s[job] -= now_s - self._start_s[job] - self._restart_s
            self._slots[self._slots == job] = FREE
            self._start_s[job], self._pending[job] = np.nan, True
            self._preemptions += 1

    def _start(self, job: int, nodes: tuple[int, ...], now_s: float) -> None:
        gpus, per_node = int(self._trace.gpus[job]), self._slots.shape[1]
        each = per_node if whole_nodes(gpus, per_node) else gpus
        for node in nodes:
            free = np.flatnonzero(self._slots[node] == FREE)
            if len(free) < each:
                raise RuntimeError(f"the policy put job {job} on node {node}, which has {len(free)} GPUs free")
            self._slots[node, free[:each]] = job
        self._pending[job], self._start_s[job] = False, now_s
        heapq.heappush(self._ends, (now_s + self._left_s[job], job, now_s))
