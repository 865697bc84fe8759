"""A decision log decided again: by the same policy, which must answer the same, or by another one, which says what it would have wanted.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from switchgear.autoscaler import policies
from switchgear.autoscaler.decision_log import Head, Record
from switchgear.autoscaler.observation import Decision, Scaler


@dataclass(frozen=True, slots=True)
class Difference:
    """The first decision that is not the one of the log. number: of the decision, from 1."""

    number: int
    now_s: float
    logged: Decision
    again: Decision

    @property
    def figures(self) -> list[tuple[str, float | None, float | None]]:
        """Figures of the evidence that differ: name, as logged, as again."""
        names = sorted({*self.logged.evidence, *self.again.evidence})
        pairs = ((name, self.logged.evidence.get(name), self.again.evidence.get(name)) for name in names)
        return [(name, before, now) for name, before, now in pairs if before != now]


@dataclass(slots=True)
class Outcome:
    """decisions: that were taken again. difference: the first; None: all are the same.

    wanted_replica_s, logged_replica_s: seconds times replicas that the policy wanted, and that the decisions of the log did, within
    bounds. kept, broken: requests of the log. changes: when the wish changed, and to what.
    """

    decisions: int = 0
    difference: Difference | None = None
    span_s: float = 0.0
    wanted_replica_s: float = 0.0
    logged_replica_s: float = 0.0
    kept: int = 0
    broken: int = 0
    changes: list[tuple[float, Decision]] = field(default_factory=list)


#: Changes that are told; a policy that makes more is told by their number alone.
CHANGES_MAX = 1000


def again(entries: Iterable[Head | Record]) -> Outcome:
    """The log's own policy, from the memory of each head on. Stops at the first difference. Raises Invalid when there is no such policy."""
    outcome = Outcome()
    scaler: Scaler = policies.live()
    for entry in entries:
        if isinstance(entry, Head):
            scaler = policies.scaler(entry.policy) if entry.memory is None else policies.restored(entry.memory)
            continue
        decision = scaler.decide(entry.now_s, entry.seen)
        _book(outcome, entry, decision)
        if decision != entry.decision:
            outcome.difference = Difference(outcome.decisions, entry.now_s, entry.decision, decision)
            break
    return outcome


def instead(entries: Iterable[Head | Record], scaler: Scaler) -> Outcome:
    """Another policy on what the log's policy saw. What it had changed is not in what it sees: it says what it would have wanted."""
    outcome = Outcome()
    for entry in entries:
        if isinstance(entry, Record):
            _book(outcome, entry, scaler.decide(entry.now_s, entry.seen))
    return outcome


def _book(outcome: Outcome, record: Record, decision: Decision) -> None:
    seen = record.seen
    wanted = seen.bounded(decision.replicas)
    interval_s = seen.interval_s if outcome.decisions else 0.0
    outcome.decisions += 1
    outcome.span_s += interval_s
    outcome.wanted_replica_s += interval_s * wanted
    outcome.logged_replica_s += interval_s * seen.bounded(record.decision.replicas)
    outcome.kept += seen.kept or 0
    outcome.broken += seen.broken or 0
    last = outcome.changes[-1][1].replicas if outcome.changes else None
    if wanted != last and len(outcome.changes) < CHANGES_MAX:
        outcome.changes.append((record.now_s, Decision(wanted, decision.cause, decision.text)))
