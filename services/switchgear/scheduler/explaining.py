"""Answers of the planner to questions, for the wire."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from switchgear.core.errors import Invalid, Reason
from switchgear.planner.changes import parse
from switchgear.planner.explain import explain
from switchgear.planner.model import Snapshot
from switchgear.planner.whatif import whatif
from switchgear.v1alpha import planner_service_pb2 as pb

#: What a person asks at once; each line may name thousands of jobs or nodes.
LINES_MAX = 100
LINE_LENGTH_MAX = 100_000
#: The last second that a timestamp can hold is in the year 9999.
_TIME_S_MAX = 253_402_300_799.0


def explained(snapshot: Snapshot, name: str, now_s: float) -> pb.Explanation:
    """name: of a job that waits or runs. Raises NotFound when it does neither."""
    found = explain(snapshot, name, now_s)
    return pb.Explanation(
        job=name,
        text=found.text,
        causes=[pb.BindingCause(cause=one.cause.value, text=one.text) for one in found.causes],
        changes=[
            pb.ProposedChange(
                text=one.text, change=str(one), cost_gpu_seconds=one.cost_gpu_s, instead_of=one.instead_of
            )
            for one in found.changes
        ],
        start=_timestamp(found.start_s),
        start_low=_timestamp(found.start_low_s),
        start_high=_timestamp(found.start_high_s),
    )


def answered(snapshot: Snapshot, changes: Sequence[str], now_s: float) -> pb.WhatIfResponse:
    """Raises Invalid when they cannot be read or made, and NotFound when they name what is not there."""
    if len(changes) > LINES_MAX or any(len(line) > LINE_LENGTH_MAX for line in changes):
        raise Invalid(
            f"at most {LINES_MAX} changes of {LINE_LENGTH_MAX} characters each", Reason.LIMIT_EXCEEDED, field="changes"
        )
    found = whatif(snapshot, parse(changes), now_s)
    return pb.WhatIfResponse(
        starts=found.starts,
        starts_lost=found.starts_lost,
        preempted=found.preempted,
        kept=found.kept,
        text=found.text,
    )


def _timestamp(time_s: float | None) -> Timestamp | None:
    # A job without a limit may run for ever: then there is no time to be said.
    if time_s is None or not time_s < _TIME_S_MAX:
        return None
    timestamp = Timestamp()
    timestamp.FromNanoseconds(round(time_s * 1e9))
    return timestamp
