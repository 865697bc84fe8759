"""A service's own traffic as a trace: the arrivals of a decision log."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from switchgear.autoscaler.decision_log import Head, Record, read
from switchgear.autoscaler.observation import Observation
from switchgear.autoscaler.simulate.trace import REQUESTS_MAX, Trace, trace_of
from switchgear.core.errors import Invalid, Reason


def recorded(lines: Iterable[str], name: str) -> Trace:
    """The requests that the log's observations tell of. Those of one entry came evenly spread and have its mean of prompt tokens; the length
    of answers is the mean of what completed in the whole log, since nobody knows it of a request that comes.

    Raises Invalid, with the line, when it is no decision log or has no arrival.
    """
    rows: list[tuple[float, int]] = []
    completed = outputs = 0
    unix_s = None
    begin_s = None
    for entry in read(lines, name):
        if isinstance(entry, Head):
            continue
        seen = entry.seen
        if begin_s is None:
            begin_s = entry.now_s - seen.interval_s
            unix_s = None if seen.unix_s is None else seen.unix_s - seen.interval_s
        rows += _arrivals(entry, entry.now_s - begin_s)
        if len(rows) > REQUESTS_MAX:
            raise Invalid(f"{name} has more than {REQUESTS_MAX} requests; name fewer files", Reason.LIMIT_EXCEEDED)
        if seen.completed is not None and seen.completed.output_tokens is not None:
            completed += seen.completed.requests
            outputs += seen.completed.output_tokens
    if not rows:
        raise Invalid(f"{name} tells of no request that came; name a log of a time with traffic", Reason.BODY_INVALID)
    arrival_s, inputs = (np.array(column) for column in zip(*rows, strict=True))
    output_tokens = np.full(len(rows), round(outputs / completed) if completed else 1)
    return trace_of(name, arrival_s, inputs.astype(np.int64), output_tokens, start_unix_s=unix_s)


def _arrivals(record: Record, now_s: float) -> list[tuple[float, int]]:
    """When each came, and its prompt tokens."""
    found: list[tuple[float, int]] = []
    entries = _entries(record.seen)
    for (from_s, _, _), (until_s, requests, tokens) in pairwise([(record.seen.interval_s, 0, 0), *entries]):
        step_s = max(0.0, from_s - until_s) / max(1, requests)
        found += [(max(0.0, now_s - until_s - step_s * at), round(tokens / requests)) for at in range(requests)]
    return found


def _entries(seen: Observation) -> tuple[tuple[float, int, int], ...]:
    if seen.arrivals:
        return seen.arrivals
    if seen.arrived is None:
        return ()
    return ((0.0, seen.arrived.requests, seen.arrived.input_tokens or 0),)
