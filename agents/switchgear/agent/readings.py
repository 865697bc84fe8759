"""What a source says about one series at one moment: a number, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import NamedTuple
from weakref import WeakValueDictionary


class Kind(Enum):
    GAUGE = "gauge"
    COUNTER = "counter"


# Compared and hashed as an object, of which `series` makes one for each identity: a tick looks up a thousand of them.
@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class SeriesKey:
    """Identity of a series. Build it with `series`, and keep it where it is asked for at each tick."""

    metric: str
    unit: str
    kind: Kind
    labels: tuple[tuple[str, str], ...]


_interned: WeakValueDictionary[tuple[str, str, str, tuple[tuple[str, str], ...]], SeriesKey] = WeakValueDictionary()


# The cache is for speed; that there is one object for each identity is for the dictionary behind it to hold.
@lru_cache(maxsize=4096)
def series(metric: str, unit: str, kind: Kind, *labels: tuple[str, str]) -> SeriesKey:
    """The series of `metric` with `labels`, in the order given; always the same object as long as somebody has it."""
    return _interned.setdefault((metric, unit, kind.value, labels), SeriesKey(metric, unit, kind, labels))


class Reading(NamedTuple):
    """`value`, or None with the reason why it is unknown. Never 0 for what was not measured."""

    key: SeriesKey
    value: float | None
    reason: str = ""


def known(key: SeriesKey, value: float) -> Reading:
    """A measured value; NaN counts as unknown."""
    value = float(value)
    return Reading(key, value) if value == value else Reading(key, None, "not a number")  # noqa: PLR0124 - NaN is not itself


def unknown(key: SeriesKey, reason: str) -> Reading:
    return Reading(key, None, reason[:200])
