"""Hard traces of our own, drawn with a seed: what public traces do not have. `synthetic:NAME[:SEED]` names one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from switchgear.autoscaler.simulate.replica import SERVICE_UNIT_S
from switchgear.autoscaler.simulate.trace import Ints, Reals, Trace, trace_of
from switchgear.core.errors import Invalid, Reason

PREFIX = "synthetic:"
MINUTE_S, HOUR_S, DAY_S = 60.0, 3600.0, 86400.0
#: A Monday, 0:00 UTC.
MONDAY_UNIX_S = 1_700_438_400.0

Draw = np.random.Generator
Rate = Callable[[Reals], Reals]


def synthetic(text: str) -> Trace:
    """Of `synthetic:NAME` or `synthetic:NAME:SEED`; the same for the same text. Raises Invalid when there is none of that name."""
    name, _, seed = text.removeprefix(PREFIX).partition(":")
    if name not in KINDS or not (seed or "0").isdecimal():
        raise Invalid(
            f"there is no trace {text!r}; there are {', '.join(PREFIX + kind for kind in KINDS)}, each with :SEED, a number, if you like",
            Reason.BAD_FIELD,
        )
    made = KINDS[name].make(np.random.default_rng([int(seed or 0), *name.encode()]))
    return trace_of(
        text,
        made.arrival_s,
        made.input_tokens,
        made.output_tokens,
        in_seconds=made.in_seconds,
        start_unix_s=made.unix_s,
    )


@dataclass(frozen=True)
class _Made:
    arrival_s: Reals
    input_tokens: Ints
    output_tokens: Ints
    in_seconds: bool = False
    unix_s: float | None = None


@dataclass(frozen=True)
class Kind:
    """text: what is hard about it."""

    make: Callable[[Draw], _Made]
    text: str


def _poisson(draw: Draw, span_s: float, most_rps: float, rate_rps: Rate) -> Reals:
    """Arrivals at a rate that changes: thinned from a steady one at `most_rps`, which the rate must not exceed."""
    at_s = np.sort(draw.random(draw.poisson(span_s * most_rps)) * span_s)
    return at_s[draw.random(len(at_s)) * most_rps < rate_rps(at_s)]


def _lengths(draw: Draw, count: int, median: float, sigma: float) -> Ints:
    return np.maximum(1, draw.lognormal(np.log(median), sigma, count)).astype(np.int64)


def _chat(draw: Draw, at_s: Reals) -> _Made:
    return _Made(at_s, _lengths(draw, len(at_s), 700, 0.9), _lengths(draw, len(at_s), 200, 0.7))


def _office(at_s: Reals) -> Reals:
    """0 to 1 over a day that begins at 7:00: up at 9, a dip at lunch, down at 17."""
    hour = 7 + at_s / HOUR_S
    day = 1 / (1 + np.exp(-4 * (hour - 8.75))) / (1 + np.exp(4 * (hour - 17.25)))
    return np.asarray(0.03 + 0.97 * day * (1 - 0.4 * np.exp(-((hour - 12.5) ** 2) / 0.3)))


def _bursty_code(draw: Draw) -> _Made:
    span_s, mean_rps = 12 * HOUR_S, 3.0
    single_s = _poisson(draw, span_s, mean_rps * 0.6, lambda at_s: mean_rps * 0.6 * _office(at_s))
    # Two fifths of the requests come in bursts of half a second at 20 times the rate of the day.
    begin_s = _poisson(draw, span_s, mean_rps * 0.4 / 30, lambda at_s: mean_rps * 0.4 / 30 * _office(at_s))
    bursts = [begin + draw.random(draw.poisson(30)) * (0.2 + 0.6 * draw.random()) for begin in begin_s]
    at_s = np.concatenate((single_s, *bursts))
    inputs, outputs = _lengths(draw, len(at_s), 1500, 0.6), _lengths(draw, len(at_s), 20, 0.8)
    return _Made(at_s, inputs, outputs, unix_s=MONDAY_UNIX_S + 7 * HOUR_S)


def _tenfold_ramp(draw: Draw) -> _Made:
    most_rps = 1.2
    at_s = _poisson(
        draw, 2 * DAY_S, most_rps, lambda at_s: most_rps * 10 ** (-0.5 - 0.5 * np.cos(2 * np.pi * at_s / DAY_S))
    )
    inputs, outputs = _lengths(draw, len(at_s), 500, 0.8), _lengths(draw, len(at_s), 1800, 0.5)
    return _Made(at_s, inputs, outputs, unix_s=MONDAY_UNIX_S + 4 * HOUR_S)


def _rare_images(draw: Draw) -> _Made:
    def rate_rps(at_s: Reals) -> Reals:
        hour = at_s % DAY_S / HOUR_S
        return np.where((hour > 7) & (hour < 23), 1 / 500, 1 / (6 * HOUR_S))

    at_s = _poisson(draw, 14 * DAY_S, 1 / 500, rate_rps)
    seconds = np.clip(draw.lognormal(np.log(6), 0.5, len(at_s)), 1, 60)
    units = np.rint(seconds / SERVICE_UNIT_S).astype(np.int64)
    return _Made(at_s, np.ones(len(at_s), np.int64), units, in_seconds=True, unix_s=MONDAY_UNIX_S)


def _step(draw: Draw) -> _Made:
    return _chat(draw, _poisson(draw, 2 * HOUR_S, 15, lambda at_s: np.where(at_s < 40 * MINUTE_S, 3, 15)))


def _flash(draw: Draw) -> _Made:
    def rate_rps(at_s: Reals) -> Reals:
        since_s = at_s - HOUR_S
        spike = np.where(since_s < MINUTE_S, since_s / MINUTE_S, np.exp(-(since_s - MINUTE_S) / (10 * MINUTE_S)))
        return np.asarray(2 + 18 * np.where(since_s > 0, spike, 0))

    return _chat(draw, _poisson(draw, 2 * HOUR_S, 20, rate_rps))


def _sawtooth(draw: Draw) -> _Made:
    return _chat(draw, _poisson(draw, 3 * HOUR_S, 12, lambda at_s: 1 + 11 * (at_s % (20 * MINUTE_S)) / (20 * MINUTE_S)))


def _lull(draw: Draw) -> _Made:
    busy_s, nothing_s = 40 * MINUTE_S, HOUR_S
    at_s = _poisson(draw, 2 * busy_s, 8, lambda at_s: np.full(len(at_s), 8.0))
    return _chat(draw, np.where(at_s < busy_s, at_s, at_s + nothing_s))


def _heavy_tail(draw: Draw) -> _Made:
    at_s = _poisson(draw, 2 * HOUR_S, 4, lambda at_s: np.full(len(at_s), 4.0))
    inputs = np.minimum(100_000, 300 * (1 + draw.pareto(1.2, len(at_s)))).astype(np.int64)
    return _Made(at_s, inputs, _lengths(draw, len(at_s), 200, 0.7))


KINDS: Mapping[str, Kind] = {
    "bursty-code": Kind(_bursty_code, "code completion: short answers, bursts within a second, office hours"),
    "tenfold-ramp": Kind(_tenfold_ramp, "ten times the load of the night by day, long answers, two days"),
    "rare-images": Kind(_rare_images, "seconds of service each few minutes to hours, quiet nights, two weeks"),
    "step": Kind(_step, "five times the load for good"),
    "flash": Kind(_flash, "ten times the load within a minute, fading over half an hour"),
    "sawtooth": Kind(_sawtooth, "up twelve-fold in 20 minutes, down at once, again and again"),
    "lull": Kind(_lull, "an hour of nothing, then full load at once"),
    "heavy-tail": Kind(_heavy_tail, "prompts of Pareto lengths up to 100,000 tokens"),
}
