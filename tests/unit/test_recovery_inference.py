"""What recovery does for a replica of an inference service: it watches, tells why it ended, and restarts nothing."""

from __future__ import annotations

import pytest
from recovery_world import START_NS, kinds

from switchgear.recovery import model as m
from switchgear.recovery.machine import LAUNCHER_START_S, LEASE_MARGIN_S, LEASE_S, step

NODE = "nodes/a"


class Replica:
    """A replica on node `a`, driven event by event."""

    def __init__(self) -> None:
        spec = m.Spec(nnodes=1, nproc_per_node=1, max_restarts=0, checkpoint_directory="", inference=True)
        self.state = m.JobState("jobs/chat-r1", spec, START_NS)
        self.incidents: list[m.Incident] = []
        self.seconds = 0.0

    def happen(self, event: m.Event) -> list[m.Effect]:
        self.state, effects = step(self.state, event, m.Now(self.seconds, START_NS + int(self.seconds * 1e9)))
        self.incidents += [effect.incident for effect in effects if isinstance(effect, m.SaveIncident)]
        return effects

    def start(self) -> None:
        self.happen(m.Placed(1, (m.Slot(NODE, "127.0.0.1", 1),)))
        self.happen(m.LauncherHello(NODE, 1, "launcher", 0, reserved_port=5000))
        self.happen(m.RankStarted(NODE, 1, 0, 100, START_NS))

    def exit(self, code: int, **fields: str) -> None:
        self.happen(m.RankExited(1, m.Exit(0, NODE, 100, START_NS, code, by_us=False, **fields)))
        self.happen(m.AttemptStopped(NODE, 1, 5001, 0))

    def told(self) -> m.Call:
        return self.state.outbox[-1]


@pytest.fixture
def replica() -> Replica:
    replica = Replica()
    replica.start()
    return replica


def test_a_replica_runs_when_its_rank_has_started_for_it_makes_no_steps(replica: Replica) -> None:
    assert replica.state.phase is m.Phase.RUNNING
    assert (replica.told().kind, replica.told().outcome) == ("set_state", m.JobOutcome.RUNNING)


def test_a_replica_runs_when_a_launcher_comes_back_with_its_rank() -> None:
    replica = Replica()
    replica.happen(m.Placed(1, (m.Slot(NODE, "127.0.0.1", 1),)))
    replica.happen(m.LauncherHello(NODE, 1, "launcher", 0, reserved_port=5000))
    assert replica.state.phase is m.Phase.STARTING
    alive = ((0, 100, START_NS),)
    replica.happen(m.LauncherHello(NODE, 1, "launcher", 1, 5000, ranks_alive=alive, all_gone=False))
    assert replica.state.phase is m.Phase.RUNNING


def test_a_killed_replica_fails_with_its_reason_and_its_incident_is_resolved(replica: Replica) -> None:
    replica.exit(-9)
    assert replica.state.phase is m.Phase.ENDED
    assert (replica.told().kind, replica.told().outcome) == ("set_state", m.JobOutcome.FAILED)
    incident = replica.incidents[-1]
    assert (incident.state, incident.decision, incident.fault) == ("RESOLVED", "REPLACE_REPLICA", "RANK_KILLED")
    assert set(incident.timeline) == {"fault", "detected", "stopped", "decided"}
    assert incident.evidence == ["launcher on nodes/a: rank 0 (pid 100) ended with SIGKILL"]
    assert replica.told().reason == incident.summary == (
        "Rank 0 on nodes/a was killed by SIGKILL (its launcher saw process 100 end); "
        "a replica is not restarted: the autoscaler starts another."
    )  # fmt: skip


def test_a_replica_that_ends_by_itself_has_succeeded(replica: Replica) -> None:
    replica.exit(0)
    assert replica.told().outcome is m.JobOutcome.SUCCEEDED
    assert replica.incidents == []


def test_a_fatal_signal_of_its_node_ends_the_replica_and_cordons_the_node(replica: Replica) -> None:
    effects = replica.happen(m.NodeSignal(NODE, "nodes/a/gpus/0", "GPU_LOST", "XID 79", START_NS, simulated=True))
    assert "Stop" in kinds(effects)
    replica.happen(m.AttemptStopped(NODE, 1, 5001, 0))
    assert [call.kind for call in replica.state.outbox if call.kind != "set_state"] == ["cordon"]
    assert (replica.told().outcome, replica.incidents[-1].fault) == (m.JobOutcome.FAILED, "GPU_LOST")


def test_a_replica_on_a_silent_node_is_given_up_after_the_lease(replica: Replica) -> None:
    replica.seconds = LEASE_S + LEASE_MARGIN_S + 1
    replica.happen(m.Tick())
    assert replica.told().outcome is m.JobOutcome.FAILED
    assert (replica.incidents[-1].fault, replica.incidents[-1].decision) == ("NODE_LOST", "REPLACE_REPLICA")


def test_a_replica_whose_launcher_never_reports_fails_instead_of_being_placed_again() -> None:
    replica = Replica()
    replica.happen(m.Placed(1, (m.Slot(NODE, "127.0.0.1", 1),)))
    replica.seconds = LAUNCHER_START_S + 1
    replica.happen(m.Tick())
    assert replica.state.phase is m.Phase.ENDED
    assert replica.told().outcome is m.JobOutcome.FAILED


def test_a_replica_that_cannot_be_started_at_all_fails_too() -> None:
    replica = Replica()
    replica.happen(m.Placed(1, (m.Slot(NODE, "127.0.0.1", 1),)))
    replica.happen(m.LauncherHello(NODE, 1, "launcher", 0, reserved_port=5000))
    replica.happen(m.StartFailed(NODE, 1, "no such script", permanent=True, reserved_port=5001))
    assert replica.told().outcome is m.JobOutcome.FAILED
    assert "no such script" in replica.told().reason
