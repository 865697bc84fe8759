"""What would be decided now if things were different."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from switchgear.planner.changes import Change, Set, Submit, apply
from switchgear.planner.model import Decisions, Snapshot, Start, Wait
from switchgear.planner.plan import plan
from switchgear.planner.wording import named


@dataclass(frozen=True, slots=True)
class Difference:
    """Between two plans for the same time. Names of jobs, in the order in which they were decided.

    starts: start now and did not. starts_lost: the other way round. preempted: would have to leave and would not as things are; kept: the other
    way round. asked: what becomes of the jobs that the changes name, if they wait or start.
    """

    starts: tuple[str, ...] = ()
    starts_lost: tuple[str, ...] = ()
    preempted: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    asked: tuple[Start | Wait, ...] = ()

    @property
    def text(self) -> str:
        """In one or more sentences."""
        parts = [
            f"{named(names)} {would}"
            for names, would in (
                (self.starts, "would start now"),
                (self.starts_lost, "would not start now"),
                (self.preempted, "would have to leave"),
                (self.kept, "could stay"),
            )
            if names
        ]
        waits = [f"{one.job} would wait: {one.text}" for one in self.asked if isinstance(one, Wait)]
        return "; ".join((*parts, *waits)) or "the same jobs would start, and the same would have to leave"


def whatif(snapshot: Snapshot, changes: Sequence[Change], now_s: float) -> Difference:
    """What the changes do to the decisions. Two plans. Raises NotFound and Invalid as `changes.apply` does."""
    changed = apply(snapshot, changes)
    return compare(plan(snapshot, now_s), plan(changed, now_s), _named_in(changes))


def compare(before: Decisions, after: Decisions, asked: Iterable[str] = ()) -> Difference:
    """asked: jobs of which it is told in any case what becomes of them."""
    had, has = _starts(before), _starts(after)
    left, leave = _leaves(before), _leaves(after)
    decided: dict[str, Start | Wait] = {one.job.name: one for one in after.starts}
    decided |= {one.job: one for one in after.waits}
    return Difference(
        tuple(name for name in has if name not in had),
        tuple(name for name in had if name not in has),
        tuple(name for name in leave if name not in left),
        tuple(name for name in left if name not in leave),
        tuple(decided[name] for name in dict.fromkeys(asked) if name in decided),
    )


def _named_in(changes: Iterable[Change]) -> list[str]:
    return [change.job for change in changes if isinstance(change, (Set, Submit))]


def _starts(decisions: Decisions) -> dict[str, None]:
    return dict.fromkeys(start.job.name for start in decisions.starts)


def _leaves(decisions: Decisions) -> dict[str, None]:
    return dict.fromkeys(preempt.job for preempt in decisions.preemptions)
