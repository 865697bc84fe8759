"""A node whose connections end: replaced at once when it is certain that nothing on it makes another step, and else after its lease."""

from __future__ import annotations

from dataclasses import replace

from recovery_world import START_NS, World, kinds

from switchgear.recovery import model as m
from switchgear.recovery.faults import GROW_RETRY_S
from switchgear.recovery.hang import HEARD_S_MAX
from switchgear.recovery.machine import LAUNCHER_START_S, LEASE_MARGIN_S, LEASE_S, resume
from switchgear.recovery.translate import command_to_proto
from switchgear.recovery.watching import ENDED_LOUDLY_S, GONE_S

PEER_LOST = "RuntimeError: [gloo/transport/tcp/pair.cc] Connection closed by peer"
GONE = m.LauncherGone("nodes/b", "launcher-nodes/b")
WAITS = m.RankWatch(0, 2.0, m.Activity.COLLECTIVE, m.ProcessState.SLEEPING, count=10, step_s=0.5)


def running(count: int = 10) -> World:
    """Both nodes have been heard just now."""
    world = World()
    world.run_to(10)
    steps(world, count, count)
    world.happen(*(m.LauncherSeen(node, f"launcher-{node}") for node in world.state.launchers))
    return world


def steps(world: World, on_a: int, on_b: int) -> None:
    for node, count, numbers in (("nodes/a", on_a, (0, 1)), ("nodes/b", on_b, (2, 3))):
        now = START_NS + int(world.seconds * 1e9)
        told = tuple(m.RankStep(n, count, now, START_NS, START_NS, count) for n in numbers)
        world.happen(m.Progress(node, world.state.generation, told))


def asked(effects: list[m.Effect]) -> list[str]:
    return [effect.node for effect in effects if isinstance(effect, m.AskContact)]


def later(world: World, seconds: float = GONE_S) -> list[m.Effect]:
    world.seconds += seconds
    return world.happen(m.Tick())


def peers_end(world: World) -> None:
    world.happen(world.exit(0, 1, exception=PEER_LOST, step=10), world.exit(1, -9, by_us=True, step=10))
    world.stopped("nodes/a")


def test_a_node_lost_by_reset_is_replaced_as_soon_as_its_agent_is_known_to_be_gone_too() -> None:
    world = running()
    world.happen(GONE)
    peers_end(world)
    assert asked(later(world, GONE_S - 0.1)) == []
    assert asked(later(world, 0.1)) == ["nodes/b"]
    assert world.state.phase is m.Phase.STOPPING
    world.happen(m.ContactKnown("nodes/b", connected=False))
    assert world.state.phase is m.Phase.REPLACING
    incident = world.last_incident()
    assert (incident.fault, incident.node, incident.decision) == ("NODE_LOST", "nodes/b", "REPLACE_NODE")
    assert "rank 0 on nodes/a lost its connection to a peer" in incident.known_by
    assert world.state.outbox[-1].node == "nodes/b"


def test_a_launcher_whose_agent_is_there_is_waited_for() -> None:
    world = running()
    world.happen(GONE)
    peers_end(world)
    later(world)
    world.happen(m.ContactKnown("nodes/b", connected=True))
    assert world.state.phase is m.Phase.STOPPING
    assert asked(later(world)) == ["nodes/b"]


def test_a_launcher_that_is_back_is_not_lost_whatever_was_answered() -> None:
    world = running()
    world.happen(GONE)
    later(world)
    ranks = tuple((number, 100 + number, START_NS) for number in (2, 3))
    world.hello("nodes/b", generation=1, ranks_alive=ranks, all_gone=False)
    world.happen(m.ContactKnown("nodes/b", connected=False), m.Tick())
    assert world.state.incident is None


def test_peers_that_wait_in_a_collective_are_stopped_and_their_end_is_waited_for() -> None:
    world = running()
    world.happen(GONE, m.Watched("nodes/a", 1, (WAITS, replace(WAITS, rank=1))))
    later(world)
    effects = world.happen(m.ContactKnown("nodes/b", connected=False))
    assert "Stop" in kinds(effects)
    assert world.state.phase is m.Phase.STOPPING
    world.happen(world.exit(0, -9, by_us=True, step=10), world.exit(1, -9, by_us=True, step=10))
    assert world.state.phase is m.Phase.STOPPING
    world.stopped("nodes/a")
    assert world.state.phase is m.Phase.REPLACING


def test_nodes_that_are_cut_off_together_do_not_vouch_for_each_other() -> None:
    world = running()
    waits = tuple(replace(WAITS, rank=number, idle_s=1.0) for number in range(4))
    world.happen(m.Watched("nodes/a", 1, waits[:2]), m.Watched("nodes/b", 1, waits[2:]))
    world.happen(m.LauncherGone("nodes/a", "launcher-nodes/a"), GONE)
    later(world)
    world.happen(m.ContactKnown("nodes/b", connected=False), m.ContactKnown("nodes/a", connected=False))
    assert world.state.phase is m.Phase.RUNNING
    later(world, LEASE_S)
    assert world.state.phase is m.Phase.RUNNING


