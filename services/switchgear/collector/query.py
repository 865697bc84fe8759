"""Values of many nodes at the same times: rows at full resolution where there are some, minutes before that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np

from switchgear.collector.blocks import Ids, Values
from switchgear.collector.minutes import MINUTE_NS, Minutes
from switchgear.collector.ring import Times
from switchgear.collector.selector import Selector
from switchgear.collector.series import SeriesKey
from switchgear.collector.windows import NodeWindow

#: Between these others have their turn.
SERIES_AT_ONCE = 64


class Reduction(Enum):
    """What becomes of the known values within a step."""

    LAST = auto()
    MIN = auto()
    MAX = auto()
    MEAN = auto()


@dataclass(frozen=True, slots=True)
class Grid:
    """Steps one after the other. start_ns: begin of the first, a multiple of step_ns."""

    start_ns: int
    step_ns: int
    steps: int

    @classmethod
    def covering(cls, start_ns: int, end_ns: int, step_ns: int) -> Grid:
        """From the step that `start_ns` is in to the one that `end_ns` is in."""
        first = start_ns // step_ns
        return cls(first * step_ns, step_ns, end_ns // step_ns - first + 1)

    @property
    def times(self) -> Times:
        return self.start_ns + np.arange(self.steps) * self.step_ns


@dataclass(frozen=True, slots=True)
class Found:
    """Series of one window. values: shape (steps, series), NaN where none is known."""

    window: NodeWindow
    series: tuple[SeriesKey, ...]
    values: Values


def select(windows: Iterable[NodeWindow], selector: Selector, grid: Grid, reduction: Reduction) -> Iterator[Found]:
    """What the selector means of each window, SERIES_AT_ONCE at a time: some milliseconds each at most."""
    for window in windows:
        meant = selector.columns(window)
        for begin in range(0, len(meant), SERIES_AT_ONCE):
            columns = meant[begin : begin + SERIES_AT_ONCE]
            keys = tuple(window.series[at] for at in columns.tolist())
            yield Found(window, keys, _values(window, columns, grid, reduction))


def _values(window: NodeWindow, columns: Ids, grid: Grid, reduction: Reduction) -> Values:
    times, rows = window.history(columns)
    values = _reduced(times, rows, grid, reduction)
    # A window that has room holds everything at full resolution. A step shorter than a minute has nothing from a minute that began before.
    if window.full and -(-grid.start_ns // MINUTE_NS) * MINUTE_NS < (first := int(times.min())):
        older = _of_minutes(window.minutes(columns), grid, reduction)
        begun = -(-(first - grid.start_ns) // grid.step_ns)
        values[:begun] = np.where(np.isnan(older[:begun]), values[:begun], older[:begun])
    return values


def _of_minutes(minutes: Minutes, grid: Grid, reduction: Reduction) -> Values:
    match reduction:
        case Reduction.LAST:
            rows = minutes.last
        case Reduction.MIN:
            rows = minutes.min
        case Reduction.MAX:
            rows = minutes.max
        case Reduction.MEAN:
            rows = minutes.mean
    return _reduced(minutes.times, rows.astype(np.float64), grid, reduction)


def _reduced(times: Times, rows: Values, grid: Grid, reduction: Reduction) -> Values:
    """Shape (steps, columns). times: ns, shape (n,), in any order; rows: shape (n, columns)."""
    values = np.full((grid.steps, rows.shape[1]), np.nan)
    if (times[1:] < times[:-1]).any():  # a clock was set back
        order = np.argsort(times, kind="stable")
        times, rows = times[order], rows[order]
    begin, end = np.searchsorted(times, (grid.start_ns, grid.start_ns + grid.steps * grid.step_ns))
    if begin == end:
        return values
    times, rows = times[begin:end], rows[begin:end]
    steps = (times - grid.start_ns) // grid.step_ns
    first = np.concatenate(([0], np.flatnonzero(steps[1:] != steps[:-1]) + 1))
    steps = steps[first]
    values[steps] = _reduced_parts(rows, first, reduction)
    if len(steps) <= steps[-1] - steps[0]:
        # Samples each second come now and then two in one second and none in the next: where none is missing, none shall seem so.
        near = (np.diff(steps) == 2) & (times[first[1:]] - times[first[1:] - 1] < 2 * grid.step_ns)
        values[steps[:-1][near] + 1] = values[steps[:-1][near]]
    return values


def _reduced_parts(rows: Values, first: Ids, reduction: Reduction) -> Values:
    """Of each part of the rows. first: where each part begins."""
    known = ~np.isnan(rows)
    match reduction:
        case Reduction.MIN:
            return np.fmin.reduceat(rows, first)
        case Reduction.MAX:
            return np.fmax.reduceat(rows, first)
        case Reduction.MEAN:
            with np.errstate(invalid="ignore"):
                return np.add.reduceat(np.where(known, rows, 0.0), first) / np.add.reduceat(
                    known, first, dtype=np.int64
                )
        case Reduction.LAST:
            at = np.maximum.reduceat(np.where(known, np.arange(len(rows))[:, None], -1), first)
            values: Values = np.where(at < first[:, None], np.nan, rows[at, np.arange(rows.shape[1])])
            return values
