"""Requests drawn from the rates of windows: as many as the rates say, as bursty as their gaps were, the same for the same seed."""

from __future__ import annotations

import numpy as np

from switchgear.autoscaler.simulate.trace import REQUESTS_MAX, Rates, Trace, trace_of
from switchgear.core.errors import Invalid, Reason

#: Of prompts and answers where no other trace lends its lengths: log-normal, in the range of public chat traces.
INPUT_TOKENS_MEDIAN, INPUT_TOKENS_SIGMA = 700.0, 1.0
OUTPUT_TOKENS_MEDIAN, OUTPUT_TOKENS_SIGMA = 200.0, 0.8


def sample(rates: Rates, scale: float, seed: int, lengths: Trace | None = None) -> Trace:
    """Requests at `scale` times the rates: gaps of a window are Gamma distributed with its rate and coefficient of variation (a renewal
    process, as ServeGen, arXiv 2505.09999, fits them); lengths are rows of `lengths`, drawn with replacement.

    Raises Invalid when these would be too many or none.
    """
    expected = float(rates.rate_rps.sum()) * rates.window_s * scale
    if not 1 <= expected <= REQUESTS_MAX:
        raise Invalid(
            f"{rates.name} at --scale {scale:g} makes {expected:.0f} requests; choose a scale that makes 1 to {REQUESTS_MAX}",
            Reason.LIMIT_EXCEEDED,
        )
    draw = np.random.default_rng(seed)
    found = [np.empty(0)]
    for number, (rate, cv) in enumerate(zip(rates.rate_rps * scale, rates.cv, strict=True)):
        if rate > 0:
            found.append(number * rates.window_s + arrivals(draw, rate, max(cv, 0.05), rates.window_s))
    arrival_s = np.concatenate(found)
    count = len(arrival_s)
    if lengths is not None:
        rows = draw.integers(0, len(lengths), count)
        inputs, outputs, in_seconds = lengths.input_tokens[rows], lengths.output_tokens[rows], lengths.in_seconds
    else:
        inputs = draw.lognormal(np.log(INPUT_TOKENS_MEDIAN), INPUT_TOKENS_SIGMA, count).astype(np.int64)
        outputs = draw.lognormal(np.log(OUTPUT_TOKENS_MEDIAN), OUTPUT_TOKENS_SIGMA, count).astype(np.int64)
        in_seconds = False
    return trace_of(rates.name, arrival_s, inputs, outputs, in_seconds=in_seconds, start_unix_s=rates.start_unix_s)


def arrivals(
    draw: np.random.Generator, rate_rps: float, cv: float, span_s: float
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Seconds within a span at which a Gamma renewal process has its events; cv 1: Poisson."""
    shape = 1 / cv**2
    found = np.empty(0)
    at_s = -draw.random() / rate_rps
    while at_s < span_s:
        more = at_s + np.cumsum(draw.gamma(shape, 1 / (rate_rps * shape), max(16, int(rate_rps * span_s * 0.3))))
        found, at_s = np.concatenate((found, more)), float(more[-1])
    return found[(found >= 0) & (found < span_s)]