def test_what_a_witness_said_a_while_ago_counts_for_nothing() -> None:
    world = running()
    world.happen(GONE, m.Watched("nodes/a", 1, (WAITS, replace(WAITS, rank=1))))
    later(world, HEARD_S_MAX + 0.1)
    world.happen(m.ContactKnown("nodes/b", connected=False))
    assert world.state.phase is m.Phase.RUNNING


def test_a_witness_that_goes_before_its_ranks_have_ended_is_none() -> None:
    world = running()
    world.happen(GONE, m.Watched("nodes/a", 1, (WAITS, replace(WAITS, rank=1))))
    later(world)
    world.happen(m.ContactKnown("nodes/b", connected=False))
    assert world.state.phase is m.Phase.STOPPING
    assert world.state.launchers["nodes/b"].stopped_generation == 0
    world.happen(m.LauncherGone("nodes/a", "launcher-nodes/a"))
    later(world)
    world.happen(m.ContactKnown("nodes/a", connected=False), m.Tick())
    assert world.state.bad_nodes == {}


def test_a_node_that_was_given_up_and_is_back_with_its_ranks_has_to_stop_them_first() -> None:
    world = running()
    world.happen(GONE, world.exit(0, 1, exception=PEER_LOST, step=10))
    world.state.launchers["nodes/c"] = m.Launcher(connected=True, launcher_id="launcher-nodes/c")  # still stopping
    world.happen(world.exit(1, -9, by_us=True, step=10))
    world.stopped("nodes/a")
    later(world)
    world.happen(m.ContactKnown("nodes/b", connected=False))
    assert world.state.launchers["nodes/b"].stopped_generation == 1
    ranks = tuple((number, 100 + number, START_NS) for number in (2, 3))
    effects = world.hello("nodes/b", generation=1, ranks_alive=ranks, all_gone=False)
    assert [effect.node for effect in effects if isinstance(effect, m.Stop)] == ["nodes/b"]
    world.stopped("nodes/c")
    assert world.state.phase is m.Phase.STOPPING
    world.stopped("nodes/b")
    assert world.state.phase is m.Phase.REPLACING


def test_ranks_that_train_on_by_themselves_prove_nothing() -> None:
    world = running()
    world.happen(GONE)
    later(world)
    world.happen(m.ContactKnown("nodes/b", connected=False))
    assert world.state.phase is m.Phase.RUNNING
    # Stopped for another reason, they still are no witnesses.
    world.happen(world.exit(0, -9, step=10), world.exit(1, -9, by_us=True, step=10))
    world.stopped("nodes/a")
    later(world, LEASE_S - 5)
    assert world.state.phase is m.Phase.STOPPING


def test_ranks_that_were_seen_apart_need_each_other_for_no_step() -> None:
    world = running()
    steps(world, 14, 10)
    world.seconds += 1
    steps(world, 14, 11)  # three behind what the others had made a second ago
    assert world.state.attempt is not None
    assert world.state.attempt.drifted
    assert ["11 steps into the attempt" in e.message for e in world.effects if isinstance(e, m.Warn)] == [True]
    world.happen(m.LauncherSeen("nodes/b", "launcher-nodes/b"), GONE)
    peers_end(world)
    later(world)
    world.happen(m.ContactKnown("nodes/b", connected=False))
    assert world.state.phase is m.Phase.STOPPING
    later(world, LEASE_S + LEASE_MARGIN_S)
    assert world.state.phase is m.Phase.REPLACING


def test_reports_of_fast_steps_that_cross_on_the_way_are_not_taken_for_a_drift() -> None:
    world = running(1000)  # in two seconds
    steps(world, 1100, 1000)
    assert world.state.attempt is not None
    assert not world.state.attempt.drifted


def test_too_few_steps_in_common_prove_nothing() -> None:
    world = running(2)
    world.happen(GONE)
    peers_end(world)
    later(world)
    world.happen(m.ContactKnown("nodes/b", connected=False))
    assert world.state.phase is m.Phase.STOPPING


def test_a_node_that_fell_silent_first_keeps_its_lease() -> None:
    world = running()
    world.seconds += ENDED_LOUDLY_S + 0.1
    world.happen(m.LauncherSeen("nodes/a", "launcher-nodes/a"), GONE)
    peers_end(world)
    assert asked(later(world)) == []
    world.happen(m.ContactKnown("nodes/b", connected=False))
    assert world.state.phase is m.Phase.STOPPING


