"""What attempts that are over tell those who place jobs."""

from __future__ import annotations

from switchgear.recovery import model as m
from switchgear.recovery.evidence import known_of_attempts, pace
from switchgear.v1alpha.placement_service_pb2 import ReportAttemptRequest

S = 1_000_000_000


def attempt(*ranks: m.Rank, end_ns: int = 9 * S) -> m.Attempt:
    return m.Attempt(
        generation=3,
        state=m.AttemptState.SUCCEEDED,
        nodes=["nodes/a"],
        start_ns=S,
        high_water_step=0,
        master_address="",
        master_port=0,
        ranks=dict(enumerate(ranks)),
        end_ns=end_ns,
    )


def rank(count: int, first_s: int, last_s: int, checkpoint_s: int = 0) -> m.Rank:
    return m.Rank(
        "nodes/a",
        count=count,
        first_step_ns=first_s * S,
        step_time_ns=last_s * S,
        checkpoint_ns=checkpoint_s * S,
    )


def incident(fault: m.Fault, node: str = "nodes/a") -> m.SaveIncident:
    return m.SaveIncident(m.Incident("i", "jobs/x", m.IncidentState.ACTING, fault, node, failed_generation=3))


def test_the_pace_is_that_of_the_slowest_rank_after_its_first_step_and_without_checkpoints() -> None:
    assert pace(attempt(rank(101, 100, 200), rank(101, 100, 220, checkpoint_s=10))) == (100, 110.0)


def test_no_pace_is_told_where_a_rank_makes_no_steps_that_are_seen() -> None:
    assert pace(attempt(rank(101, 100, 200), m.Rank("nodes/a"))) == (0, 0.0)
    assert pace(attempt(rank(1, 100, 100))) == (0, 0.0)


def test_an_attempt_is_told_when_it_is_over_with_the_node_that_a_fault_of_the_machine_accuses() -> None:
    over = m.SaveAttempt(attempt(rank(101, 100, 200)))
    told = ReportAttemptRequest(job="jobs/x", generation=3, nodes=["nodes/a"], steps=100, seconds=100)
    assert known_of_attempts("jobs/x", [m.SaveAttempt(attempt(rank(101, 100, 200), end_ns=0))]) == []
    assert known_of_attempts("jobs/x", [over]) == [told]
    assert known_of_attempts("jobs/x", [incident(m.Fault.RANK_EXCEPTION), over]) == [told]
    told.held_up_by = "nodes/a"
    assert known_of_attempts("jobs/x", [incident(m.Fault.GPU_LOST), over]) == [told]
    later = ReportAttemptRequest(job="jobs/x", generation=3, held_up_by="nodes/a")
    assert known_of_attempts("jobs/x", [incident(m.Fault.NODE_LOST)]) == [later]
