"""Why a job is where it is."""

from __future__ import annotations

from switchgear.planner.fleet import Fleet
from switchgear.planner.model import Job, Node, Seat, Task
from switchgear.planner.reasons import why_here

NODES = tuple(
    Node(
        f"n{at}", 8, "H100", topology=(f"s{at // 4}", f"l{at // 2}"), health=0.5 if at == 7 else None, incident=at == 7
    )
    for at in range(8)
)
FLEET = Fleet((*NODES, Node("cpu", topology=("s0",))), ("spine", "leaf"))


def why(*at: int, gpus: int = 8, tasks: int = 0, **fields: object) -> str:
    job = Job("jobs/a", Task(gpus=gpus), 0.0, tasks=tasks or len(at), **fields)  # type: ignore[arg-type]
    return why_here(FLEET, job, [Seat(f"n{one}", tuple(range(gpus))) for one in at])


def test_it_is_told_how_near_together_a_gang_is() -> None:
    assert why(0) == "on n0 with H100"
    assert why(0, 1) == "on n0, n1 with H100, all in leaf l0"
    assert why(0, 1, 2, 3) == "on 4 nodes with H100, all in spine s0 (2 domains of leaf)"
    assert why(3, 4) == "on n3, n4 with H100, over 2 domains of spine"


def test_it_is_told_what_is_less_than_asked_for_and_what_was_measured() -> None:
    assert why(0, 1, tasks=4, speeds={"H100": 1.3}).endswith(
        "all in leaf l0, 2 of 4 tasks: no more fit, measured speed 1.3"
    )
    assert why(0, 1, kept=((0, Seat("n0")),)).endswith("1 of its seats are those that it had")
    assert why(0, gpus=2) == "on n0 with H100, where it leaves least that is of no use to others"


def test_doubtful_nodes_are_told() -> None:
    assert why(6, 7) == (
        "on n6, n7 with H100, all in leaf l3, "
        "1 of them doubtful (an open incident and a low health score) as nothing faster holds it"
    )


def test_nodes_of_unknown_place_and_nodes_that_are_gone_are_passed_over() -> None:
    job = Job("jobs/a", Task(cpu_milli=1), 0.0, tasks=3)
    assert why_here(FLEET, job, [Seat("cpu"), Seat("n0"), Seat("gone")]) == "on n0, cpu with H100, all in spine s0"
