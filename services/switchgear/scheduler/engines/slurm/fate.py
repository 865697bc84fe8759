"""What has become of a launcher that should run, by its Slurm jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from switchgear.scheduler.engines.slurm.look import is_gone
from switchgear.scheduler.engines.slurm.script import EXIT_NO_FOLDER
from switchgear.slurm.model import JobFlag, JobState, SlurmJob, SlurmNode

#: How long a job may wait for a reason that does not pass by itself before its launcher is taken elsewhere.
PATIENCE_S = 60.0
#: Reasons that pass by themselves: others run, are before it, or are just ending.
_PASSING = frozenset(
    {"", "None", "Resources", "Priority", "Dependency", "BeginTime", "Cleaning", "Prolog", "JobArrayTaskLimit"}
)
#: A launcher that ends by itself is started again after this, doubled with each end up to the maximum.
RESTART_S = 0.5
RESTART_S_MAX = 30.0
#: A launcher that failed within this time did not start, and so many failures in a row are no accident.
START_S = 10.0
START_FAILURES_MAX = 3
#: Slurm cancels what it cannot start, then drains the node: so soon after an end a look may have seen one without the other.
SETTLE_S = 2.0


class Kind(Enum):
    """What is to be done about it."""

    #: It has no Slurm job, and may have one now.
    MISSING = auto()
    #: It has one that waits or runs.
    ALIVE = auto()
    #: Its last job is ending, or was ended a moment ago.
    RESTING = auto()
    #: Slurm will not start it there. Nothing of it runs.
    UNSTARTABLE = auto()
    #: It had its place and cannot have it any more. Processes of it may still run.
    LOST = auto()
    #: Somebody has cancelled its job.
    CANCELLED = auto()


@dataclass(frozen=True, slots=True)
class Fate:
    """why: in a sentence; of one that is alive what it waits for, empty when it runs. job: the one that counts; the others of
    `doubles` are to go. by_node: its node failed."""

    kind: Kind
    why: str = ""
    job: SlurmJob | None = None
    doubles: tuple[int, ...] = ()
    by_node: bool = False


def fate(jobs: Sequence[SlurmJob], node: SlurmNode | None, now_s: float) -> Fate:
    """jobs: all of this launcher that Slurm knows, oldest first. node: where it should run; None: Slurm has no such node."""
    alive = [job for job in jobs if not job.has_ended and not is_ending(job)]
    if alive:
        return _alive(alive, node, now_s, started_before=any(job.start_s for job in jobs if job not in alive))
    if not jobs:
        return _absent(node)
    last = max(jobs, key=lambda job: (job.end_s or 0, job.id))
    if any(not job.has_ended for job in jobs):
        # Whatever kills it there, nobody sees it happen on a node that is gone.
        return Fate(Kind.LOST, _gone(node), by_node=True) if is_gone(node) else Fate(Kind.RESTING)
    if last.state in (JobState.NODE_FAIL, JobState.BOOT_FAIL) or is_gone(node):
        return Fate(Kind.LOST, f"Slurm job {last.id} ended as {last.state}: {_gone(node)}", by_node=True)
    if last.state == JobState.CANCELLED and not _never_ran(last, node):
        if last.nodes and last.end_s is not None and now_s < last.end_s + SETTLE_S:
            return Fate(Kind.RESTING)
        return Fate(Kind.CANCELLED, f"Slurm job {last.id} was cancelled there")
    return _ended(jobs, last, node, now_s)


def is_ending(job: SlurmJob) -> bool:
    """It does not run any more, and Slurm still cleans up after it."""
    return JobFlag.COMPLETING in job.flags


def _alive(alive: Sequence[SlurmJob], node: SlurmNode | None, now_s: float, *, started_before: bool) -> Fate:
    # A submission whose answer was lost came twice. `singleton` keeps the later one waiting.
    kept = min(alive, key=lambda job: (job.state == JobState.PENDING, job.id))
    doubles = tuple(job.id for job in alive if job is not kept)
    if kept.state != JobState.PENDING:
        return Fate(Kind.ALIVE, job=kept, doubles=doubles)
    detail = f" ({kept.reason_detail})" if kept.reason_detail else ""
    why = f"Slurm job {kept.id} waits: {kept.reason or 'no reason given'}{detail}"
    waited_s = now_s - (kept.submit_s if kept.submit_s is not None else now_s)
    if kept.reason.partition(",")[0] in _PASSING or waited_s <= PATIENCE_S:
        return Fate(Kind.ALIVE, why, kept, doubles)
    kind = Kind.LOST if started_before else Kind.UNSTARTABLE
    return Fate(kind, f"{why}, for {waited_s:.0f} s", kept, doubles, by_node=started_before and is_gone(node))


def _absent(node: SlurmNode | None) -> Fate:
    """It was never submitted, or so long ago that Slurm has forgotten: then recovery knows whether it runs."""
    if is_gone(node):
        return Fate(Kind.RESTING, _gone(node))
    if node is not None and node.is_drained:
        return Fate(Kind.UNSTARTABLE, f"the node is drained in Slurm: {node.reason or 'no reason given'}")
    return Fate(Kind.MISSING)


def _never_ran(job: SlurmJob, node: SlurmNode | None) -> bool:
    """Slurm has cancelled it by itself and drained the node, since a prolog failed: so it does with a job that it may not requeue.

    How long it ran tells nothing: a launcher that somebody cancels within a second ends with exit code 0 as well.
    """
    if job.state != JobState.CANCELLED or not job.nodes or job.exit_code or job.exit_signal:
        return False
    if node is None or not node.is_drained or node.reason_s is None or job.end_s is None:
        return False
    return abs(node.reason_s - job.end_s) <= SETTLE_S


def _ended(jobs: Sequence[SlurmJob], last: SlurmJob, node: SlurmNode | None, now_s: float) -> Fate:
    if node is not None and node.is_drained:
        kind = Kind.UNSTARTABLE if all(_never_ran(job, node) for job in jobs) else Kind.LOST
        return Fate(kind, f"it ended, and the node is drained in Slurm: {node.reason or 'no reason given'}")
    ended_s = last.end_s if last.end_s is not None else now_s
    failures = [job for job in jobs if _failed_to_start(job)]
    if len(failures) >= START_FAILURES_MAX and last in failures:
        return Fate(Kind.UNSTARTABLE if len(failures) == len(jobs) else Kind.LOST, _failure(last))
    if now_s < ended_s + min(RESTART_S * 2 ** min(len(jobs) - 1, 10), RESTART_S_MAX):
        return Fate(Kind.RESTING)
    return Fate(Kind.MISSING)


def _failed_to_start(job: SlurmJob) -> bool:
    if job.state != JobState.FAILED or job.start_s is None or job.end_s is None:
        return False
    return job.end_s - job.start_s <= START_S and job.exit_signal is None


def _failure(job: SlurmJob) -> str:
    said = {
        EXIT_NO_FOLDER: "it cannot make its folder there; let the user of the scheduler write under --state-dir on every node",
        126: "its interpreter cannot be run there",
        127: "its interpreter is not there; install Switchgear under the same path on every node",
    }.get(job.exit_code or 0, f"it ended with exit code {job.exit_code}; its launcher.log says why")
    return f"Slurm job {job.id}: {said}"


def _gone(node: SlurmNode | None) -> str:
    if node is None:
        return "Slurm has no such node any more"
    said = f" ({node.reason})" if node.reason else ""
    return f"Slurm has given the node up, it is {node.state}{said}"
