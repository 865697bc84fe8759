"""Pages in Prometheus' text format or OpenMetrics, to series and values. Pure.

prometheus_client's parser takes 80 µs for a line with eight labels. The part of a line that names its series is the same in each
scrape, so that parser sees it once, and all that is done for a known line is one match, one look-up and one float.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from switchgear.collector.imports.keys import series_key
from switchgear.collector.imports.settings import Metrics, chosen
from switchgear.collector.series import SeriesKey

#: Series whose names a page keeps: what a page may have, and as much again that has gone. Beyond it all are read anew.
_KNOWN_MAX = 65_536
MALFORMED = "malformed"
#: None: not chosen. A text: why it is rejected.
_Key = SeriesKey | str | None
_LINE = re.compile(
    r"""((?:[a-zA-Z_:][a-zA-Z0-9_:]*+[ \t]*+)?(?:\{(?:[^"}]|"(?:[^"\\]|\\.)*+")*+\})?)  # what names the series
    [ \t]*+(\S++)                                                                     # its value
    (?:[ \t]+-?[0-9.eE+]++)?[ \t]*+(?:\#.*)?""",  # time and exemplar, which are not used
    re.VERBOSE,
)
#: What DCGM writes for a value that it does not have, as an integer of 64 bits and as a float; old exporters show it.
_DCGM_BLANK_INT64, _DCGM_BLANK_FLOAT = 0x7FFFFFFFFFFFFFF0, 140737488355328.0


@dataclass(slots=True)
class Page:
    """What one scrape found. Each value belongs to the key at its place; NaN is unknown.

    rejected: lines and series that were not taken, by reason.
    """

    keys: list[SeriesKey] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)


class Reader:
    """Reads the pages of one target, one after another."""

    def __init__(self, metrics: Metrics = ()) -> None:
        self._metrics = metrics
        self._known: dict[str, _Key] = {}

    def read(self, text: str) -> Page:
        """Raises ValueError for what is no page of metrics: no line of it can be read, and it is not empty."""
        page = Page()
        counters = set[str]()
        unit_of = dict[str, str]()
        for line in text.split("\n"):
            if not line or line[0] == "#":
                _note(line, counters, unit_of)
                continue
            # What a line names ends at the same place in each scrape, so most lines need no look at their labels.
            end = line.rfind("} ") + 1 or line.find(" ")
            key = self._known.get(line[:end], "")
            if key is None:
                continue
            value = _number(line[end:]) if key else None
            if value is None:
                key, value = self._take_apart(line, counters, unit_of)
            if isinstance(key, SeriesKey) and value is not None:
                page.keys.append(key)
                page.values.append(value if value < _DCGM_BLANK_FLOAT else _unblanked(key, value))
            elif key is not None:
                page.rejected[str(key)] += 1
        if page.rejected[MALFORMED] and not page.keys:
            raise ValueError("no line of it is a metric in Prometheus' text format")
        return page

    def _take_apart(self, line: str, counters: set[str], unit_of: dict[str, str]) -> tuple[_Key, float | None]:
        match = _LINE.fullmatch(line.strip())
        if match is None or not match[1]:
            return MALFORMED if line.strip() else None, None
        series, value = match[1].rstrip(), _number(match[2])
        if value is None:
            return MALFORMED, None
        if series not in self._known:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known[series] = _key(series, self._metrics, counters, unit_of)
        return self._known[series], value


def _key(series: str, metrics: Metrics, counters: set[str], unit_of: dict[str, str]) -> _Key:
    try:
        (family,) = text_string_to_metric_families(f"{series} 0\n")
        (sample,) = family.samples
    except ValueError:
        return MALFORMED
    if not chosen(metrics, sample.name):
        return None
    name = sample.name
    is_counter = name in counters or name.removesuffix("_total") in counters
    return series_key(name, unit_of.get(name.removesuffix("_total"), ""), sample.labels.items(), counter=is_counter)


def _note(line: str, counters: set[str], unit_of: dict[str, str]) -> None:
    words = line.split(None, 3)
    if len(words) == 4:
        if words[1] == "TYPE" and words[3].strip() == "counter":
            counters.add(words[2])
        elif words[1] == "UNIT":
            unit_of[words[2]] = words[3].strip()


def _unblanked(key: SeriesKey, value: float) -> float:
    blank = value >= _DCGM_BLANK_INT64 or _DCGM_BLANK_FLOAT <= value < _DCGM_BLANK_FLOAT + 16
    return math.nan if blank and key.metric.upper().startswith("DCGM_") else value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
