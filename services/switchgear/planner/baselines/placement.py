"""Packing policies to compare with: a random node, best fit, FGD. All through the same `Packer`, but for the random one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from switchgear.planner.fleet import ENOUGH, Fleet, Ints, Reals
from switchgear.planner.mix import Mix
from switchgear.planner.model import WHOLE, Seat, Task
from switchgear.planner.usable import Usable

#: Of the tasks, those of the most popular classes, which FGD goes by.
_POPULAR = 0.95


class AnyNode:
    """Any node where the task fits, any of its GPUs where it does."""

    def __init__(self, fleet: Fleet, random: np.random.Generator) -> None:
        self._fleet, self._random = fleet, random

    def best(self, task: Task) -> int:
        """A row, -1 when it fits nowhere."""
        rows = np.flatnonzero(self._fleet.room(task))
        return int(self._random.choice(rows)) if len(rows) else -1

    def seat(self, task: Task, row: int) -> Seat:
        """A seat on a node that has room."""
        if not task.gpu_milli:
            return self._fleet.seat(task, row)
        able = np.flatnonzero(self._fleet.gpu_free[row] >= task.gpu_milli)
        return self._fleet.seat(task, row, int(self._random.choice(able)))

    def take(self, seat: Seat, task: Task) -> None:
        """The seat's task has it from now on."""
        self._fleet.take(seat, task)


class BestFit:
    """Least CPU and GPU left over, each as a part of the largest node, in whole hundredths; of a node's GPUs the fullest."""

    def __init__(self, fleet: Fleet) -> None:
        known = fleet.cpu_milli[fleet.cpu_milli < ENOUGH]
        self._cpu_milli_max = max(int(known.max(initial=0)), 1)
        self._gpu_milli_max = max(WHOLE * fleet.gpu_free.shape[1], 1)

    def rate(self, fleet: Fleet, task: Task, rows: Ints) -> tuple[Reals, Ints]:
        """`packing.Rating`."""
        gpus = fleet.gpu_free[rows]
        cpu_left = (fleet.cpu_free[rows] - task.cpu_milli) / self._cpu_milli_max
        gpu_left = (gpus.sum(axis=1) - (task.gpus * WHOLE or task.gpu_milli)) / self._gpu_milli_max
        fullest = np.where(gpus >= max(task.gpu_milli, 1), gpus, 2 * WHOLE).argmin(axis=1)
        return np.floor(100 * (1 - 0.5 * cpu_left - 0.5 * gpu_left)), fullest

    def bias(self, fleet: Fleet, task: Task) -> None:
        """None."""


class Fgd:
    """Fragmentation gradient descent (Weng et al., USENIX ATC 2023): the node whose expected fragments grow least, by its published score of
    whole numbers from 0 to 100. It is given the mix ahead, of which it looks at the most popular classes, without memory, that are 95 % of it.
    """

    def __init__(self, fleet: Fleet, mix: Mix) -> None:
        self._usable = Usable(popular(mix).classes, fleet.models, fleet.gpu_free.shape[1])

    def rate(self, fleet: Fleet, task: Task, rows: Ints) -> tuple[Reals, Ints]:
        """`packing.Rating`."""
        model, gpus, cpu_milli = fleet.model_of[rows], fleet.gpu_free[rows], fleet.cpu_free[rows]
        before = self._fragments(model, cpu_milli, gpus)
        cpu_milli = cpu_milli - task.cpu_milli
        if task.gpu_milli:
            row, gpu = np.nonzero(gpus >= task.gpu_milli)
            after = gpus[row]
            after[np.arange(len(row)), gpu] -= task.gpu_milli
            score = np.full(gpus.shape, -np.inf)
            score[row, gpu] = _score(before[row] - self._fragments(model[row], cpu_milli[row], after))
            best = score.argmax(axis=1)
            return score[np.arange(len(rows)), best], best
        if task.gpus:
            full = gpus == WHOLE
            gpus = np.where(full & (full.cumsum(axis=1) <= task.gpus), 0, gpus)
        return _score(before - self._fragments(model, cpu_milli, gpus)), np.full(len(rows), -1)

    def bias(self, fleet: Fleet, task: Task) -> None:
        """None."""

    def _fragments(self, model: Ints, cpu_milli: Ints, gpus: Ints) -> Reals:
        usable = self._usable(model, cpu_milli, gpus, np.count_nonzero(gpus == WHOLE, axis=1))
        found: Reals = gpus.sum(axis=1) - usable
        return found


def popular(mix: Mix) -> Mix:
    """The most popular classes, memory aside, that together are 95 % of all."""
    classes = Mix.of((replace(task, memory_mib=0), weight) for task, weight in mix.weights).weights
    order = sorted(
        classes,
        key=lambda one: (-one[1], one[0].cpu_milli, one[0].gpus, one[0].gpu_milli, sorted(one[0].gpu_models)),
    )
    kept = int(np.searchsorted(np.cumsum([weight for _, weight in order]), _POPULAR)) + 1
    return Mix.of(order[:kept])


def _score(less: Reals) -> Reals:
    """less: fragments that go away, in thousandths of a GPU."""
    found: Reals = np.floor(100 / (1 + np.exp(-less / WHOLE)))
    return found
