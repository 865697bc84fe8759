"""Recorded requests as a load for a small machine: shorter, thinner, with shorter answers, in the same order and proportion."""

from __future__ import annotations

import csv
import gzip
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

#: A request asks for at most this many times the mean, so that one answer does not outlast the run.
TOKENS_SPREAD = 4
ROWS_MAX = 10_000_000
_COLUMNS = ("t_s", "output_tokens")


@dataclass(frozen=True, slots=True)
class Row:
    """A recorded request: seconds since the first, and what was generated for it."""

    at_s: float
    output_tokens: int


def read(path: Path) -> list[Row]:
    """Rows of a CSV file, with or without gzip, that has the columns t_s and output_tokens; others are passed over.

    Raises ValueError that names the line, OSError when it cannot be read.
    """
    rows: list[Row] = []
    for number, (at, tokens) in enumerate(_cells(path), 2):
        try:
            row = Row(float(at), max(1, int(tokens)))
        except ValueError:
            raise ValueError(f"{path}, line {number}: t_s must be a number and output_tokens a whole one") from None
        if not row.at_s >= (rows[-1].at_s if rows else 0.0):
            raise ValueError(f"{path}, line {number}: requests must be in the order of t_s, from 0 on")
        if len(rows) == ROWS_MAX:
            raise ValueError(f"{path} has more than {ROWS_MAX} requests; cut it")
        rows.append(row)
    if not rows or rows[-1].at_s <= 0:
        raise ValueError(f"{path} has no requests at different times")
    return rows


def fitted(
    rows: Sequence[Row], *, seconds: float, requests_per_second: float, tokens_mean: float, seed: int
) -> list[Row]:
    """The rows within `seconds`, of which so many are drawn that there are `requests_per_second` on average, with answers scaled so that
    they have `tokens_mean`, at most `TOKENS_SPREAD` times that. The same for the same arguments."""
    draw = random.Random(seed)
    share = min(1.0, seconds * requests_per_second / len(rows))
    pace = seconds / rows[-1].at_s
    scale = tokens_mean * len(rows) / sum(row.output_tokens for row in rows)
    longest = max(1, round(TOKENS_SPREAD * tokens_mean))
    return [
        Row(row.at_s * pace, min(longest, max(1, round(row.output_tokens * scale))))
        for row in rows
        if draw.random() < share
    ]


def _cells(path: Path) -> Iterator[tuple[str, str]]:
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
        reader = csv.DictReader(file)
        if not set(_COLUMNS) <= set(reader.fieldnames or ()):
            raise ValueError(f"{path} must begin with a line of columns that has {' and '.join(_COLUMNS)}")
        for row in reader:
            yield row["t_s"], row["output_tokens"]
