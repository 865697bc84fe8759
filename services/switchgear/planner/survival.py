"""Curves of how long jobs run: the chance to run at least so long, in bins of time."""

from __future__ import annotations

import numpy as np

from switchgear.planner.fleet import Ints, Reals

#: Each edge is 15 % after the one before: one bin is as sharp as sweeps of equal jobs are. 1 s to 116 days.
EDGES_S: Reals = np.concatenate(([0.0], np.exp(np.arange(0.0, np.log(1e7), np.log(1.15)))))
BINS = len(EDGES_S)
#: Edges with the end that the last bin is taken to have.
ENDS_S: Reals = np.append(EDGES_S, EDGES_S[-1] * 1.15)


def bin_of(time_s: Reals) -> Ints:
    """The bin that holds each time, which is 0 or more; the last bin has no end."""
    found: Ints = np.searchsorted(EDGES_S, time_s, side="right") - 1
    return found


def at_risk(ended: Reals, censored: Reals) -> Reals:
    """Jobs that reached the end of each bin or ended in it. Shapes (..., BINS): jobs by the bin of their end, or of what they have run so far."""
    through: Reals = np.cumsum(ended[..., ::-1], axis=-1)[..., ::-1]
    passed: Reals = np.cumsum(censored[..., ::-1], axis=-1)[..., ::-1] - censored
    return through + passed


def survival(hazard: Reals) -> Reals:
    """Curves, shape (..., BINS + 1): the chance to run at least until each of ENDS_S. hazard: chance that who reached a bin ends in it."""
    stays: Reals = 1.0 - np.clip(hazard, 0.0, 1.0)
    alive = np.cumprod(stays, axis=-1)
    alive[..., -1] = 0.0
    return np.concatenate((np.ones((*hazard.shape[:-1], 1)), alive), axis=-1)


def beyond(curve: Reals, time_s: Reals) -> Reals:
    """The chance to run longer than time_s. curve: shape (jobs, BINS + 1); time_s: shape (jobs,)."""
    bin_ = np.clip(bin_of(time_s), 0, BINS - 1)
    row = np.arange(len(curve))
    part = np.clip((time_s - ENDS_S[bin_]) / (ENDS_S[bin_ + 1] - ENDS_S[bin_]), 0, 1)
    found: Reals = curve[row, bin_] * (1 - part) + curve[row, bin_ + 1] * part
    return found


def quantile(curve: Reals, level: Reals | float, elapsed_s: Reals | float = 0.0) -> Reals:
    """Run time in seconds from the start that is exceeded with chance 1 - level by who has run elapsed_s already. Shape (jobs,).

    level, elapsed_s: of all or of each. Linear inside a bin.
    """
    jobs = len(curve)
    elapsed = np.broadcast_to(np.asarray(elapsed_s, np.float64), (jobs,))
    target = beyond(curve, elapsed) * (1.0 - np.broadcast_to(np.asarray(level, np.float64), (jobs,)))
    bin_ = np.clip((curve > target[:, None]).sum(axis=1) - 1, 0, BINS - 1)
    row = np.arange(jobs)
    high, low = curve[row, bin_], curve[row, bin_ + 1]
    part = np.where(high > low, (high - target) / np.maximum(high - low, 1e-300), 0.0)
    found: Reals = ENDS_S[bin_] + np.clip(part, 0, 1) * (ENDS_S[bin_ + 1] - ENDS_S[bin_])
    return np.maximum(found, elapsed)


def mean_s(curve: Reals, most_s: Reals) -> Reals:
    """Expected run time in seconds, where more than most_s counts as most_s. Shapes (jobs,)."""
    width = np.diff(np.minimum(ENDS_S, most_s[:, None]), axis=1)
    found: Reals = ((curve[:, :-1] + curve[:, 1:]) / 2 * width).sum(axis=1)
    return found


def mean_left_s(curve: Reals, elapsed_s: Reals) -> Reals:
    """Seconds that are expected after elapsed_s. Shapes (jobs,)."""
    edges = np.maximum(ENDS_S, elapsed_s[:, None])
    area = ((curve[:, :-1] + curve[:, 1:]) / 2 * np.diff(edges, axis=1)).sum(axis=1)
    found: Reals = area / np.maximum(beyond(curve, elapsed_s), 1e-9)
    return found
