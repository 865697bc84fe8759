"""What the ledger says: shares, ratios and mean times of a job or of many, and the report for people."""

from __future__ import annotations

from switchgear.recovery import model as m
from switchgear.recovery.ledger import Bucket


def productive_ns(state: m.JobState) -> int:
    """Nanoseconds in which new steps were made on all GPUs that the job asked for, as far as they are booked."""
    ledger = state.ledger
    return ledger.gpu_ns.get(Bucket.PRODUCTIVE, 0) // ledger.gpus if ledger.gpus else 0


def goodput(state: m.JobState, now_unix_ns: int) -> float:
    """Share of the job's age in which new steps were made, 0 to 1."""
    wall_ns = (state.end_ns or now_unix_ns) - state.create_ns
    return min(1.0, productive_ns(state) / wall_ns) if wall_ns > 0 else 0.0
