"""The scheduler's part of a job's trace."""

from __future__ import annotations

from switchgear.core import trace
from switchgear.scheduler.model import JobRecord


def job_changed(before: JobRecord | None, after: JobRecord, now_unix_ns: int) -> None:
    """A committed write of a job: its time in the queue is a span that ends with the first placement."""
    if after.placement.epoch == 1 and not (before and before.placement.epoch):
        nodes = ",".join(seat.node for seat in after.placement.nodes)
        trace.record(
            "queue",
            after.create_time_unix_ns,
            now_unix_ns,
            parent=after.trace_parent,
            attributes={"switchgear.job": after.name, "switchgear.nodes": nodes},
        )
