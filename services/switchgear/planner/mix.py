"""What tasks are to be expected: the classes of tasks with their weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from switchgear.planner.model import Task


@dataclass(frozen=True, slots=True)
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
