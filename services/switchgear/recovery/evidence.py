"""What an attempt that is over tells of its job and its nodes, for those who place jobs."""

from __future__ import annotations

from collections.abc import Iterable

from switchgear.recovery import model as m
from switchgear.recovery.table import OF_A_NODE
from switchgear.v1alpha.placement_service_pb2 import ReportAttemptRequest


def known_of_attempts(job: str, records: Iterable[m.Effect]) -> list[ReportAttemptRequest]:
    """One of each attempt of which the records tell something new."""
    told: dict[int, ReportAttemptRequest] = {}

    def of(generation: int) -> ReportAttemptRequest:
        return told.setdefault(generation, ReportAttemptRequest(job=job, generation=generation))

    for record in records:
        match record:
            case m.SaveAttempt(attempt) if attempt.end_ns and attempt.ranks:
                request = of(attempt.generation)
                request.nodes[:] = attempt.nodes
                request.steps, request.seconds = pace(attempt)
            case m.SaveIncident(incident) if (
                incident.node and incident.fault in OF_A_NODE and incident.failed_generation
            ):
                of(incident.failed_generation).held_up_by = incident.node
    return list(told.values())


def pace(attempt: m.Attempt) -> tuple[int, float]:
    """Steps that its slowest rank made after its first, and the seconds that they took, without the writing of checkpoints."""
    paces = [
        (rank.count - 1, (rank.step_time_ns - rank.first_step_ns - rank.checkpoint_ns) / 1e9)
        for rank in attempt.ranks.values()
        if rank.first_step_ns and rank.count > 1
    ]
    if len(paces) < len(attempt.ranks):
        return 0, 0.0
    return min(paces, key=lambda one: one[0] / max(one[1], 1e-9))
