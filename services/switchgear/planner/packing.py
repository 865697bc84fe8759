"""On which node one task goes: best fit by the GPUs that are left over."""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt

from switchgear.planner.fleet import Fleet, Mask
from switchgear.planner.mix import Mix
from switchgear.planner.model import WHOLE, Seat, Task

Scores = npt.NDArray[np.float64]


class Packer:
    """Scores the nodes of a fleet for one task at a time; `take` and `give` change the fleet."""

    def __init__(self, fleet: Fleet, mix: Mix) -> None:
        self.fleet = fleet
        self.mix = mix

    def copy(self) -> Self:
        """The same, to try something on."""
        return type(self)(self.fleet.copy(), self.mix)

    def scores(self, task: Task) -> Scores:
        """Shape (nodes,), higher is better, -inf where it does not fit: GPUs left over on the node count against it."""
        left = self.fleet.gpu_free.sum(axis=1) / WHOLE - task.gpu_share
        found: Scores = np.where(self.fleet.room(task) > 0, -left, -np.inf)
        return found

    def best(self, task: Task, allowed: Mask | None = None) -> int:
        """The row of the best node, the first of equals; -1 when it fits nowhere."""
        scores = self.scores(task)
        if allowed is not None:
            scores = np.where(allowed, scores, -np.inf)
        row = int(scores.argmax()) if len(scores) else -1
        return row if row >= 0 and scores[row] > -np.inf else -1

    def seat(self, task: Task, row: int) -> Seat:
        """A seat on a node that has room."""
        return self.fleet.seat(task, row)

    def take(self, seat: Seat, task: Task) -> None:
        """The seat's task has it from now on."""
        self.fleet.take(seat, task)

    def give(self, seat: Seat, task: Task) -> None:
        """The seat is free again."""
        self.fleet.give(seat, task)
