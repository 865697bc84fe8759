"""Jobs that a cluster has seen: when each came, how long it ran and how many GPUs it had."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from switchgear.core.errors import Invalid, Reason
from switchgear.planner.fleet import Ints, Reals

#: Of the columns of the Philly extract; `gpu_time` and any others are not needed.
COLUMNS = ("timestamp", "duration", "num_gpus")
#: What tells jobs apart that are not alike; may be missing.
KEY_COLUMN = "cluster"


@dataclass(frozen=True)
class Trace:
    """Jobs by submission. submit_s: since the epoch. run_s: seconds. gpus: 1 or more. Shapes (jobs,). keys: what the jobs are like, "" unknown."""

    submit_s: Reals
    run_s: Reals
    gpus: Ints
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def only(self, rows: Ints) -> Trace:
        return Trace(self.submit_s[rows], self.run_s[rows], self.gpus[rows], tuple(self.keys[row] for row in rows))


def read(lines: Iterable[str]) -> Trace:
    """Lines of a CSV file with `COLUMNS`, and `KEY_COLUMN` where there is one. Times are taken for UTC when they do not say.

    Raises Invalid, with the number of the line and what to do about it.
    """
    table = csv.reader(lines)
    header = [name.strip() for name in next(table, [])]
    if missing := [name for name in COLUMNS if name not in header]:
        raise Invalid(
            f"line 1: no column {', '.join(missing)}; a header with {', '.join(COLUMNS)} is needed, {KEY_COLUMN} is optional",
            Reason.BODY_INVALID,
        )
    time_at, run_at, gpus_at = (header.index(name) for name in COLUMNS)
    key_at = header.index(KEY_COLUMN) if KEY_COLUMN in header else None
    rows: list[tuple[float, float, int, str]] = []
    for cells in table:
        if not any(cells):
            continue
        if len(cells) != len(header):
            raise _wrong(table.line_num, f"{len(cells)} cells, and the header has {len(header)}")
        key = cells[key_at] if key_at is not None else ""
        line = table.line_num
        rows.append((_time_s(cells[time_at], line), _run_s(cells[run_at], line), _gpus(cells[gpus_at], line), key))
    if not rows:
        raise Invalid("the file has no job", Reason.BODY_INVALID)
    rows.sort(key=lambda row: row[0])
    submit_s, run_s, gpus, keys = zip(*rows, strict=True)
    return Trace(np.array(submit_s), np.array(run_s), np.array(gpus, np.int64), keys)


def _time_s(text: str, line: int) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _wrong(line, f'timestamp "{text}" is no time; write it as 2017-10-09 12:30:00') from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _run_s(text: str, line: int) -> float:
    try:
        run_s = float(text)
    except ValueError:
        run_s = np.nan
    if not (0 <= run_s < np.inf):
        raise _wrong(line, f'duration "{text}" is no number of seconds from 0 on')
    # A job of no length would end before it is seen to run.
    return max(run_s, 1.0)


def _gpus(text: str, line: int) -> int:
    if not text.strip().isdecimal() or int(text) == 0:
        raise _wrong(line, f'num_gpus "{text}" is no whole number from 1 on')
    return int(text)


def _wrong(line: int, what: str) -> Invalid:
    return Invalid(f"line {line}: {what}", Reason.BODY_INVALID)
