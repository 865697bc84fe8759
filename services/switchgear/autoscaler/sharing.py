"""What a service has of others and what it waits for, as one pass of the loop saw it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from switchgear.autoscaler import update
from switchgear.autoscaler.borrowing import Borrowed, borrowed
from switchgear.autoscaler.model import Loan, ReplicaRecord, ServiceRecord
from switchgear.autoscaler.standoff import Standoff


@dataclass(frozen=True, slots=True)
class Sharing:
    """outdated: replicas that still run what was before the last update."""

    standoffs: tuple[Standoff, ...] = ()
    loans: tuple[Borrowed, ...] = ()
    outdated: int = 0


def sharing(
    service: ServiceRecord,
    replicas: Sequence[ReplicaRecord],
    loans: Mapping[str, Loan],
    standoffs: tuple[Standoff, ...],
) -> Sharing:
    """Of one service. replicas: all of it that are stored. loans: of all jobs, by lender."""
    outdated = len(update.outdated(service, replicas))
    return Sharing(standoffs, borrowed(replicas, loans, service.spec.gpus_per_replica), outdated)
