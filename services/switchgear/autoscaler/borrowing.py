"""GPUs that a service has of training jobs: who lent what to which replica, and for how long it is kept. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from switchgear.autoscaler.model import Loan, ReplicaRecord

#: What was borrowed is kept for so long: the lender pays a restart each time, and in less it would not make up for that. The planner in
#: turn lets it run for `Policy.guaranteed_run_s` (600 s) before it must leave again, so that a lender is interrupted every 900 s at most.
BORROWED_S_MIN = 300.0


@dataclass(frozen=True, slots=True)
class Borrowed:
    """GPUs of `lender` that the replica has."""

    lender: str
    replica: str
    gpus: int
    since_unix_ns: int


def borrowed(
    replicas: Iterable[ReplicaRecord], loans: Mapping[str, Loan], gpus_per_replica: int
) -> tuple[Borrowed, ...]:
    """What the live replicas of a service have of others, the oldest loan first.

    A lender gives up all of its nodes, of which the replica takes what it needs; several lenders may have had to leave for one replica.
    Of a replica that has ended (`replicas` has the newest of these as well) the next one that came after the loan has taken the place, once it
    has a node: until then it waits, and another job may get there first.
    """
    mine = {one.job: one for one in sorted(replicas, key=lambda one: one.number)}
    found: list[Borrowed] = []
    taken: dict[str, int] = {}
    for loan in sorted(loans.values(), key=lambda loan: (loan.since_unix_ns, loan.lender)):
        first = mine.get(loan.to_job)
        heirs = (
            one.name for one in mine.values() if first and first.number < one.number and one.node and not one.ended
        )
        replica = first.name if first and not first.ended else next((one for one in heirs if one not in taken), None)
        if replica is None:
            continue
        gpus = min(loan.gpus, gpus_per_replica - taken.get(replica, 0))
        if gpus > 0:
            taken[replica] = taken.get(replica, 0) + gpus
            found.append(Borrowed(loan.lender, replica, gpus, loan.since_unix_ns))
    return tuple(found)


def kept_until_unix_ns(loans: Sequence[Borrowed]) -> int:
    """Until when no replica goes: any GPU that gets free would be the lender's, whose restart has not paid yet. 0 without loans."""
    return max((one.since_unix_ns + round(BORROWED_S_MIN * 1e9) for one in loans), default=0)
