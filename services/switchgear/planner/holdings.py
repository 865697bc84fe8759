"""What running jobs hold of each node, as arrays: what it would give to stop them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from switchgear.planner.fleet import Fleet, Ints, Mask, Reals
from switchgear.planner.model import WHOLE, Running, Workload

#: A GPU-second for which a service waits weighs as much as so many that training does again: people wait for the one, nobody for the other.
SERVICE_URGENCY = 4.0

#: Columns of what is held after those of the GPUs.
CPU, MEMORY, MIG = -3, -2, -1


class Holdings:
    """One row for each job and node that it is on, in the order of the jobs. Built once a snapshot, in O(seats).

    job, node: numbers of both, shape (rows,). amount: thousandths of each GPU, then CPU, memory, and 0 for MIG instances (`amounts` has them),
    shape (rows, GPUs of a node + 3). Seats on nodes that are gone hold nothing.
    """

    def __init__(self, fleet: Fleet, running: Sequence[Running]) -> None:
        self.running = tuple(running)
        self.at = {one.job.name: number for number, one in enumerate(self.running)}
        width = fleet.gpu_free.shape[1] + 3
        keys: dict[tuple[int, int], int] = {}
        rows, columns, much = list[int](), list[int](), list[int]()
        self._instances: dict[str, list[int]] = {}
        for number, one in enumerate(self.running):
            task = one.job.task
            milli = WHOLE if task.gpus else task.gpu_milli
            for seat in one.seats:
                node = fleet.at.get(seat.node)
                if node is None:
                    continue
                row = keys.setdefault((number, node), len(keys))
                if task.mig_profile:
                    self._instances.setdefault(task.mig_profile, []).append(row)
                elif milli:
                    rows += [row] * len(seat.gpus)
                    columns += seat.gpus
                    much += [milli] * len(seat.gpus)
                if task.cpu_milli or task.memory_mib:
                    rows += (row, row)
                    columns += (width + CPU, width + MEMORY)
                    much += (task.cpu_milli, task.memory_mib)
        pairs: Ints = np.array(list(keys), np.int64).reshape(-1, 2)
        self.job, self.node = pairs[:, 0], pairs[:, 1]
        self.amount: Ints = np.zeros((len(keys), width), np.int64)
        np.add.at(self.amount, (np.array(rows, np.int64), np.array(columns, np.int64)), much)
        self.gpus: Reals = np.array([len(one.seats) * one.job.task.gpu_share for one in self.running], np.float64)
        self.priority: Ints = np.array([one.job.priority for one in self.running], np.int64)
        self.start_s: Reals = np.array([one.start_s for one in self.running], np.float64)
        self.harvest: Mask = np.array([one.job.harvest for one in self.running], bool)
        self.stays: Mask = np.array([one.leaving or not one.job.preemptible for one in self.running], bool)

    def __len__(self) -> int:
        return len(self.running)

    def amounts(self, mig_profile: str) -> Ints:
        """`amount` with the instances of this profile."""
        found = self.amount
        if rows := self._instances.get(mig_profile):
            found = found.copy()
            np.add.at(found[:, MIG], rows, 1)
        return found

    def losses(self, now_s: float, wait_s: float, service_gpus: float = 0.0) -> tuple[Reals, Reals]:
        """GPU-seconds that each costs when it is told to leave now, and by when it has to. Shapes (jobs,).

        Work since its newest verified checkpoint, or since its start from an older one, is done again; not when its next checkpoint is due
        within `wait_s`, since that is awaited. One whose checkpoint is overdue by more than an interval is not waited for. Then its restart.
        Inference does no work again, nor does one that makes a checkpoint when it is told to end.
        service_gpus: GPUs of a replica that waits meanwhile; 0: it is no replica that waits. It does so no longer than the work is worth that
        would be done again (`SERVICE_URGENCY`), so that in all never more than twice the lesser of the two is lost.
        """
        newest_s = [one.start_s if one.checkpoint_s is None else one.checkpoint_s for one in self.running]
        saved_s = np.maximum(np.array(newest_s, np.float64), self.start_s)
        every_s = [np.inf if one.checkpoint_interval_s is None else one.checkpoint_interval_s for one in self.running]
        interval_s = np.maximum(np.array(every_s, np.float64), 1e-3)
        restart_s = np.array([one.restart_s for one in self.running], np.float64)
        inference = np.array([one.job.workload is Workload.INFERENCE for one in self.running], bool)
        since_s = np.maximum(now_s - saved_s, 0.0)
        due_s = np.where(since_s <= interval_s, interval_s - since_s, 0.0)
        bound_s = np.full(len(self), wait_s)
        if service_gpus:
            bound_s = np.minimum(bound_s, since_s * self.gpus / (SERVICE_URGENCY * service_gpus))
        saves = np.array([one.saves_when_stopped for one in self.running], bool)
        awaited = (due_s <= bound_s) & (since_s <= 2 * interval_s) & ~inference & ~saves
        redone_s = np.where(awaited | inference | saves, 0.0, since_s)
        return (redone_s + restart_s) * self.gpus, now_s + np.where(awaited, bound_s, 0.0)
