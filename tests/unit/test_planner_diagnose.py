"""Why a gang finds no room: the cause that binds, and a sentence with figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import inf

import numpy as np
import pytest

from switchgear.planner.diagnose import Diagnosis
from switchgear.planner.fleet import Fleet
from switchgear.planner.model import (
    Cause,
    Job,
    Near,
    Node,
    NoRoom,
    Policy,
    Reservation,
    Running,
    Seat,
    Selector,
    Snapshot,
    Task,
)
from switchgear.planner.reservations import open_to, spared

NODES = tuple(
    Node(
        f"n{at}",
        8,
        "H100" if at < 6 else "A100",
        cpu_milli=64_000,
        memory_mib=1 << 20,
        labels={"zone": "east" if at % 2 else "west"},
        topology=(f"l{at // 3}",),
    )
    for at in range(8)
)


def snapshot_of(used: Iterable[int] = (), nodes: Iterable[Node] = NODES, each: Task = Task(gpus=8)) -> Snapshot:  # noqa: B008 - a constant
    """A job on each of the nodes with these numbers."""
    running = tuple(
        Running(Job(f"jobs/r{at}", each, 0.0), (Seat(f"n{at}", tuple(range(each.gpus))),), 0.0) for at in used
    )
    return Snapshot(tuple(nodes), running=running, levels=("leaf",))


def causes(snapshot: Snapshot, job: Job) -> tuple[NoRoom, ...]:
    fleet = Fleet(snapshot.nodes, snapshot.levels, snapshot.running)
    mask = open_to(fleet, snapshot, job, 0.0, inf) & ~spared(fleet, snapshot, 0.0)
    return Diagnosis(fleet, snapshot, 0.0).causes(job, mask)


def told(snapshot: Snapshot, tasks: int, task: Task = Task(gpus=8), **fields: object) -> NoRoom:  # noqa: B008 - a constant
    return causes(snapshot, Job("jobs/a", task, 0.0, tasks=tasks, **fields))[0]  # type: ignore[arg-type]


def test_what_an_empty_fleet_could_not_hold_is_impossible_and_it_is_told_what_it_asks_too_much_of() -> None:
    assert told(snapshot_of([0]), 9) == NoRoom(
        Cause.IMPOSSIBLE,
        "6 of its 9 tasks with 8 GPUs each fit even when everything is free and open",
    )
    assert told(snapshot_of(), 7).text.endswith("it would fit if it did not ask for this GPU model")
    assert told(snapshot_of(), 4, near=(Near("leaf"),)).text == (
        "3 of its 4 tasks with 8 GPUs each fit even when everything is free and open; "
        "it would fit if it did not ask for one domain"
    )
    assert (
        told(snapshot_of(), 1, Task(gpus=16)).text == "no node has 16 GPUs for it even when everything is free and open"
    )
    assert told(snapshot_of(), 1, Task(gpus=1, cpu_milli=65_000)).text.endswith("so many CPUs")
    assert told(snapshot_of(), 2, near=(Near("rack"),)).cause is Cause.IMPOSSIBLE


def test_closed_nodes_are_the_cause_when_it_would_start_on_them() -> None:
    nodes = [replace(node, closed="cordoned" if node.name < "n2" else "") for node in NODES]
    assert told(snapshot_of(nodes=nodes), 6) == NoRoom(
        Cause.NODES_CLOSED,
        "4 of its 6 tasks with 8 GPUs each fit now; 6 would if nodes were open that are not: 2 cordoned",
    )
    assert told(snapshot_of([2, 3, 4, 5, 6, 7], nodes), 1).text == (
        "no node has 8 GPUs for it now; 2 would if nodes were open that are not: 2 cordoned"
    )


def test_closed_nodes_are_the_cause_when_it_would_not_start_even_if_nothing_ran() -> None:
    nodes = [replace(node, closed="cordoned" if node.name < "n2" else "") for node in NODES]
    found = causes(snapshot_of([2, 3], nodes), Job("jobs/a", Task(gpus=8), 0.0, tasks=6))
    assert [one.cause for one in found] == [Cause.NODES_CLOSED, Cause.GPUS]


def test_reservations_and_spares_are_named() -> None:
    window = Reservation("reservations/upgrade", frozenset({"n0", "n1"}), 100.0, 200.0)
    assert told(replace(snapshot_of(), reservations=(window,)), 6) == NoRoom(
        Cause.RESERVED,
        "4 of its 6 tasks with 8 GPUs each fit now; 6 would with nodes that are reserved: reservations/upgrade",
    )
    spares = replace(snapshot_of(), policy=Policy(spares=2))
    assert told(spares, 6).text.endswith("with nodes that are kept as spares")


def test_a_required_domain_is_the_cause_when_the_tasks_would_fit_apart() -> None:
    assert told(snapshot_of([0, 3]), 3, near=(Near("leaf"),)) == NoRoom(
        Cause.TOPOLOGY, "2 of its 3 tasks with 8 GPUs each fit now in one leaf; 3 would in all"
    )


def test_the_gpu_model_is_the_cause_when_others_are_free() -> None:
    wants = Task(gpus=8, gpu_models=frozenset({"A100"}))
    assert told(snapshot_of([6]), 2, wants) == NoRoom(
        Cause.GPU_MODEL, "1 of its 2 tasks with 8 GPUs each fit now on A100; 2 would on all models together"
    )
    assert told(snapshot_of([0, 1]), 5).text == (
        "4 of its 5 tasks with 8 GPUs each fit now on one GPU model; 5 would on all models together"
    )


def test_labels_and_taints_and_excluded_nodes_are_the_cause_when_other_nodes_are_free() -> None:
    west = Task(gpus=8, selectors=(Selector("zone", frozenset({"west"})),))
    assert told(snapshot_of([0, 2, 4, 6]), 1, west).cause is Cause.SELECTOR
    tainted = [replace(node, taints=frozenset({"debug"} if node.name < "n2" else ())) for node in NODES]
    assert told(snapshot_of([2, 3, 4, 5, 6, 7], tainted), 1).cause is Cause.SELECTOR
    assert told(snapshot_of(range(1, 8)), 1, excluded=frozenset({"n0"})).text == (
        "no node has 8 GPUs for it now; 1 would if it did not ask for these labels, taints and nodes"
    )


def test_cpu_and_memory_are_the_cause_when_the_gpus_are_free() -> None:
    cpu = snapshot_of(range(8), each=Task(cpu_milli=40_000))
    assert told(cpu, 1, Task(gpus=1, cpu_milli=30_000)).cause is Cause.CPU
    memory = snapshot_of(range(8), each=Task(memory_mib=1 << 20))
    assert told(memory, 1, Task(gpus=1, memory_mib=1)) == NoRoom(
        Cause.MEMORY, "no node has 1 GPU and 0.0009766 GiB for it now; 8 would if it did not ask for so much memory"
    )
    assert told(cpu, 1, Task(cpu_milli=30_000)).cause is Cause.CPU


def test_gpus_that_are_free_in_pieces_are_no_help() -> None:
    assert told(snapshot_of(range(8), each=Task(gpus=4)), 2) == NoRoom(
        Cause.FRAGMENTED,
        "0 of its 2 tasks with 8 GPUs each fit now; 24 of the 48 GPUs that it may use are free, "
        "on 6 nodes, at most 4 on one",
    )
    assert told(snapshot_of(range(1, 8)), 4, Task(gpus=2)).text.endswith("are free, on 1 node, at most 8 on one")


def test_mig_instances_are_counted_by_themselves() -> None:
    node = Node("n0", 2, mig={0: ("1g.10gb",) * 2})
    small = Task(mig_profile="1g.10gb")
    used = Running(Job("jobs/r", small, 0.0), (Seat("n0", (0,)),), 0.0)
    snapshot = Snapshot((node,), running=(used,))
    assert told(snapshot, 2, small, one_a_node=False) == NoRoom(
        Cause.GPUS,
        "1 of its 2 tasks with a 1g.10gb instance each fit now; 1 of the 2 1g.10gb instances that it may use are free",
    )


def test_otherwise_the_gpus_are_in_use() -> None:
    assert told(snapshot_of(range(1, 8)), 2) == NoRoom(
        Cause.GPUS, "1 of its 2 tasks with 8 GPUs each fit now; 8 of the 48 GPUs that it may use are free"
    )
    assert told(snapshot_of(range(1, 8)), 4, tasks_min=2).text.startswith(
        "1 of its 4 tasks with 8 GPUs each fit now, and it needs 2;"
    )


def test_what_fits_waits_for_others() -> None:
    assert told(snapshot_of(), 1).cause is Cause.BEHIND


def test_a_gang_that_has_lost_a_node_needs_only_that_one() -> None:
    kept = tuple((rank, Seat(f"n{rank}", tuple(range(8)))) for rank in range(2))
    assert told(snapshot_of(range(8)), 3, kept=kept).text == (
        "2 of its 3 tasks with 8 GPUs each fit now; 0 of the 48 GPUs that it may use are free"
    )


def planted_closed(rng: np.random.Generator, free: list[int]) -> tuple[Snapshot, Job]:
    nodes = [replace(node, closed="drained" if at in free else "") for at, node in enumerate(NODES)]
    return snapshot_of(set(range(8)) - set(free), nodes), Job("jobs/a", Task(gpus=8), 0.0)


def planted_reserved(rng: np.random.Generator, free: list[int]) -> tuple[Snapshot, Job]:
    kept = Reservation("r", frozenset(f"n{at}" for at in free), 0.0, 10.0, frozenset({"q"}))
    return replace(snapshot_of(set(range(8)) - set(free)), reservations=(kept,)), Job("jobs/a", Task(gpus=8), 0.0)


def planted_topology(rng: np.random.Generator, free: list[int]) -> tuple[Snapshot, Job]:
    apart = {int(rng.integers(0, 3)), int(rng.integers(3, 6))}
    return snapshot_of(set(range(8)) - apart), Job("jobs/a", Task(gpus=8), 0.0, tasks=2, near=(Near("leaf"),))


def planted_model(rng: np.random.Generator, free: list[int]) -> tuple[Snapshot, Job]:
    task = Task(gpus=int(rng.integers(1, 9)), gpu_models=frozenset({"A100"}))
    return snapshot_of(set(range(8)) - {free[0] % 6}), Job("jobs/a", task, 0.0)


def planted_selector(rng: np.random.Generator, free: list[int]) -> tuple[Snapshot, Job]:
    zone = ("west", "east")[free[0] % 2]
    selector = Selector("zone", frozenset({zone}), excludes=True)
    return snapshot_of(set(range(8)) - {free[0]}), Job("jobs/a", Task(gpus=8, selectors=(selector,)), 0.0)


def planted_cpu(rng: np.random.Generator, free: list[int]) -> tuple[Snapshot, Job]:
    used = snapshot_of(range(8), each=Task(gpus=4, cpu_milli=60_000))
    return used, Job("jobs/a", Task(gpus=int(rng.integers(1, 5)), cpu_milli=int(rng.integers(5, 60)) * 1000), 0.0)


def planted_memory(rng: np.random.Generator, free: list[int]) -> tuple[Snapshot, Job]:
    used = snapshot_of(range(8), each=Task(gpus=4, memory_mib=1_000_000))
    return used, Job("jobs/a", Task(gpus=int(rng.integers(1, 5)), memory_mib=int(rng.integers(48_577, 1 << 20))), 0.0)


def planted_fragmented(rng: np.random.Generator, free: list[int]) -> tuple[Snapshot, Job]:
    return snapshot_of(range(8), each=Task(gpus=int(rng.integers(1, 5)))), Job("jobs/a", Task(gpus=8), 0.0)


def planted_gpus(rng: np.random.Generator, free: list[int]) -> tuple[Snapshot, Job]:
    free = free[:2]
    return snapshot_of(set(range(8)) - set(free)), Job("jobs/a", Task(gpus=8), 0.0, tasks=len(free) + 1)


def planted_impossible(rng: np.random.Generator, free: list[int]) -> tuple[Snapshot, Job]:
    return snapshot_of(set(range(8)) - set(free)), Job("jobs/a", Task(gpus=8), 0.0, tasks=int(rng.integers(7, 20)))


PLANTED: tuple[tuple[Cause, Callable[[np.random.Generator, list[int]], tuple[Snapshot, Job]]], ...] = (
    (Cause.NODES_CLOSED, planted_closed),
    (Cause.RESERVED, planted_reserved),
    (Cause.TOPOLOGY, planted_topology),
    (Cause.GPU_MODEL, planted_model),
    (Cause.SELECTOR, planted_selector),
    (Cause.CPU, planted_cpu),
    (Cause.MEMORY, planted_memory),
    (Cause.FRAGMENTED, planted_fragmented),
    (Cause.GPUS, planted_gpus),
    (Cause.IMPOSSIBLE, planted_impossible),
)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("cause", "planted"), PLANTED)
def test_a_planted_cause_is_named_first(
    cause: Cause, planted: Callable[[np.random.Generator, list[int]], tuple[Snapshot, Job]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    free = rng.permutation(8)[: int(rng.integers(1, 5))].tolist()
    snapshot, job = planted(rng, free)
    found = causes(snapshot, job)
    assert found[0].cause is cause, found
    assert found == causes(snapshot, job)
