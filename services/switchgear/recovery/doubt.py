"""Which earlier verdicts make one about a hang doubtful: those that may have been about the same slow step. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from switchgear.recovery.model import Failure, Fault, Hang
from switchgear.recovery.table import NO_PROGRESS_MAX

#: Hangs at other places that no new step has followed count as well from so many on. Whatever is slow there shows itself in several
#: ways, or a restart does not help; either way the limits must grow until the job is through or given up.
OTHERS_MAX = NO_PROGRESS_MAX - 1


def hung_before(failures: Sequence[Failure], hang: Hang) -> int:
    """How many verdicts since the newest step that was new count against one about `hang`.

    failures: of the job while it has an incident, oldest first. A hang that is not known to have been another one is taken for the same.
    O(failures).
    """
    alike = hangs = 0
    saved = False
    for failure in reversed(failures):
        saved = saved or failure.saved
        if failure.fault is Fault.RANK_HUNG:
            hangs += 1
            alike += failure.hang is None or not _apart(hang, failure.hang, saved=saved)
        if failure.progressed:
            break
    return max(alike, hangs - OTHERS_MAX)


def _apart(one: Hang, other: Hang, *, saved: bool) -> bool:
    """Known to be two different hangs. saved: an attempt since the first of them wrote a checkpoint, that the later one may have begun at."""
    if not one.made_steps and not other.made_steps:
        return False  # a start goes through many places, and what makes one slow does so again
    if one.step is not None and other.step is not None:
        elsewhere = one.step != other.step
    else:
        elsewhere = one.step is other.step and one.count != other.count and not saved
    return elsewhere or _disjoint(one.ranks, other.ranks) or _disjoint(one.waits_in, other.waits_in)


def _disjoint(some: Sequence[object], others: Sequence[object]) -> bool:
    """Both are known and have nothing in common. Ranks that are slow, not stuck, end one by one: sets that overlap may be of one hang."""
    return bool(some) and bool(others) and not set(some) & set(others)
