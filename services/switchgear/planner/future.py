"""What nodes have free later, and what is kept of it for those who wait."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from switchgear.planner.fleet import Fleet, Mask
from switchgear.planner.holdings import CPU, MEMORY, Holdings
from switchgear.planner.model import WHOLE, Seat, Task
from switchgear.planner.packing import Packer

Times = npt.NDArray[np.float64]


class Kept:
    """Seats that are kept for those who wait, whether they are free now or later."""

    def __init__(self, fleet: Fleet) -> None:
        self._gpu_milli = np.zeros_like(fleet.gpu_free)
        self._cpu_milli = np.zeros_like(fleet.cpu_free)
        self._memory_mib = np.zeros_like(fleet.memory_free)
        self._mig: list[tuple[Seat, Task]] = []

    def add(self, fleet: Fleet, seats: Iterable[Seat], task: Task) -> None:
        for seat in seats:
            row = fleet.at[seat.node]
            if task.mig_profile:
                self._mig.append((seat, task))
            elif seat.gpus:
                self._gpu_milli[row, list(seat.gpus)] += WHOLE if task.gpus else task.gpu_milli
            self._cpu_milli[row] += task.cpu_milli
            self._memory_mib[row] += task.memory_mib

    def off(self, fleet: Fleet) -> None:
        """Takes from the fleet what is kept, as far as it is there."""
        np.maximum(fleet.gpu_free - self._gpu_milli, 0, out=fleet.gpu_free)
        fleet.whole_free = (fleet.gpu_free == WHOLE).sum(axis=1)
        np.maximum(fleet.cpu_free - self._cpu_milli, 0, out=fleet.cpu_free)
        np.maximum(fleet.memory_free - self._memory_mib, 0, out=fleet.memory_free)
        for seat, task in self._mig:
            withhold(fleet, fleet, seat, Task(mig_profile=task.mig_profile))


def without(fleet: Fleet, holdings: Holdings, gone: Mask) -> Fleet:
    """The fleet when these jobs have gone. gone: shape (jobs,)."""
    later = fleet.copy()
    rows = np.flatnonzero(gone[holdings.job])
    node, amount = holdings.node[rows], holdings.amount[rows]
    np.add.at(later.gpu_free, node, amount[:, :CPU])
    np.add.at(later.cpu_free, node, amount[:, CPU])
    np.add.at(later.memory_free, node, amount[:, MEMORY])
    later.whole_free = (later.gpu_free == WHOLE).sum(axis=1)
    for at in np.flatnonzero(gone).tolist():
        one = holdings.running[at]
        if one.job.task.mig_profile:
            for seat in one.seats:
                # CPU and memory are among the amounts.
                later.give(seat, Task(mig_profile=one.job.task.mig_profile))
    return later


def withhold(target: Packer | Fleet, fleet: Fleet, seat: Seat, task: Task) -> None:
    """Takes what is there of a seat, which others may have in part or whole. fleet: the packer's, or the target itself."""
    row = fleet.at[seat.node]
    cpu_milli, memory_mib = (
        min(task.cpu_milli, int(fleet.cpu_free[row])),
        min(task.memory_mib, int(fleet.memory_free[row])),
    )
    if cpu_milli or memory_mib:
        target.take(Seat(seat.node), Task(cpu_milli=cpu_milli, memory_mib=memory_mib))
    if task.mig_profile:
        free = fleet.mig_free.get(task.mig_profile)
        instance = Task(mig_profile=task.mig_profile)
        if free is not None and free[row] > 0:
            target.take(fleet.seat(instance, row), instance)
        return
    for gpu in seat.gpus:
        milli = min(WHOLE if task.gpus else task.gpu_milli, int(fleet.gpu_free[row, gpu]))
        if milli:
            target.take(Seat(seat.node, (gpu,)), Task(gpus=1) if milli == WHOLE else Task(gpu_milli=milli))
