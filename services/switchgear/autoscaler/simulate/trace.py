"""Requests of a trace: when each came and what it asked for. Five formats, told apart by their first line.

CSV `t_s,input_tokens,output_tokens`; CSV `t_s,service_s` of a model without tokens; CSV `t_s,rate_rps[,rate_weighted_cv]`, rates of
windows, which `rates.sample` makes requests of; JSON lines of Mooncake (`timestamp` in ms, `input_length`, `output_length`);
a decision log, which `recorded` reads. Any of them may be compressed with gzip; other columns and keys are ignored.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from switchgear.autoscaler.simulate.replica import SERVICE_UNIT_S, Request
from switchgear.core.errors import Invalid, Reason

#: A request takes 0.3 KB in a run, so the largest trace takes less than 1 GB.
REQUESTS_MAX = 3_000_000
LINE_CHARS_MAX = 1_000_000
TOKENS_MAX = 100_000_000
#: Seconds from here on are of the Unix epoch (March 1973): the trace has a date.
UNIX_S_MIN = 1e8
#: The largest value that makes sense of a column or key; beyond it the unit is another one, or a run would have no end.
MOST: Mapping[str, float] = {
    "t_s": 1e11,  # the year 5138: Unix times in milliseconds are beyond
    "timestamp": 1e14,
    "input_tokens": TOKENS_MAX,
    "output_tokens": TOKENS_MAX,
    "input_length": TOKENS_MAX,
    "output_length": TOKENS_MAX,
    "service_s": TOKENS_MAX * SERVICE_UNIT_S,
    "rate_rps": 1e6,
    "rate_weighted_cv": 100,
}

Reals = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Trace:
    """Requests by arrival. arrival_s: from the start of the trace. input_tokens, output_tokens: 1 or more. Shapes (requests,).

    in_seconds: of a model without tokens: one output token stands for `SERVICE_UNIT_S` of service. start_unix_s: when it began; None: unknown.
    """

    name: str
    arrival_s: Reals
    input_tokens: Ints
    output_tokens: Ints
    in_seconds: bool = False
    start_unix_s: float | None = None

    def __len__(self) -> int:
        return len(self.arrival_s)

    def requests(self) -> list[Request]:
        """New ones: a run writes to them."""
        rows = zip(self.arrival_s.tolist(), self.input_tokens.tolist(), self.output_tokens.tolist(), strict=True)
        return [Request(number, *row) for number, row in enumerate(rows)]

    def part(self, start_s: float = 0.0, duration_s: float = math.inf, speed: float = 1.0) -> Trace:
        """What came within `duration_s` from `start_s` on, `speed` times as fast.

        Raises Invalid when nothing did.
        """
        inside = (self.arrival_s >= start_s) & (self.arrival_s < start_s + duration_s)
        if not inside.any():
            raise Invalid(
                f"{self.name} has no request there; it has them from {self.arrival_s[0]:.0f} s to {self.arrival_s[-1]:.0f} s",
                Reason.BODY_INVALID,
            )
        return Trace(
            self.name,
            (self.arrival_s[inside] - start_s) / speed,
            self.input_tokens[inside],
            self.output_tokens[inside],
            self.in_seconds,
            None if self.start_unix_s is None else self.start_unix_s + start_s,
        )


@dataclass(frozen=True)
class Rates:
    """Requests a second in windows of equal length; cv: of the gaps between requests of a window. Shapes (windows,). start_unix_s: as of a trace."""

    name: str
    window_s: float
    rate_rps: Reals
    cv: Reals
    start_unix_s: float | None = None


def trace_of(
    name: str,
    arrival_s: Reals,
    input_tokens: Ints,
    output_tokens: Ints,
    *,
    in_seconds: bool = False,
    start_unix_s: float | None = None,
) -> Trace:
    """In order of arrival, whatever the order given; Unix times become seconds since the first request."""
    if len(arrival_s) and (first_s := float(arrival_s.min())) >= UNIX_S_MIN:
        start_unix_s, arrival_s = first_s, arrival_s - first_s
    order = np.argsort(arrival_s, kind="stable")
    input_tokens, output_tokens = np.maximum(input_tokens, 1), np.maximum(output_tokens, 1)
    return Trace(name, arrival_s[order], input_tokens[order], output_tokens[order], in_seconds, start_unix_s)


def read(path: Path) -> Trace | Rates:
    """The file, in any of the formats. Raises Invalid, with its name, the line and what to do about it; OSError when it cannot be read."""
    with path.open("rb") as raw:
        packed = raw.peek(2)[:2] == b"\x1f\x8b"
        with io.TextIOWrapper(gzip.open(raw) if packed else raw, encoding="utf-8-sig", newline="") as file:
            try:
                return read_lines(_lines(file, path.name), path.name)
            except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error, csv.Error) as error:
                raise Invalid(
                    f"{path.name} is no whole text file ({error}); give CSV or JSON lines, plain or packed with gzip",
                    Reason.BODY_INVALID,
                ) from None


def read_lines(lines: Iterator[str], name: str) -> Trace | Rates:
    """As `read`, of lines."""
    first = next(lines, "")
    if first.lstrip().startswith('{"log"'):
        from switchgear.autoscaler.simulate.recorded import recorded

        return recorded(chain((first,), lines), name)
    if first.lstrip().startswith("{"):
        return _mooncake(chain((first,), lines), name)
    header = [cell.strip() for cell in next(csv.reader([first]), [])]
    if {"t_s", "rate_rps"} <= set(header):
        columns = ("t_s", "rate_rps", *(["rate_weighted_cv"] if "rate_weighted_cv" in header else []))
        return _rates(name, *_columns(header, columns, lines, name))
    if {"t_s", "service_s"} <= set(header):
        arrival_s, service_s = _columns(header, ("t_s", "service_s"), lines, name)
        units = np.rint(service_s / SERVICE_UNIT_S).astype(np.int64)
        return trace_of(name, arrival_s, np.ones(len(units), np.int64), units, in_seconds=True)
    if {"t_s", "input_tokens", "output_tokens"} <= set(header):
        arrival_s, inputs, outputs = _columns(header, ("t_s", "input_tokens", "output_tokens"), lines, name)
        return trace_of(name, arrival_s, inputs.astype(np.int64), outputs.astype(np.int64))
    columns_needed = "columns t_s,input_tokens,output_tokens or t_s,service_s or t_s,rate_rps are needed"
    raise _wrong(name, 1, f"{columns_needed}, not {first.strip()[:80]!r}")


def _lines(file: TextIO, name: str) -> Iterator[str]:
    number = 0
    while line := file.readline(LINE_CHARS_MAX + 1):
        number += 1
        if len(line) > LINE_CHARS_MAX:
            raise Invalid(
                f"{name}, line {number}: it has more than {LINE_CHARS_MAX} characters; give CSV or JSON lines, one request a line",
                Reason.LIMIT_EXCEEDED,
            )
        yield line


def _columns(header: Sequence[str], names: Sequence[str], lines: Iterator[str], source: str) -> list[Reals]:
    """Of the rows behind the header; each a number from 0 to `MOST`. source: what errors call the file."""
    places = [(name, header.index(name)) for name in names]
    found = [array("d") for _ in names]
    table = csv.reader(lines)
    for cells in table:
        if not cells:
            continue
        if len(cells) != len(header):
            what = f"{len(cells)} cells, and the header has {len(header)}; give one for each column"
            raise _wrong(source, table.line_num + 1, what)
        for (name, at), column in zip(places, found, strict=True):
            column.append(_number(cells[at], name, source, table.line_num + 1))
        _bound(len(found[0]), source)
    return _whole(found, source)


def _mooncake(lines: Iterable[str], name: str) -> Trace:
    found = [array("d") for _ in range(3)]
    keys = ("timestamp", "input_length", "output_length")
    number = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, Mapping):
            raise _wrong(
                name, number, "no JSON object; give one a line with timestamp (ms), input_length, output_length"
            )
        for key, column in zip(keys, found, strict=True):
            if key not in row:
                raise _wrong(name, number, f"no {key}; timestamp (ms), input_length and output_length are needed")
            column.append(_number(str(row[key]), key, name, number))
        _bound(len(found[0]), name)
    arrival_ms, inputs, outputs = _whole(found, name)
    return trace_of(name, arrival_ms / 1e3, inputs.astype(np.int64), outputs.astype(np.int64))


def _rates(name: str, at_s: Reals, rate_rps: Reals, cv: Reals | None = None) -> Rates:
    steps = np.unique(np.round(np.diff(at_s), 6))
    if len(steps) != 1 or steps[0] <= 0:
        raise Invalid(
            f"{name}: t_s of rates must rise by the same step from line to line, the length of a window; "
            f"give two windows or more, in order, and 0 as the rate of an empty one",
            Reason.BODY_INVALID,
        )
    start_unix_s = float(at_s[0]) if at_s[0] >= UNIX_S_MIN else None
    return Rates(name, float(steps[0]), rate_rps, np.ones(len(at_s)) if cv is None else cv, start_unix_s)


def _whole(found: Sequence[array[float]], source: str) -> list[Reals]:
    if not found[0]:
        raise Invalid(f"{source} has no request; one line for each is needed", Reason.BODY_INVALID)
    return [np.array(column) for column in found]


def _number(text: str, name: str, source: str, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= MOST[name]:
        raise _wrong(
            source,
            line,
            f'{name} "{text[:40]}" is no number from 0 to {MOST[name]:g}; correct it, or the unit of the column',
        )
    return value


def _bound(rows: int, source: str) -> None:
    if rows > REQUESTS_MAX:
        raise Invalid(
            f"{source} has more than {REQUESTS_MAX} requests; cut the file into parts, or give its rates with --scale",
            Reason.LIMIT_EXCEEDED,
        )


def _wrong(source: str, line: int, what: str) -> Invalid:
    return Invalid(f"{source}, line {line}: {what}", Reason.BODY_INVALID)
