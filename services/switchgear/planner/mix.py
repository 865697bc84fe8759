"""What tasks are to be expected: the classes of tasks with their weights, given or learned from arrivals."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from switchgear.planner.fleet import Ints, Reals
from switchgear.planner.model import WHOLE, Task
from switchgear.planner.prices import gap_worth

#: Classes that are looked at, the most frequent ones: what is derived from them takes time and memory in proportion.
CLASSES_MAX = 1024


@dataclass(frozen=True)
class Mix:
    """weights: of each task, the sum is 1 unless there are none."""

    weights: tuple[tuple[Task, float], ...] = ()

    @classmethod
    def of(cls, tasks: Iterable[tuple[Task, float]]) -> Self:
        """Equal tasks are added up; weights of no more than 0 are left out."""
        sums: dict[Task, float] = {}
        for task, weight in tasks:
            sums[task] = sums.get(task, 0.0) + max(weight, 0.0)
        total = sum(sums.values())
        return cls(tuple((task, weight / total) for task, weight in sums.items() if weight > 0))

    @cached_property
    def classes(self) -> Classes:
        """The most frequent classes as arrays."""
        return Classes(self.weights)

    @cached_property
    def gaps(self) -> Reals:
        """What a free part of a GPU is worth to the tasks that share one, by thousandths free. Shape (1001,), in thousandths of a GPU."""
        sharing = (self.classes.gpus == 1) & (self.classes.gpu_milli < WHOLE)
        return gap_worth(self.classes.gpu_milli[sharing], self.classes.weight[sharing])


class Classes:
    """A class is what is alike in CPU, memory, GPUs, share and models that it accepts. One entry each.

    gpus: 0 for tasks without and on MIG instances, which take nothing that others could have of a GPU. gpu_milli: of each of the GPUs.
    """

    def __init__(self, weights: Iterable[tuple[Task, float]]) -> None:
        kept = sorted(weights, key=lambda one: -one[1])[:CLASSES_MAX]
        self.models = tuple(task.gpu_models for task, _ in kept)
        rows = [
            (task.cpu_milli, task.memory_mib, task.gpus or int(task.gpu_milli > 0), task.gpu_milli or WHOLE)
            for task, _ in kept
        ]
        table: Ints = np.array(rows, np.int64).reshape(-1, 4)
        self.cpu_milli, self.memory_mib, self.gpus = table[:, 0], table[:, 1], table[:, 2]
        self.gpu_milli = np.where(self.gpus > 0, table[:, 3], 0)
        weight: Reals = np.array([weight for _, weight in kept], np.float64)
        self.weight: Reals = weight / max(float(weight.sum()), 1e-9)

    @property
    def total_gpu_milli(self) -> Ints:
        found: Ints = self.gpus * self.gpu_milli
        return found


class Arrivals:
    """Learns the mix from what arrives, and from nothing else: counts that are halved every `half_life` arrivals.

    The mix is renewed at arrivals 1, g, g², … (g = `growth`) up to the half-life, then once a half-life: each time everything derived from it
    is derived anew, so this trades time for freshness.
    """

    def __init__(self, *, half_life: int = 16_384, growth: int = 4) -> None:
        self._count: dict[Task, float] = {}
        self._weight, self._step = 1.0, 2.0 ** (1 / half_life)
        self._half_life, self._growth = half_life, growth
        self._seen, self._due = 0, 1

    def saw(self, task: Task) -> Mix | None:
        """Counts an arrival. The mix when it is due to be renewed."""
        self._count[task] = self._count.get(task, 0.0) + self._weight
        self._weight *= self._step
        self._seen += 1
        if self._seen < self._due:
            return None
        self._due += min(self._due * (self._growth - 1), self._half_life)
        if self._weight > 1e9:
            # Far from the float limit; what has not come for thirty half-lives is forgotten.
            self._count = {one: count / self._weight for one, count in self._count.items() if count > 1.0}
            self._weight = 1.0
        return Mix.of(self._count.items())
