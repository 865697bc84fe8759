"""What has become of a launcher that should run, by its Slurm jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from switchgear.scheduler.engines.slurm.look import is_gone
from switchgear.scheduler.engines.slurm.script import EXIT_NO_FOLDER
from switchgear.scheduler.engines.slurm.settings import PATIENCE_S
from switchgear.slurm.model import JobFlag, JobState, SlurmJob, SlurmNode

#: Reasons that pass by themselves: what was there before is just ending, or its own start is under way.
_PASSING = frozenset({"Dependency", "BeginTime", "Cleaning", "Prolog", "JobArrayTaskLimit"})
#: Others have its node, or come before it. Without a reason it has not been looked at, since others have been first.
_BEHIND = frozenset({"", "None", "Resources", "Priority"})
#: So Slurm 22.05 may also say when another job has the node, or may get it. With the second word nobody waits in line.
_NOT_AVAILABLE = "ReqNodeNotAvail"
_MAINTENANCE = "maintenance"
#: Its slurmd could not start the script.
_LAUNCH_FAILURE = "JobLaunchFailure"
#: A launcher that ends by itself is started again after this, doubled with each end up to the maximum.
RESTART_S = 0.5
RESTART_S_MAX = 30.0
#: A launcher that failed within this time did not start, and so many failures in a row are no accident.
START_S = 10.0
START_FAILURES_MAX = 3


class Kind(Enum):
    """What is to be done about it."""

    #: It has no Slurm job, and may have one now.
    MISSING = auto()
    #: It has one that waits or runs.
    ALIVE = auto()
    #: Its last job is ending, or was ended a moment ago.
    RESTING = auto()
    #: It has waited for too long for a node that others have. Nothing of it runs.
    WITHHELD = auto()
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


def fate(jobs: Sequence[SlurmJob], node: SlurmNode | None, now_s: float, patience_s: float = PATIENCE_S) -> Fate:
    """jobs: all of this launcher that Slurm knows, oldest first. node: where it should run; None: Slurm has no such node."""
    alive = [job for job in jobs if not job.has_ended and not is_ending(job)]
    if alive:
        # Slurm writes a start into one that was cancelled in the queue, too.
        started_before = any(job.nodes and not _never_ran(job) for job in jobs if job not in alive)
        return _alive(alive, node, now_s, patience_s, started_before=started_before)
    if not jobs:
        return _absent(node)
    jobs = [job for job in jobs if not _was_double(job, jobs)]
    last = max(jobs, key=lambda job: (job.end_s or 0, job.id))
    if any(not job.has_ended for job in jobs):
        # Whatever kills it there, nobody sees it happen on a node that is gone.
        return Fate(Kind.LOST, _gone(node), by_node=True) if is_gone(node) else Fate(Kind.RESTING)
    if last.state in (JobState.NODE_FAIL, JobState.BOOT_FAIL) or is_gone(node):
        return Fate(Kind.LOST, f"Slurm job {last.id} ended as {last.state}: {_gone(node)}", by_node=True)
    if last.state == JobState.CANCELLED and not _never_ran(last):
        return Fate(Kind.CANCELLED, f"Slurm job {last.id} was cancelled there")
    return _ended(jobs, last, node, now_s)


def is_ending(job: SlurmJob) -> bool:
    """It does not run any more, and Slurm still cleans up after it."""
    return JobFlag.COMPLETING in job.flags


def is_behind(job: SlurmJob) -> bool:
    """It waits in Slurm's queue for others to end, or to go first."""
    if job.state != JobState.PENDING:
        return False
    maintenance = _MAINTENANCE in f"{job.reason} {job.reason_detail}".lower()
    return _word(job) in _BEHIND or (_word(job) == _NOT_AVAILABLE and not maintenance)


def what_for(job: SlurmJob) -> str:
    """What a job that is not held waits for, in a sentence."""
    detail = f" ({job.reason_detail})" if job.reason_detail else ""
    return f"Slurm job {job.id} waits: {job.reason or 'no reason given'}{detail}"


def _word(job: SlurmJob) -> str:
    return job.reason.partition(",")[0]


