"""What a free part of a GPU is worth: dual prices of the cutting-stock problem of the shares that are asked for.

P. C. Gilmore and R. E. Gomory, A linear programming approach to the cutting-stock problem, Operations Research 9 (1961).
"""

from __future__ import annotations

import numpy as np

from switchgear.planner.fleet import Ints, Reals
from switchgear.planner.model import WHOLE

#: Shares are rounded up to hundredths, so that at most as many sizes differ.
STEP_MILLI = 10
BINS = WHOLE // STEP_MILLI
#: Patterns tried at most, in 0.2 s. 30 sizes take 40 to 60, 60 sizes 200; prices that are not quite the best still serve.
_ROUNDS_MAX = 300


def gap_worth(gpu_milli: Ints, demand: Reals) -> Reals:
    """Worth of a free part of a GPU, in thousandths of one, for each of 0 to 1000 thousandths free.

    gpu_milli: shares that are asked for, below 1000; demand: how often each, in any unit. Shapes (shares,).
    """
    found: Reals = np.zeros(WHOLE + 1)
    found[WHOLE] = WHOLE
    if len(gpu_milli):
        size, item = np.unique(-(-gpu_milli // STEP_MILLI), return_inverse=True)
        price = share_prices(size, np.bincount(item.ravel(), demand).astype(np.float64))
        worth, _ = best_fill(np.maximum(price, 0), size)
        found[:WHOLE] = WHOLE * worth[np.arange(WHOLE) // STEP_MILLI]
    return found


def share_prices(size: Ints, demand: Reals) -> Reals:
    """Price of each size so that no GPU can hold more than 1, and the demand is worth most. Column generation.

    size: in steps, ascending, each once. Starts from patterns of one size each, and adds the dearest that fits a GPU while there is one worth
    more than the GPU.
    """
    basis = np.diag((BINS // size).astype(np.float64))
    amount = np.linalg.solve(basis, demand)
    price: Reals = np.linalg.solve(basis.T, np.ones(len(size))).astype(np.float64)
    for _ in range(_ROUNDS_MAX):
        worth, last = best_fill(price, size)
        if worth[BINS] <= 1 + 1e-9:
            break
        pattern = np.zeros(len(size))
        room = BINS
        while room > 0:
            if last[room] < 0:
                room -= 1
            else:
                pattern[last[room]] += 1
                room -= int(size[last[room]])
        direction = np.linalg.solve(basis, pattern)
        able = np.flatnonzero(direction > 1e-9)
        leaves = able[(amount[able] / direction[able]).argmin()]
        basis[:, leaves] = pattern
        amount = np.linalg.solve(basis, demand)
        price = np.linalg.solve(basis.T, np.ones(len(size))).astype(np.float64)
    return price


def best_fill(price: Reals, size: Ints) -> tuple[Reals, Ints]:
    """For each room of 0 to BINS steps: the worth of the dearest set of items that fits, repeated ones too, and its last item, -1 for none.

    size: ascending.
    """
    worth: Reals = np.zeros(BINS + 1)
    last: Ints = np.full(BINS + 1, -1, np.int64)
    able = np.searchsorted(size, np.arange(BINS + 1), side="right").tolist()
    for room in range(1, BINS + 1):
        worth[room] = worth[room - 1]
        if k := able[room]:
            gain = worth[room - size[:k]] + price[:k]
            item = int(gain.argmax())
            if gain[item] > worth[room] + 1e-12:
                worth[room], last[room] = gain[item], item
    return worth, last
