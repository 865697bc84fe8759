"""What recovery does with its decisions when its policies may not act."""

from __future__ import annotations

import pytest
from recovery_world import START_NS, World, kinds

from switchgear.core.modes import Mode
from switchgear.recovery import model as m

SIGNAL = m.NodeSignal("nodes/a", "nodes/a/gpus/1", "GPU_LOST", "xid 79", START_NS, simulated=True)


def running(restart: Mode = Mode.ACT, cordon: Mode = Mode.ACT) -> World:
    world = World()
    world.run_to(20)
    world.happen(m.Tick(m.Modes(restart, cordon)))
    return world


def killed(world: World) -> m.Incident:
    world.happen(world.exit(1, -9))
    world.stopped("nodes/a", "nodes/b")
    return world.last_incident()


@pytest.mark.parametrize("mode", [Mode.OBSERVE, Mode.ADVISE])
def test_a_job_that_nobody_may_restart_fails_instead_of_hanging(mode: Mode) -> None:
    world = running(restart=mode)
    incident = killed(world)
    assert (world.state.phase, world.state.outcome) == (m.Phase.ENDED, m.JobOutcome.FAILED)
    assert (incident.state, incident.decision) == (m.IncidentState.ESCALATED, m.Decision.RESTART_IN_PLACE)
    assert world.state.outbox[-1].reason == incident.summary
    assert "switchgear policies recovery.restart --set act" in incident.summary
    assert world.state.restarts_used == 0


def test_advice_is_told_and_what_is_only_observed_is_not() -> None:
    advised = killed(running(restart=Mode.ADVISE)).summary
    assert "a restart in place is advised (nothing speaks against the node) and was not done" in advised
    assert "advised" not in killed(running(restart=Mode.OBSERVE)).summary


def test_a_job_that_stops_by_its_own_decision_says_so_in_every_mode() -> None:
    world = World(max_restarts=0)
    world.run_to(20)
    world.happen(m.Tick(m.Modes(restart=Mode.ADVISE)))
    assert killed(world).summary.endswith("the job was stopped: restarts are switched off (--max-restarts 0).")


@pytest.mark.parametrize(("mode", "told"), [(Mode.OBSERVE, False), (Mode.ADVISE, True)])
def test_a_broken_node_that_may_not_be_cordoned_is_avoided_by_its_job(mode: Mode, told: bool) -> None:
    world = running(cordon=mode)
    world.happen(SIGNAL)
    world.stopped("nodes/a", "nodes/b")
    assert "cordon" not in world.calls()
    replace = world.state.outbox[-1]
    assert (replace.kind, replace.node, replace.avoid) == ("replace", "nodes/a", ("nodes/a",))
    advice = [line for line in world.last_incident().evidence if line.startswith("advice: cordon nodes/a")]
    assert bool(advice) is told
    assert world.last_incident().decision is m.Decision.REPLACE_NODE


def test_a_broken_node_that_is_cordoned_needs_no_memory_of_its_job() -> None:
    world = running()
    world.happen(SIGNAL)
    world.stopped("nodes/a", "nodes/b")
    assert "cordon" in world.calls()
    assert world.state.outbox[-1].avoid == ()


def test_a_silent_node_is_replaced_and_may_come_back() -> None:
    world = running(cordon=Mode.ADVISE)
    world.seconds += 60
    world.happen(m.LauncherSeen("nodes/b", "launcher-nodes/b"), m.Tick())
    world.stopped("nodes/b")
    replace = world.state.outbox[-1]
    assert (replace.kind, replace.node, replace.avoid) == ("replace", "nodes/a", ())


def test_a_mode_holds_for_decisions_from_then_on() -> None:
    world = running(restart=Mode.ADVISE)
    world.happen(m.Tick(m.Modes()))
    killed(world)
    assert world.state.phase is not m.Phase.ENDED
    world.happen(m.Tick())
    assert world.state.modes == m.Modes()
    assert "Check" in kinds(world.effects)
