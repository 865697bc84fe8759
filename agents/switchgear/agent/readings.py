"""What a source says about one series at one moment: a number, or why there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache


class Kind(Enum):
    GAUGE = "gauge"
    COUNTER = "counter"


@dataclass(frozen=True, slots=True)
class SeriesKey:
    """Identity of a series. Build it with `series`, which keeps one object for each identity."""

    metric: str
    unit: str
    kind: Kind
    labels: tuple[tuple[str, str], ...]


# Twice what one agent may report, so that a tick builds no key anew.
@lru_cache(maxsize=8192)
def series(metric: str, unit: str, kind: Kind, *labels: tuple[str, str]) -> SeriesKey:
    """The series of `metric` with `labels`, in the order given."""
    return SeriesKey(metric, unit, kind, labels)


@dataclass(frozen=True, slots=True)
class Reading:
    """`value`, or None with the reason why it is unknown. Never 0 for what was not measured."""

    key: SeriesKey
    value: float | None
    reason: str = ""


def known(key: SeriesKey, value: float) -> Reading:
    """A measured value; NaN counts as unknown."""
    return Reading(key, None, "not a number") if math.isnan(value) else Reading(key, float(value))


def unknown(key: SeriesKey, reason: str) -> Reading:
    return Reading(key, None, reason[:200])
