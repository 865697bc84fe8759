"""What time, and the ends of others, change for jobs: dependencies, time limits, and the moment to leave."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from switchgear.scheduler import jobs as job_life
from switchgear.scheduler.model import Dependency, JobRecord, JobState, Rules


def turned(jobs: Iterable[JobRecord], rules: Rules, now_unix_ns: int) -> Iterator[JobRecord]:
    """The jobs for which something has changed, as they are now."""
    alive = {job.name: job for job in jobs if not job.ended}
    ended = {**rules.ended, **{job.name: job.state for job in jobs if job.ended}}
    for job in alive.values():
        after = _now(job, alive, ended, now_unix_ns)
        if after is not job:
            yield after


def due_unix_ns(jobs: Iterable[JobRecord], rules: Rules, now_unix_ns: int) -> int | None:
    """When time alone will change something next; None: never."""
    times = [time for one in rules.reservations for time in (one.start_unix_ns, one.end_unix_ns)]
    for job in jobs:
        if job.ended:
            continue
        if job.state is JobState.PENDING:
            times.append(job.spec.not_before_unix_ns)
        elif job.turn.leaving:
            times.append(job.turn.leaving.by_unix_ns)
        if (left_s := _left_s(job, now_unix_ns)) is not None and job.placement.nodes:
            times.append(now_unix_ns + round(left_s * 1e9))
    return min((time for time in times if time > now_unix_ns), default=None)


def _now(
    job: JobRecord, alive: Mapping[str, JobRecord], ended: Mapping[str, JobState | None], now_unix_ns: int
) -> JobRecord:
    if job.turn.waits_for:
        job = _after(job, ended, now_unix_ns)
    if job.ended:
        return job
    left_s = _left_s(job, now_unix_ns)
    if left_s is not None and left_s <= 0:
        message = f"its time limit of {job.spec.time_limit_seconds:g} s is over"
        return job_life.moved(job, JobState.FAILED, message, now_unix_ns)
    if job.turn.leaving and job.turn.leaving.for_job and job.state is not JobState.PREEMPTED:
        taker = alive.get(job.turn.leaving.for_job)
        if taker is None or taker.state is not JobState.PENDING or taker.turn.held:
            return job_life.stays(job)
    return job_life.preempted(job, now_unix_ns) if job_life.must_leave(job, now_unix_ns) else job


def _after(job: JobRecord, ended: Mapping[str, JobState | None], now_unix_ns: int) -> JobRecord:
    waits_for: list[Dependency] = []
    for before in job.turn.waits_for:
        if before.job not in ended:
            waits_for.append(before)
        elif not before.any_end and ended[before.job] is not JobState.SUCCEEDED:
            how = f"ended as {ended[before.job]}" if ended[before.job] else "is not known any more"
            message = f"it was to start after {before.job} has SUCCEEDED, and that {how}"
            return job_life.moved(job, JobState.CANCELLED, message, now_unix_ns)
    if len(waits_for) == len(job.turn.waits_for):
        return job
    return replace(job, turn=replace(job.turn, waits_for=tuple(waits_for)))


def _left_s(job: JobRecord, now_unix_ns: int) -> float | None:
    limit_s = job.spec.time_limit_seconds
    return limit_s - job.turn.ran_s(now_unix_ns) if limit_s else None
