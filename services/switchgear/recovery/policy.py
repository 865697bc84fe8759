"""What to do about a fault. Pure: the job's budget and history in, a decision with its reason out. The rows are in `table`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from switchgear.recovery.model import Decision, Failure, Fault, Spec
from switchgear.recovery.table import (
    INFRASTRUCTURE,
    LEMON_FAULTS,
    LEMON_S,
    NO_PROGRESS_MAX,
    OFTEN_MAX,
    OFTEN_S,
    TABLE,
    When,
)

#: A restart that the job's own failure has used comes back after so much productive time: what fails once in an hour is worth a restart
#: each time, what fails more often has a cause that somebody should look for.
REFILL_NS = 3600 * 10**9
#: As many as the rules look back.
FAILURES_MAX = OFTEN_MAX


@dataclass(frozen=True, slots=True)
class Case:
    """All that counts for a decision.

    failures: oldest first, at least one unless `permanent` or of an inference job; the last one is what is decided about.
    restarts_used: by the job's own failures. bad_nodes: nodes of the placement with fatal evidence against them.
    permanent: no restart can help. older_checkpoint: one is known that is older than that of the last attempt.
    """

    spec: Spec
    failures: Sequence[Failure]
    restarts_used: int = 0
    bad_nodes: Sequence[str] = field(default=())
    permanent: bool = False
    older_checkpoint: bool = False

    @property
    def fault(self) -> Fault:
        return self.failures[-1].fault if self.failures else Fault.START_FAILED


def decide(case: Case) -> tuple[Decision, str]:
    """The decision of the first row of the table that fits, and its reason as a clause."""
    for row in TABLE:
        if case.fault in row.faults and (reason := _REASONS[row.when](case)):
            return row.decision, reason
    raise AssertionError("the table ends with a row for each fault")


def restarts_refilled(used: int, refilled_ns: int, productive_ns: int) -> tuple[int, int]:
    """Restarts still used after what progress has given back, and up to which productive time that was given. Nothing is saved up."""
    earned = (productive_ns - refilled_ns) // REFILL_NS
    if earned >= used:
        return 0, productive_ns
    return used - earned, refilled_ns + earned * REFILL_NS


def _same_checkpoint(case: Case) -> str:
    if len(case.failures) < 2 or not case.older_checkpoint:
        return ""
    before, last = case.failures[-2:]
    fits = (before.fault, before.resume_path) == (last.fault, last.resume_path) and last.resume_path
    if not fits or before.made_steps or last.made_steps or (last.fault not in INFRASTRUCTURE and _budget_used(case)):
        return ""
    return f"two attempts did not survive {last.resume_path}, which is good by all that can be checked"


def _same_error(case: Case) -> str:
    last, before = case.failures[-1], case.failures[-2] if len(case.failures) > 1 else None
    if before is None or before.signature != last.signature or last.progressed:
        return ""
    place = _same_place(before, last)
    # A script that writes checkpoints of its own may have gone on from another one each time.
    if not place or (before.step is None and last.step is None and last.saved):
        return ""
    return f"the same error came twice {place}, so a restart would meet it again"


def _same_place(before: Failure, last: Failure) -> str:
    """Where both failed, as the end of a clause; empty when that was not the same place, or nobody knows."""
    if before.step is not None and last.step is not None:
        return f"after step {last.step}" if before.step == last.step else ""
    if not before.made_steps and not last.made_steps:
        return "before the first step"
    if not last.count or before.count != last.count:
        return ""
    return f"after {last.count} step{'' if last.count == 1 else 's'} of its attempt"


def _no_progress(case: Case) -> str:
    recent = case.failures[-NO_PROGRESS_MAX:]
    # The program may be slow instead: it gets more time before it is given up.
    doubted = all(failure.fault is Fault.RANK_HUNG for failure in recent) and recent[-1].doubted_s is not None
    fits = len(recent) == NO_PROGRESS_MAX and not any(failure.progressed for failure in recent) and not doubted
    if not fits:
        return ""
    told = f"{NO_PROGRESS_MAX} attempts in a row made no"
    if not any(failure.step is None and failure.made_steps for failure in recent):
        return f"{told} new step"
    counts = ", ".join(str(failure.count) for failure in recent)
    return f"{told} step that is known to be new (they made {counts})"


def _too_often(case: Case) -> str:
    recent = case.failures[-OFTEN_MAX:]
    fits = len(recent) == OFTEN_MAX and recent[-1].time_ns - recent[0].time_ns < OFTEN_S * 1e9
    return f"{OFTEN_MAX} faults within {OFTEN_S / 60:.0f} minutes" if fits else ""


def _unfit_node(case: Case) -> str:
    return f"fatal evidence against {', '.join(case.bad_nodes)}" if case.bad_nodes else ""


def _no_other_node(case: Case) -> str:
    return (
        f"{case.bad_nodes[0]} cannot be used, and there is no other"
        if case.bad_nodes and not case.spec.replaceable
        else ""
    )


def _same_rank_hung(case: Case) -> str:
    if len(case.failures) < 2 or not case.spec.replaceable:
        return ""
    before, last = case.failures[-2:]
    fits = (before.fault, before.node, before.rank) == (last.fault, last.node, last.rank)
    place = _same_place(before, last)
    surer = last.doubted_s is None or (before.doubted_s is not None and before.doubted_s < last.doubted_s)
    if not fits or not place or not surer or not last.node or last.rank is None:
        return ""
    return f"rank {last.rank} hung there twice {place}"


def _lemon(case: Case) -> str:
    last = case.failures[-1]
    alike = [f for f in case.failures if f.fault is last.fault and last.time_ns - f.time_ns < LEMON_S * 1e9]
    fits = len(alike) >= LEMON_FAULTS and case.spec.nnodes > 1 and case.spec.replaceable
    if not fits or not last.node or any(failure.node != last.node for failure in alike):
        return ""
    return f"{len(alike)} faults of this kind within an hour were all on {last.node}"


def _budget_used(case: Case) -> str:
    most = case.spec.max_restarts
    return (
        f"all {most} restarts for the job's own failures are used up (--max-restarts)"
        if case.restarts_used >= most
        else ""
    )


def _always(case: Case) -> str:
    if case.fault in INFRASTRUCTURE:
        return "nothing speaks against the node"
    return f"restart {case.restarts_used + 1} of {case.spec.max_restarts} for the job's own failures"


#: The reason when the row fits; empty when it does not.
_REASONS: Mapping[When, Callable[[Case], str]] = {
    When.REPLICA: lambda case: (
        "a replica is not restarted: the autoscaler starts another" if case.spec.inference else ""
    ),
    When.PERMANENT: lambda case: "it cannot start like this" if case.permanent else "",
    When.SWITCHED_OFF: lambda case: (
        "restarts are switched off (--max-restarts 0)" if case.spec.max_restarts == 0 else ""
    ),
    When.SAME_CHECKPOINT: _same_checkpoint,
    When.SAME_ERROR: _same_error,
    When.NO_PROGRESS: _no_progress,
    When.TOO_OFTEN: _too_often,
    When.NO_OTHER_NODE: _no_other_node,
    When.UNFIT_NODE: _unfit_node,
    When.SAME_RANK_HUNG: _same_rank_hung,
    When.LEMON: _lemon,
    When.BUDGET_USED: _budget_used,
    When.ALWAYS: _always,
}
