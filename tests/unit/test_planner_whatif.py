"""What if: changes as lines of text, what they do to the decisions, and moves that pay for themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from switchgear.cli.main import main
from switchgear.core.errors import Invalid, NotFound
from switchgear.planner.changes import CHANGES_MAX, apply, parse
from switchgear.planner.defrag import defragment
from switchgear.planner.model import (
    Decisions,
    Ended,
    Job,
    Near,
    Node,
    Policy,
    Queue,
    Reservation,
    Running,
    Seat,
    Snapshot,
    Task,
)
from switchgear.planner.plan import plan
from switchgear.planner.records import snapshot_to_json
from switchgear.planner.simulate.clock import Arrival, Clock, NodesChange
from switchgear.planner.whatif import whatif

NOW_S = 7200.0
NODES = tuple(Node(f"nodes/n{at}", 8, "NVIDIA H100 80GB", topology=(f"l{at // 2}",)) for at in range(4))
WIDE = Task(gpus=8)


def running(name: str, node: str, *gpus: int, **fields: object) -> Running:
    job = Job(name, Task(gpus=len(gpus)), 0.0, **fields)  # type: ignore[arg-type]
    return Running(job, (Seat(node, gpus),), 0.0, 7000.0, 600.0)


SHUT = Node("nodes/shut", 8, "NVIDIA H100 80GB", closed="cordoned")
SNAPSHOT = Snapshot(
    (*NODES, SHUT),
    (Job("jobs/wide", WIDE, 100.0), Job("jobs/gang", WIDE, 200.0, tasks=4)),
    tuple(running(f"jobs/r{at}", f"nodes/n{at}", *range(8)) for at in range(4)),
    (Queue("queues/a", limit=64), Queue("queues/b")),
    (Reservation("reservations/r", frozenset({SHUT.name}), 1e6, 1e6 + 1),),
    ("leaf",),
)


@pytest.mark.parametrize(
    "line",
    [
        "set jobs/wide tasks=4 tasks-min=2 gpus=4 cpus=2.5 memory-gib=64 near=leaf:preferred time-limit=90m hold=yes",
        "set jobs/wide 'gpu-models=NVIDIA H100 80GB,A100' drop-labels=all tolerates=x,y excluded=none priority=-3",
        "submit jobs/new gpu-milli=500 queue=queues/b harvest=yes",
        "submit jobs/new mig-profile=1g.10gb after=jobs/wide one-a-node=no",
        "end jobs/r0 jobs/gang",
        "move jobs/r0 to nodes/n1:0,1,2,3,4,5,6,7",
        "open nodes/shut",
        "close nodes/n0 nodes/n1",
        "add 3 nodes/n0",
        "queue queues/a limit=none guaranteed=8 weight=2",
        "lift reservations/r",
        "spares 2",
    ],
)
def test_a_change_is_written_as_it_is_read_and_can_be_made(line: str) -> None:
    (change,) = parse([line])
    assert str(change) == line
    assert apply(SNAPSHOT, [change]) != SNAPSHOT


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("make it so", "write one of set, submit, end"),
        ("end", "needs more words"),
        ("set jobs/wide tasks", "write KEY=VALUE"),
        ("set jobs/wide size=3", "'size' is no setting; there are tasks, tasks-min, gpus"),
        ("set jobs/wide tasks=0", "write a number from 1 to"),
        ("set jobs/wide tasks=1.5", "write a whole number"),
        ("set jobs/wide tasks=nan", "write a number"),
        ("set jobs/wide hold=maybe", "write yes or no"),
        ("set jobs/wide near=leaf:maybe", "write levels"),
        ("set 'jobs/wide", "close each quotation mark"),
        ("move jobs/r0 nodes/n1", "write `move JOB to"),
        ("move jobs/r0 to nodes/n1:a", "write a whole number"),
        ("move jobs/r0 to nodes/n1:0", "name one for each, with as many GPUs"),
        ("add nodes/n0", "write `add N NODE`"),
        ("add 1000000 nodes/n0", "more than 100000 nodes"),
        ("queue queues/a limit=-1", "write a number"),
        ("submit jobs/r0 gpus=1", "jobs/r0 exists"),
        ("spares many", "write a whole number"),
        ("end x;" * (CHANGES_MAX + 1), "at most 1000 changes"),
    ],
)
def test_what_cannot_be_understood_or_made_is_told_with_what_to_write(line: str, remedy: str) -> None:
    with pytest.raises(Invalid) as caught:
        apply(SNAPSHOT, parse([line]))
    assert remedy in caught.value.message


@pytest.mark.parametrize("line", ["end jobs/x", "set x tasks=1", "open x", "lift x", "queue x weight=1", "add 1 x"])
def test_what_is_not_there_is_not_found(line: str) -> None:
    with pytest.raises(NotFound):
        apply(SNAPSHOT, parse([line]))


def told(*lines: str) -> str:
    return whatif(SNAPSHOT, parse(lines), NOW_S).text


def test_what_if_tells_who_would_start_who_would_not_and_who_would_leave() -> None:
    assert told("end jobs/r0") == "jobs/wide would start now"
    assert set(whatif(SNAPSHOT, parse(["add 5 nodes/n0"]), NOW_S).starts) == {"jobs/wide", "jobs/gang"}
    assert told("set jobs/r0 priority=0") == "the same jobs would start, and the same would have to leave"
    assert told("set jobs/wide priority=1").startswith("jobs/r0 would have to leave; jobs/wide would wait: others are")
    assert "jobs/try would wait: " in told("submit jobs/try gpus=4")
    assert told("submit jobs/try cpus=4") == "jobs/try would start now"
    free = apply(SNAPSHOT, parse(["end jobs/r0"]))
    assert whatif(free, parse(["close nodes/n0"]), NOW_S).text == "jobs/wide would not start now"
    stops = apply(SNAPSHOT, parse(["set jobs/wide priority=1"]))
    assert whatif(stops, parse(["end jobs/wide"]), NOW_S).kept == ("jobs/r0",)


#: Each of two nodes is half used; a leaf is whole but for one job.
PIECES = (running("jobs/p0", "nodes/n0", 0, 1, 2, 3), running("jobs/p1", "nodes/n2", 0, 1, 2, 3))
FULL = tuple(running(f"jobs/f{at}", f"nodes/n{at}", *range(8), preemptible=False) for at in (1, 3))
WAITS = Snapshot(NODES, (Job("jobs/wide", WIDE, 7000.0),), (*PIECES, *FULL), levels=("leaf",))


def test_a_move_makes_room_and_gains_more_than_it_costs() -> None:
    (move,) = defragment(WAITS, NOW_S)
    assert (move.job, move.for_job) == ("jobs/p0", "jobs/wide")
    assert move.seats == (Seat("nodes/n2", (4, 5, 6, 7)),)
    # Its checkpoint is awaited, so that the restart of 60 s is all that it loses; who waits would wait as long again as those ran.
    assert (move.cost_gpu_s, move.gain_gpu_s) == (4 * 60.0, 8 * 7200.0)
    after = plan(apply(WAITS, [move.change]), NOW_S)
    assert [start.job.name for start in after.starts] == ["jobs/wide"]


def test_the_gain_goes_by_how_long_jobs_ran_before() -> None:
    ended = tuple(Ended("", "", "", 4.0, 10_000.0, 100.0) for _ in range(200))
    (move,) = defragment(replace(WAITS, ended=ended), NOW_S)
    assert move.gain_gpu_s == pytest.approx(8 * 2800.0, rel=0.4)


def test_a_move_that_costs_more_than_it_gains_is_not_advised() -> None:
    soon = tuple(replace(one, job=replace(one.job, time_limit_s=NOW_S + 20)) for one in WAITS.running)
    assert defragment(replace(WAITS, running=soon), NOW_S) == ()


def test_nobody_is_moved_who_may_not_be_stopped_has_just_started_or_fits_nowhere_else() -> None:
    stay = tuple(replace(one, job=replace(one.job, preemptible=False)) for one in WAITS.running)
    assert defragment(replace(WAITS, running=stay), NOW_S) == ()
    assert defragment(replace(WAITS, policy=Policy(guaranteed_run_s=NOW_S + 1)), NOW_S) == ()
    bound = tuple(replace(one, job=replace(one.job, excluded=frozenset({"nodes/n0", "nodes/n2"}))) for one in PIECES)
    assert defragment(replace(WAITS, running=(*bound, *FULL)), NOW_S) == ()


def test_a_gang_that_needs_one_domain_is_made_room_for_and_nobody_is_moved_twice() -> None:
    nodes = tuple(Node(f"nodes/n{at}", 8, "H100", topology=(f"l{at // 2}",)) for at in range(8))
    used = tuple(running(f"jobs/p{at}", f"nodes/n{at}", *range(4)) for at in range(8))
    gangs = tuple(Job(f"jobs/g{at}", WIDE, 7000.0 + at, tasks=2, near=(Near("leaf"),)) for at in range(3))
    moves = defragment(Snapshot(nodes, gangs, used, levels=("leaf",)), NOW_S)
    assert [move.for_job for move in moves] == ["jobs/g0", "jobs/g0", "jobs/g1", "jobs/g1"]
    assert len({move.job for move in moves}) == 4
    after = plan(apply(Snapshot(nodes, gangs, used, levels=("leaf",)), [move.change for move in moves]), NOW_S)
    assert [start.job.name for start in after.starts] == ["jobs/g0", "jobs/g1"]


def test_a_job_that_is_moved_goes_on_from_its_newest_checkpoint() -> None:
    def planned(snapshot: Snapshot, now_s: float) -> Decisions:
        if now_s == 1500.0:
            clock.move({"jobs/a": (Seat("nodes/n1", tuple(range(8))),)})
        return plan(snapshot, now_s)

    change = NodesChange(1500.0, ())  # only so that there is a plan then
    clock = Clock(Snapshot(NODES), [Arrival(Job("jobs/a", WIDE, 0.0), 3000.0, 600.0, 60.0)], planned, changes=[change])
    clock.run()
    outcome = clock.outcomes["jobs/a"]
    # 300 s of work since the checkpoint at 1200 s are done again, after a restart.
    assert (outcome.end_s, outcome.stops) == (3000.0 + 300.0 + 60.0, 1)


def test_the_commands_simulate_on_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "now.json"
    file.write_bytes(snapshot_to_json(WAITS, NOW_S))
    assert main(["simulate", "whatif", "--snapshot", str(file), "end jobs/p0"]) == 0
    assert capsys.readouterr().out == "jobs/wide would start now\n"
    assert main(["simulate", "whatif", "--snapshot", str(file), "--json", "end jobs/p0"]) == 0
    assert json.loads(capsys.readouterr().out)["starts"] == ["jobs/wide"]
    assert main(["simulate", "defragment", "--snapshot", str(file)]) == 0
    assert "jobs/p0  nodes/n2  jobs/wide  57600       240" in capsys.readouterr().out
    assert main(["simulate", "defragment", "--snapshot", str(file), "--json"]) == 0
    (move,) = json.loads(capsys.readouterr().out)["moves"]
    assert move["change"] == "move jobs/p0 to nodes/n2:4,5,6,7"
    assert main(["simulate", "whatif", "--snapshot", str(file), "make it so"]) != 0
    assert "write one of" in capsys.readouterr().err
