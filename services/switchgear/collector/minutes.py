"""Older samples, a row of aggregates for each minute."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Aggregates = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Minutes:
    """Of each minute, oldest first; a minute without a value of a series is NaN.

    times: begin of the minute in ns, shape (t,). The others: shape (t, series).
    """

    times: npt.NDArray[np.int64]
    min: Aggregates
    mean: Aggregates
    max: Aggregates
    last: Aggregates
