"""Answers of the planner to questions about one job, for the wire."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from switchgear.planner.model import Snapshot
from switchgear.planner.plan import plan
from switchgear.v1alpha import planner_service_pb2 as pb


def explained(snapshot: Snapshot, name: str, now_s: float) -> pb.Explanation:
    """name: of a job that waits or runs."""
    running = next((one for one in snapshot.running if one.job.name == name), None)
    if running is not None:
        where = ", ".join(seat.node for seat in running.seats)
        return pb.Explanation(job=name, text=f"it has {len(running.seats)} of {running.job.tasks} tasks on {where}")
    decisions = plan(snapshot, now_s)
    for start in decisions.starts:
        if start.job.name == name:
            return pb.Explanation(job=name, text=f"it starts now: {start.reason}" if start.reason else "it starts now")
    wait = next(one for one in decisions.waits if one.job == name)
    return pb.Explanation(
        job=name,
        text=wait.text,
        causes=[pb.BindingCause(cause=wait.cause.value, text=wait.text)],
        start=_timestamp(wait.start_s),
        start_low=_timestamp(wait.start_low_s),
        start_high=_timestamp(wait.start_high_s),
    )


def _timestamp(time_s: float | None) -> Timestamp | None:
    if time_s is None:
        return None
    timestamp = Timestamp()
    timestamp.FromNanoseconds(round(time_s * 1e9))
    return timestamp
