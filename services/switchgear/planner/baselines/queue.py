"""Published queue policies that the planner is compared with, on a cluster of equal nodes. Some are told the true run times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from switchgear.planner.fleet import Ints, Mask, Reals
from switchgear.planner.simulate.queue import FREE, Decision, View, whole_nodes
from switchgear.planner.simulate.trace import Trace

#: GPU-seconds after which a job falls into the second of two queues: the first threshold of Tiresias' simulator (Gu et al., NSDI 2019).
LAS_THRESHOLDS_GPU_S = (3250.0,)
#: From its stop to the step at which a job of LAS stopped, when it runs again: a load of the checkpoint, without work that is lost.
LAS_RESTART_S = 60.0


@dataclass(frozen=True)
class Ordered:
    """Starts jobs by ascending key, on the node with the least room. Shapes (jobs,).

    strict: the first that does not fit lets all others wait (FIFO). Else others skip ahead; with run_s only those that do not delay the first
    that does not fit (EASY backfill, Lifka 1995).
    """

    gpus: Ints
    key: Reals
    run_s: Reals | None = None
    strict: bool = False

    def submitted(self, job: int, view: View) -> None:
        """Nothing is learned."""

    def ended(self, job: int, start_s: float, now_s: float) -> None:
        """Nothing is learned."""

    def decide(self, view: View) -> Decision:
        jobs = view.pending[np.argsort(self.key[view.pending], kind="stable")]
        free = _Free(view, self.run_s)
        starts = []
        first_waits, most = False, view.slots.size + 1
        for job in jobs.tolist():
            gpus = int(self.gpus[job])
            if not free.any:
                break
            if gpus >= most:
                continue
            nodes = free.nodes_for(gpus, np.inf if self.run_s is None else float(self.run_s[job]))
            if nodes is not None:
                starts.append((job, nodes))
            elif self.strict:
                break
            elif self.run_s is None:
                most = gpus  # what is larger fits no better
            elif not first_waits:
                free.reserve(gpus)
                first_waits = True
        return Decision(starts)


class _Free:
    """What is free now, and what is kept from a time on for the one job that has a reservation."""

    def __init__(self, view: View, run_s: Reals | None) -> None:
        nodes, self._per_node = view.slots.shape
        self._now_s = view.now_s
        ends_s = np.append(view.start_s + (np.inf if run_s is None else run_s), -np.inf)
        #: When each GPU falls free, -inf where it is free now; in order on each node.
        self._release_s: Reals = np.sort(ends_s[view.slots], axis=1)
        self._free: Ints = (view.slots == FREE).sum(axis=1)
        self._held_s: Reals = np.full(nodes, np.inf)
        self._over: Ints = np.full(nodes, self._per_node)

    @property
    def any(self) -> bool:
        return bool(self._free.any())

    def nodes_for(self, gpus: int, run_s: float) -> tuple[int, ...] | None:
        """The nodes with the least room that the job can have now, which are taken; None when there are none."""
        want = whole_nodes(gpus, self._per_node)
        each = self._per_node if want else gpus
        end_s = self._now_s + run_s
        fits: Mask = (self._free >= each) & ((end_s <= self._held_s) | (self._over >= each))
        if fits.sum() < max(want, 1):
            return None
        room = np.where(fits, self._free, self._per_node + 1)
        chosen = np.argsort(room, kind="stable")[: max(want, 1)]
        for node in chosen:
            self._release_s[node, :each] = end_s
            self._release_s[node].sort()
            self._free[node] -= each
            if self._held_s[node] < end_s:
                self._over[node] -= each
        return tuple(chosen.tolist())

    def reserve(self, gpus: int) -> None:
        """Keeps the nodes that can serve the job earliest."""
        want = whole_nodes(gpus, self._per_node)
        each = self._per_node if want else gpus
        ready_s = np.maximum(self._release_s[:, each - 1], self._now_s)
        chosen = np.argsort(ready_s, kind="stable")[: max(want, 1)]
        at_s = ready_s[chosen].max()
        self._held_s[chosen] = at_s
        self._over[chosen] = np.minimum((self._release_s[chosen] <= at_s).sum(axis=1) - each, self._per_node)


class LeastAttained:
    """Those with the least service so far run, and others are stopped for them: discretised 2D-LAS (Tiresias, Gu et al., NSDI 2019).

    Service in GPU-seconds falls into queues, each served in order of submission.
    """

    def __init__(self, gpus: Ints, thresholds_gpu_s: tuple[float, ...] = LAS_THRESHOLDS_GPU_S) -> None:
        self._gpus = gpus
        self._thresholds = np.array(thresholds_gpu_s)
        self._attained_s: Reals = np.zeros(len(gpus))
        self._seen_s = 0.0

    def submitted(self, job: int, view: View) -> None:
        """Its service is 0."""

    def ended(self, job: int, start_s: float, now_s: float) -> None:
        """It does not come back."""

    def decide(self, view: View) -> Decision:
        running = view.running
        self._attained_s[running] += view.now_s - np.maximum(self._seen_s, view.start_s[running])
        self._seen_s = view.now_s
        jobs = np.sort(np.concatenate((running, view.pending)))
        service = self._attained_s[jobs] * self._gpus[jobs] + 1e-6
        level = np.searchsorted(self._thresholds, service, side="right")
        falls = ~np.isnan(view.start_s[jobs]) & (level < len(self._thresholds))
        left_s = (self._thresholds[level[falls]] - service[falls]) / self._gpus[jobs[falls]]
        wake_s = view.now_s + float(left_s.min(initial=np.inf)) + 1e-3
        if not len(view.pending):
            return Decision(wake_s=wake_s)
        return self._pack(jobs[np.argsort(level, kind="stable")], view, wake_s)

    def _pack(self, order: Ints, view: View, wake_s: float) -> Decision:
        """Those at the front that fill the cluster by count of GPUs keep their nodes; the others skip ahead on what is left."""
        nodes, per_node = view.slots.shape
        node, gpu = np.nonzero(view.slots != FREE)
        where: dict[int, dict[int, int]] = {}
        for job, on in zip(view.slots[node, gpu].tolist(), node.tolist(), strict=True):
            has = where.setdefault(job, {})
            has[on] = has.get(on, 0) + 1
        room = np.full(nodes, per_node)
        keep: set[int] = set()
        left = nodes * per_node
        for job in order.tolist():
            if (gpus := int(self._gpus[job])) <= left:
                left -= gpus
                if job in where:
                    keep.add(job)
                    for on, count in where[job].items():
                        room[on] -= count
            if left == 0:
                break
        starts = []
        most = nodes * per_node + 1
        for job in order.tolist():
            if job in keep:
                continue
            if room.max() == 0:
                break
            if job in where and all(room[on] >= count for on, count in where[job].items()):
                keep.add(job)
                for on, count in where[job].items():
                    room[on] -= count
                continue
            gpus = int(self._gpus[job])
            if gpus >= most:
                continue
            want = whole_nodes(gpus, per_node)
            each = per_node if want else gpus
            fits = room >= each
            if fits.sum() < max(want, 1):
                most = gpus
                continue
            chosen = np.argsort(np.where(fits, room, per_node + 1), kind="stable")[: max(want, 1)]
            room[chosen] -= each
            starts.append((job, tuple(chosen.tolist())))
        return Decision(starts, [job for job in where if job not in keep], wake_s)


def policies(trace: Trace) -> dict[str, Ordered | LeastAttained]:
    """By the names that they have on the command line."""
    return {
        "fifo": Ordered(trace.gpus, trace.submit_s, strict=True),
        "skip-ahead": Ordered(trace.gpus, trace.submit_s),
        "easy": Ordered(trace.gpus, trace.submit_s, trace.run_s),
        "las": LeastAttained(trace.gpus),
        "sjf": Ordered(trace.gpus, trace.run_s),
    }
