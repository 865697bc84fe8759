"""The goodput ledger against the clock: whatever happens, each nanosecond is in one bucket, and is never taken back."""

from __future__ import annotations

from simworld.kernel import Violation

from switchgear.recovery import model as m
from switchgear.recovery.ledger import LOST, Bucket, Ledger, settled_at


def balance(before: m.JobState, after: m.JobState, now: m.Now) -> None:
    """Holds after each event; `now` is when it was taken. Raises Violation with the amounts."""
    old, new = before.ledger, after.ledger
    _require(_total(new) == new.gpus * (new.settled_ns - new.start_ns), "the buckets are not the settled time", new)
    _require(new.start_ns <= new.settled_ns <= new.at_ns, "settled in the future", new)
    _require(all(new.gpu_ns[bucket] >= booked for bucket, booked in old.gpu_ns.items()), "a bucket fell", new)
    lost = sum(booked for bucket, booked in new.gpu_ns.items() if bucket in LOST)
    blamed = sum(cost.lost_gpu_ns for cost in new.costs) + new.open_gpu_ns
    # Without an incident only the end of the last attempt is in these buckets.
    _require(0 <= lost - blamed <= new.gpu_ns.get(Bucket.STOP, 0), f"{lost} was lost and {blamed} is blamed", new)
    whole = settled_at(after, now)
    _require(_total(whole) == whole.gpus * ((after.end_ns or now.unix_ns) - after.create_ns), "not all is told", whole)
    if after.phase is m.Phase.ENDED:
        _require(new.settled_ns == new.at_ns and not new.open_gpu_ns, "open after the end", new)


def _total(ledger: Ledger) -> int:
    return sum(ledger.gpu_ns.values())


def _require(holds: bool, promise: str, ledger: Ledger) -> None:
    if not holds:
        raise Violation(f"ledger: {promise}: {ledger}")
