"""Jobs that end together are put together, and where least is free: nodes then fall free whole, for those that need them whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from switchgear.planner.fleet import Ints, Reals
from switchgear.planner.model import WHOLE

#: To put off the emptying of a node for so long weighs as much as one more GPU that is free on it.
PER_GPU_S = 600.0
#: What is further away is not told apart.
PUT_OFF_S_MAX = 1e7


class Emptying:
    """When each node is expected to be empty. Shapes (nodes,)."""

    def __init__(self, nodes: int, now_s: float) -> None:
        self._empty_s: Reals = np.full(nodes, now_s)

    def add(self, rows: Ints | Sequence[int], end_s: Reals | float) -> None:
        """Jobs that end then are on these nodes; inf: nobody knows when. Shapes (seats,)."""
        np.maximum.at(self._empty_s, rows, end_s)

    def worth(self, end_s: float, free: Ints) -> Reals:
        """How good each node is for a job that ends then, in thousandths of a GPU. free: whole GPUs of each that nobody has."""
        put_off_s: Reals = np.clip(end_s - self._empty_s, 0.0, PUT_OFF_S_MAX)
        return (put_off_s / PER_GPU_S + free) * -float(WHOLE)