def _alive(
    alive: Sequence[SlurmJob], node: SlurmNode | None, now_s: float, patience_s: float, *, started_before: bool
) -> Fate:
    # A submission whose answer was lost came twice. `singleton` keeps the later one waiting.
    kept = min(alive, key=lambda job: (job.state == JobState.PENDING, job.id))
    doubles = tuple(job.id for job in alive if job is not kept)
    if kept.state != JobState.PENDING:
        return Fate(Kind.ALIVE, job=kept, doubles=doubles)
    why = what_for(kept)
    waited_s = now_s - (kept.submit_s if kept.submit_s is not None else now_s)
    if _word(kept) in _PASSING or waited_s <= patience_s:
        return Fate(Kind.ALIVE, why, kept, doubles)
    if not started_before and is_behind(kept) and node is not None and node.is_up and not node.is_drained:
        return Fate(Kind.WITHHELD, f"Slurm holds it for another job ({_word(kept) or 'None'})", kept, doubles)
    if not started_before and (is_behind(kept) or _word(kept) == _NOT_AVAILABLE):
        return Fate(Kind.WITHHELD, f"Slurm does not give it now ({kept.reason_detail or kept.reason})", kept, doubles)
    kind = Kind.LOST if started_before else Kind.UNSTARTABLE
    return Fate(kind, f"{why}, for {waited_s:.0f} s", kept, doubles, by_node=started_before and is_gone(node))


def _absent(node: SlurmNode | None) -> Fate:
    """It was never submitted, or so long ago that Slurm has forgotten: then recovery knows whether it runs."""
    if is_gone(node):
        return Fate(Kind.RESTING, _gone(node))
    if node is not None and node.is_drained:
        return Fate(Kind.UNSTARTABLE, f"the node is drained in Slurm: {node.reason or 'no reason given'}")
    return Fate(Kind.MISSING)


def _was_double(job: SlurmJob, jobs: Sequence[SlurmJob]) -> bool:
    """It was cancelled in the queue while another one of its launcher was there: that was us (`Fate.doubles`), and no wish of anybody."""
    if job.state != JobState.CANCELLED or job.nodes:
        return False
    return any((other.nodes or other.id < job.id) and _together(other, job) for other in jobs)


def _together(one: SlurmJob, other: SlurmJob) -> bool:
    def before(first: SlurmJob, second: SlurmJob) -> bool:
        return first.end_s is not None and second.submit_s is not None and first.end_s <= second.submit_s

    return not before(one, other) and not before(other, one)


def _never_ran(job: SlurmJob) -> bool:
    """Slurm itself has cancelled it, since a prolog failed or its slurmd could not start it: so it ends a job that it may not requeue.

    Who is cancelled while it runs ends by a signal, or with the code that a launcher has then.
    """
    return job.state == JobState.CANCELLED and bool(job.nodes) and not job.exit_code and not job.exit_signal


def _ended(jobs: Sequence[SlurmJob], last: SlurmJob, node: SlurmNode | None, now_s: float) -> Fate:
    if node is not None and node.is_drained:
        kind = Kind.UNSTARTABLE if all(map(_never_ran, jobs)) else Kind.LOST
        return Fate(kind, f"it ended, and the node is drained in Slurm: {node.reason or 'no reason given'}")
    ended_s = last.end_s if last.end_s is not None else now_s
    failures = [job for job in jobs if _failed_to_start(job)]
    if len(failures) >= START_FAILURES_MAX and last in failures:
        return Fate(Kind.UNSTARTABLE if len(failures) == len(jobs) else Kind.LOST, _failure(last))
    if now_s < ended_s + min(RESTART_S * 2 ** min(len(jobs) - 1, 10), RESTART_S_MAX):
        return Fate(Kind.RESTING)
    return Fate(Kind.MISSING)


def _failed_to_start(job: SlurmJob) -> bool:
    if _never_ran(job) or job.reason == _LAUNCH_FAILURE:
        return True
    if job.state != JobState.FAILED or job.start_s is None or job.end_s is None:
        return False
    return job.end_s - job.start_s <= START_S and job.exit_signal is None


def _failure(job: SlurmJob) -> str:
    if _never_ran(job) or job.reason == _LAUNCH_FAILURE:
        return f"Slurm job {job.id} was ended by Slurm before it began; the logs of slurmctld and of the node's slurmd say why"
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