def test_a_recovery_that_was_started_again_knows_of_no_connection_that_ended() -> None:
    world = running()
    world.happen(GONE)
    peers_end(world)
    world.state = resume(world.state, m.Now(world.seconds, START_NS))
    assert asked(later(world)) == []
    world.happen(m.ContactKnown("nodes/b", connected=False))
    assert world.state.phase is m.Phase.STOPPING


def test_the_only_node_of_a_job_is_not_even_asked_about() -> None:
    world = World()
    world.state.spec = m.Spec(1, 2, 3, "")
    world.place("nodes/a")
    world.hello("nodes/a")
    world.happen(m.LauncherGone("nodes/a", "launcher-nodes/a"))
    assert asked(later(world)) == []


def test_a_node_on_which_nothing_runs_is_left_at_once() -> None:
    """Between two attempts there is no step to wait for."""
    world = running()
    world.happen(world.exit(2, -9, step=10), *(world.exit(n, -9, by_us=True, step=10) for n in (0, 1, 3)))
    world.stopped("nodes/a", "nodes/b")
    assert world.state.phase is m.Phase.CHECKING
    world.happen(GONE)
    assert asked(later(world)) == ["nodes/b"]
    world.happen(m.ContactKnown("nodes/b", connected=False))
    assert world.state.phase is m.Phase.REPLACING


def shrunk() -> World:
    """On one of two nodes, since the other was lost and none is free."""
    world = running()
    world.happen(GONE)
    peers_end(world)
    later(world)
    world.happen(m.ContactKnown("nodes/b", connected=False))
    world.place("nodes/a", epoch=2, joined={"nodes/a": 1})
    world.checked(step=5)
    return world


def test_where_no_node_is_free_the_job_goes_on_with_those_that_are_left() -> None:
    world = shrunk()
    start = [effect for effect in world.effects if isinstance(effect, m.Start)][-1]
    assert (start.node_rank, sorted(start.attempt.ranks), start.attempt.nodes) == (0, [0, 1], ["nodes/a"])
    wire = command_to_proto(start).start
    assert (wire.world_size, wire.nnodes) == (2, 1)
    incident = world.last_incident()
    assert incident.decision is m.Decision.SHRINK
    assert incident.decision_reason.endswith("no other is free, and the job may go on with 1 of 2")
    assert "without nodes/b and with fewer nodes, from the verified checkpoint of step 5" in incident.summary
    world.progress(11)
    world.happen(*(world.exit(rank, 0, step=80) for rank in (0, 1)))
    world.stopped("nodes/a")
    assert world.state.outcome is m.JobOutcome.SUCCEEDED
    assert world.state.outbox[-1].reason == "all 2 ranks ended with exit code 0"


def test_a_job_that_runs_on_fewer_nodes_asks_for_the_others_at_its_next_fault() -> None:
    world = shrunk()
    world.progress(11)
    world.happen(world.exit(0, -9, step=11), world.exit(1, -9, by_us=True, step=11))
    world.stopped("nodes/a")
    assert world.state.phase is m.Phase.REPLACING
    assert (world.state.outbox[-1].kind, world.state.outbox[-1].node) == ("replace", "")
    assert world.last_incident().decision is m.Decision.RESTART_IN_PLACE
    world.place("nodes/a", "nodes/c", epoch=3, joined={"nodes/a": 1})
    world.hello("nodes/c", epoch=3)
    world.checked(step=10)
    assert world.state.attempt is not None
    assert sorted(world.state.attempt.ranks) == [0, 1, 2, 3]


def test_a_job_on_fewer_nodes_does_not_wait_at_each_fault_for_a_node_that_never_reports() -> None:
    world = shrunk()

    def rank_killed() -> None:
        step = world.state.high_water_step + 1
        world.progress(step)
        world.happen(world.exit(0, -9, step=step), world.exit(1, -9, by_us=True, step=step))
        world.stopped("nodes/a")

    rank_killed()
    world.place("nodes/a", "nodes/c", epoch=3, joined={"nodes/a": 1})
    world.seconds += LAUNCHER_START_S + 1
    world.happen(m.LauncherSeen("nodes/a", "launcher-nodes/a"), m.Tick())
    assert world.state.phase is m.Phase.REPLACING
    world.place("nodes/a", epoch=4, joined={"nodes/a": 1})
    world.checked(step=10)
    rank_killed()
    assert world.state.phase is m.Phase.CHECKING
    world.checked(step=10)
    world.seconds += GROW_RETRY_S
    world.happen(m.LauncherSeen("nodes/a", "launcher-nodes/a"))
    rank_killed()
    assert world.state.phase is m.Phase.REPLACING


