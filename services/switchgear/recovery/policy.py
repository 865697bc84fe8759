"""What to do about a fault. Pure: the job's budget and history in, a decision with its reason out."""

from __future__ import annotations

from collections.abc import Sequence

from switchgear.recovery.model import Decision, Failure, Fault

#: Attempts in a row that may fail without one new step, whatever the cause. Three, as in NVRx' progress tracker
#: (`max_no_progress_cycles`): the third proves that a restart does not help.
NO_PROGRESS_MAX = 3

#: Faults that are not the job's own: they do not use up its restarts.
INFRASTRUCTURE = frozenset({Fault.RANK_KILLED, Fault.GPU_LOST, Fault.NODE_FAULT, Fault.NODE_LOST, Fault.LAUNCHER_LOST})


def decide(
    failures: Sequence[Failure],
    *,
    max_restarts: int,
    restarts_used: int,
    bad_nodes: Sequence[str],
    permanent: bool = False,
    inference: bool = False,
) -> tuple[Decision, str]:
    """The decision about the last of `failures`, and its reason as a clause.

    failures: oldest first, at least one unless `permanent`. restarts_used: restarts that the job's own failures have used so far.
    bad_nodes: nodes of the placement with fatal evidence against them. permanent: no restart can help.
    inference: the job is a replica of an inference service.
    """
    if inference:
        return Decision.REPLACE_REPLICA, "a replica is not restarted: the autoscaler starts another"
    if permanent:
        return Decision.STOP, "it cannot start like this"
    last = failures[-1]
    if max_restarts == 0:
        return Decision.STOP, "restarts are switched off (--max-restarts 0)"
    before = failures[-2] if len(failures) > 1 else None
    if (
        last.fault not in INFRASTRUCTURE
        and before is not None
        and (before.signature, before.step) == (last.signature, last.step)
        and not last.progressed
    ):
        unknown = "at a step that is not known" if last.made_steps else "before the first step"
        step = unknown if last.step is None else f"after step {last.step}"
        return Decision.STOP, f"the same error came twice {step}, so a restart would meet it again"
    if len(failures) >= NO_PROGRESS_MAX and not any(f.progressed for f in failures[-NO_PROGRESS_MAX:]):
        return Decision.STOP, f"{NO_PROGRESS_MAX} attempts in a row made no new step"
    if bad_nodes:
        return Decision.REPLACE_NODE, f"fatal evidence against {', '.join(bad_nodes)}"
    if last.fault in INFRASTRUCTURE:
        return Decision.RESTART_IN_PLACE, "nothing speaks against the node"
    if restarts_used >= max_restarts:
        return Decision.STOP, f"all {max_restarts} restarts for the job's own failures are used up (--max-restarts)"
    return Decision.RESTART_IN_PLACE, f"restart {restarts_used + 1} of {max_restarts} for the job's own failures"