def test_a_node_that_joins_while_the_others_run_disturbs_nobody() -> None:
    world = shrunk()
    world.progress(11)
    world.place("nodes/a", "nodes/c", epoch=3, joined={"nodes/a": 1})
    world.hello("nodes/c", epoch=3)
    assert world.state.phase is m.Phase.RUNNING
    assert world.state.incident is None


def test_a_job_whose_node_comes_back_alone_is_not_said_to_go_on_without_it() -> None:
    world = running()
    world.happen(GONE)
    peers_end(world)
    later(world)
    world.happen(m.ContactKnown("nodes/b", connected=False))
    world.place("nodes/a", "nodes/b", epoch=2, joined={"nodes/a": 1})
    world.hello("nodes/b", epoch=2, who="newcomer")
    world.checked(step=5)
    assert "the job was restarted on nodes/b again, which is back, from" in world.last_incident().summary


def test_the_word_of_the_ranks_that_ended_counts_for_steps_made_again() -> None:
    """The lost node had reported step 7 last, while its peers had completed step 10 together with it."""
    world = running()
    world.seconds += 1
    steps(world, 12, 11)
    world.happen(m.LauncherSeen("nodes/b", "launcher-nodes/b"), GONE)
    world.happen(world.exit(0, 1, exception=PEER_LOST, step=13), world.exit(1, -9, by_us=True, step=13))
    world.stopped("nodes/a")
    later(world)
    world.happen(m.ContactKnown("nodes/b", connected=False))
    assert world.last_incident().failed_step == 13


def test_nodes_that_are_lost_between_two_attempts_are_no_attempts_without_progress() -> None:
    """Simulation, seed 20411: a job was given up after one attempt, while three nodes in a row were cut off before the next."""
    world = running()
    world.happen(world.exit(2, -9, step=10), *(world.exit(n, -9, by_us=True, step=10) for n in (0, 1, 3)))
    world.stopped("nodes/a", "nodes/b")
    node = "nodes/b"
    for epoch in range(2, 6):
        world.happen(m.LauncherGone(node, f"launcher-{node}"))
        later(world)
        world.happen(m.ContactKnown(node, connected=False))
        assert world.state.phase is m.Phase.REPLACING
        node = f"nodes/s{epoch}"
        world.place("nodes/a", node, epoch=epoch, joined={"nodes/a": 1})
        world.hello(node, epoch=epoch)
    assert len(world.state.failures) == 1


def test_a_node_that_the_engine_takes_away_is_left_once_its_ranks_have_ended_there() -> None:
    world = running()
    effects = world.happen(m.SeatsSeen(taken=(("nodes/b", "Slurm job 7 ended as NODE_FAIL"),)))
    assert {effect.node for effect in effects if isinstance(effect, m.Stop)} == {"nodes/a", "nodes/b"}
    world.stopped("nodes/a")
    assert world.state.phase is m.Phase.STOPPING  # its launcher is well, and has yet to say that nothing runs any more
    world.happen(m.SeatsSeen(taken=(("nodes/b", "told again"),)))
    world.stopped("nodes/b")
    incident = world.last_incident()
    assert (incident.fault, incident.node, incident.decision) == ("NODE_LOST", "nodes/b", "REPLACE_NODE")
    assert "Slurm job 7 ended as NODE_FAIL" in incident.summary
    call = world.state.outbox[-1]
    assert (call.kind, call.node, call.lost) == ("replace", "nodes/b", ())
    assert world.happen(m.SeatsSeen(taken=(("nodes/b", "told late"),))) == []


def test_of_the_nodes_that_are_replaced_those_are_told_that_were_heard_once_and_fell_silent() -> None:
    world = running()
    later(world, LEASE_S + LEASE_MARGIN_S + 1)
    calls = [call for call in world.state.outbox if call.kind == "replace"]
    assert {(call.node, call.lost) for call in calls} == {("nodes/a,nodes/b", ("nodes/a", "nodes/b"))}


def test_a_launcher_that_waits_for_the_engine_is_not_missed_before_it_may_start() -> None:
    world = World()
    world.place("nodes/a", "nodes/b")
    world.hello("nodes/a")
    world.happen(m.SeatsSeen(queued=frozenset({"nodes/b"})))
    for _ in range(20):
        world.happen(m.LauncherSeen("nodes/a", "launcher-nodes/a"))
        later(world, LAUNCHER_START_S / 5)
    assert world.state.phase is m.Phase.WAITING
    world.happen(m.SeatsSeen())
    for _ in range(6):
        assert world.state.phase is m.Phase.WAITING
        world.happen(m.LauncherSeen("nodes/a", "launcher-nodes/a"))
        later(world, LAUNCHER_START_S / 5)
    assert world.state.phase is m.Phase.REPLACING
    assert world.state.outbox[-1].lost == (), "a launcher that never came says nothing about its node"
