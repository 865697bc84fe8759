"""On which node a task goes, what free parts are worth, and what packing policies make of the same arrivals."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import planner_world
import pytest

from switchgear.planner.baselines.placement import Fgd, popular
from switchgear.planner.fleet import Fleet
from switchgear.planner.mix import Arrivals, Mix
from switchgear.planner.model import WHOLE, Node, Seat, Task
from switchgear.planner.packing import KEPT_MAX, Packer
from switchgear.planner.prices import BINS, best_fill, gap_worth, share_prices
from switchgear.planner.simulate.placement import POLICIES, Run, inflate, marks, means
from switchgear.planner.usable import Usable
from switchgear.planner.worth import Worth


def listed(seed: int, nodes: int = 40, pods: int = 300) -> tuple[list[Node], list[Task]]:
    """Nodes of three models and one to eight GPUs; pods with shares, several GPUs, none, and some bound to a model."""
    random = np.random.default_rng(seed)
    fleet = []
    for at in range(nodes):
        gpus = int(random.choice([1, 2, 4, 8]))
        cpu_milli, memory_mib = gpus * int(random.integers(6, 20)) * 1000, gpus * int(random.integers(20, 60)) * 1024
        fleet.append(Node(f"n{at}", gpus, "ABC"[random.integers(3)], cpu_milli=cpu_milli, memory_mib=memory_mib))
    tasks = []
    for _ in range(pods):
        gpus = int(random.choice([0, 1, 1, 1, 1, 2, 8]))
        milli = int(random.choice([1000, 1000, 810, 470, 320, 160, 55])) if gpus == 1 else WHOLE
        tasks.append(
            Task(
                gpus=0 if milli < WHOLE else gpus,
                gpu_milli=milli if milli < WHOLE else 0,
                cpu_milli=int(random.integers(1, 16)) * 1000,
                memory_mib=int(random.integers(1, 40)) * 1024,
                gpu_models=frozenset("ABC"[random.integers(3)]) if gpus and random.random() < 0.2 else frozenset(),
            )
        )
    return fleet, tasks


def even(tasks: list[Task]) -> Mix:
    return Mix.of((task, 1.0) for task in tasks)


def put(packer: Packer, task: Task) -> int:
    row = packer.best(task)
    if row >= 0:
        packer.take(packer.seat(task, row), task)
    return row


@pytest.mark.parametrize("seed", range(4))
def test_what_fits_is_placed_and_no_node_goes_over_what_it_has(seed: int) -> None:
    nodes, tasks = listed(seed)
    fleet = Fleet(nodes)
    packer = Packer(fleet, even(tasks))
    for task in np.random.default_rng(seed).permutation(np.array(tasks, object)):
        fits = fleet.room(task) > 0
        row = put(packer, task)
        assert (row >= 0) == fits.any()
        assert row < 0 or fits[row]
        assert min(fleet.gpu_free.min(), fleet.cpu_free.min(), fleet.memory_free.min()) >= 0


@pytest.mark.parametrize("seed", range(3))
def test_kept_scores_are_what_fresh_ones_would_be(seed: int) -> None:
    """With labels, taints, MIG, unknown CPUs, seats given back, and seats taken in the fleet behind the packer's back."""
    random = np.random.default_rng(seed)
    fleet = Fleet(planner_world.nodes(Random(seed), 30))
    tasks = list(planner_world.TASKS)
    packer = Packer(fleet, even(tasks))
    taken: list[tuple[Seat, Task]] = []
    for at in range(100):
        task = tasks[random.integers(len(tasks))]
        fresh = Packer(fleet.copy(), packer.mix)
        assert (packer.scores(task) == fresh.scores(task)).all()
        row = packer.best(task)
        if row < 0 or at % 3 == 2:
            seat, held = taken.pop(random.integers(len(taken)))
            packer.give(seat, held)
        else:
            seat = packer.seat(task, row)
            assert seat == fresh.seat(task, row)
            (packer if at % 2 else fleet).take(seat, task)
            taken.append((seat, task))


def test_many_nodes_are_rated_as_each_alone() -> None:
    nodes, tasks = listed(3)
    fleet = Fleet([replace(node, name=f"{node.name}-{at}") for at in range(20) for node in nodes])
    packer = Packer(fleet, even(tasks))
    for task in tasks:
        put(packer, task)
    worth = Worth(fleet, packer.mix)
    for task in tasks[:8]:
        rows = np.flatnonzero(fleet.room(task))
        rates, gpus = worth.rate(fleet, task, rows)
        alone = [worth.rate(fleet, task, rows[at : at + 1]) for at in range(0, len(rows), 97)]
        assert rates[::97].tolist() == [float(rate[0]) for rate, _ in alone]
        assert gpus[::97].tolist() == [int(gpu[0]) for _, gpu in alone]


def test_a_copy_is_tried_on_and_the_packer_stays_as_it_was() -> None:
    nodes, tasks = listed(5)
    packer = Packer(Fleet(nodes), even(tasks))
    before = packer.scores(tasks[0]).copy()
    other = packer.copy()
    for task in tasks[:50]:
        put(other, task)
    assert (packer.scores(tasks[0]) == before).all()
    assert (other.scores(tasks[0]) != before).any()


def test_scores_are_kept_for_a_bounded_number_of_tasks() -> None:
    packer = Packer(Fleet([Node("a", 8)]), Mix())
    for at in range(KEPT_MAX + 10):
        packer.best(Task(gpus=1, cpu_milli=1 + at))
    assert len(packer._kept) == KEPT_MAX


def test_a_share_goes_beside_the_one_that_it_fills_a_gpu_with() -> None:
    large, small, other = Task(gpu_milli=530), Task(gpu_milli=470), Task(gpu_milli=600)
    packer = Packer(Fleet([Node("a", 1), Node("b", 1), Node("c", 1)]), even([large, small]))
    fleet = packer.fleet
    fleet.take(fleet.seat(other, 0), other)
    fleet.take(fleet.seat(large, 1), large)
    assert fleet.nodes[packer.best(small)].name == "b"


def test_gpus_are_not_left_without_the_cpus_that_are_expected_with_them() -> None:
    hungry, expected = Task(cpu_milli=30_000), Task(gpus=1, cpu_milli=8_000)
    nodes = [Node("full-of-gpus", 4, cpu_milli=36_000), Node("gpus-gone", 4, cpu_milli=36_000)]
    packer = Packer(Fleet(nodes), even([hungry, expected]))
    gone = Task(gpus=4)
    packer.fleet.take(packer.fleet.seat(gone, 1), gone)
    assert packer.fleet.nodes[packer.best(hungry)].name == "gpus-gone"


def test_who_may_use_any_model_leaves_the_scarce_one_to_those_who_are_bound_to_it() -> None:
    nodes = [Node("a", 8, "scarce"), Node("b", 8, "plenty"), Node("c", 8, "plenty")]
    bound, free = Task(gpus=1, gpu_models=frozenset({"scarce"})), Task(gpus=1)
    packer = Packer(Fleet(nodes), even([bound, free]))
    assert packer.fleet.nodes[packer.best(free)].name == "b"
    assert packer.fleet.nodes[packer.best(bound)].name == "a"


def test_whole_nodes_stay_whole_for_those_who_need_them() -> None:
    one, eight = Task(gpus=1), Task(gpus=8)
    packer = Packer(Fleet([Node("a", 8), Node("b", 8), Node("c", 8)]), even([one, eight]))
    packer.fleet.take(packer.fleet.seat(one, 2), one)
    assert packer.fleet.nodes[packer.best(one)].name == "c"


def test_nothing_is_expected_and_there_are_no_nodes() -> None:
    assert Packer(Fleet([]), Mix()).best(Task(gpus=1)) == -1
    assert Packer(Fleet([Node("a"), Node("b", 2)]), Mix()).best(Task(gpus=1)) == 1
    assert Packer(Fleet([Node("a")]), Mix()).best(Task(cpu_milli=1)) == 0


def test_usable_is_what_is_idle_less_the_fragments_of_the_paper() -> None:
    _, tasks = listed(4)
    mix, models = even(tasks), ("A", "B", "C")
    usable = Usable(mix.classes, models, 8)
    random = np.random.default_rng(4)
    for _ in range(50):
        free = random.choice([0, 150, 190, 530, 1000], size=8)
        cpu_milli, model = int(random.integers(0, 20_000)), int(random.integers(3))
        expected = 0.0
        for task, weight in mix.weights:
            milli = task.gpu_milli or WHOLE
            able = task.gpu_share > 0 and cpu_milli >= task.cpu_milli and (free >= milli).sum() >= max(task.gpus, 1)
            if able and (not task.gpu_models or models[model] in task.gpu_models):
                expected += weight * free[free >= milli].sum()
        whole = np.array([(free == WHOLE).sum()])
        assert usable(np.array([model]), np.array([cpu_milli]), free[None], whole)[0] == pytest.approx(expected)


def test_no_set_of_shares_that_fits_a_gpu_is_worth_more_than_the_gpu() -> None:
    size, demand = np.array([16, 22, 32, 37, 47, 55, 65, 81]), np.array([5.0, 4, 30, 6, 75, 7, 25, 105])
    price = share_prices(size, demand)
    worth, _ = best_fill(price, size)
    assert worth[BINS] <= 1 + 1e-6
    # Duality: what is asked for is worth as many GPUs as hold it, which is never less than its volume.
    assert demand @ price >= demand @ size / BINS


def test_a_gap_that_no_share_fits_is_worth_nothing_and_a_whole_gpu_itself() -> None:
    worth = gap_worth(np.array([470, 320]), np.array([1.0, 1.0]))
    assert (worth[319], worth[WHOLE]) == (0, WHOLE)
    assert (np.diff(worth) >= -1e-9).all()
    assert gap_worth(np.array([], np.int64), np.array([])).sum() == WHOLE


def test_the_mix_is_learned_from_what_came_and_forgets_what_comes_no_more() -> None:
    old, new = Task(gpus=1), Task(gpus=2)
    arrivals = Arrivals(half_life=16)
    renewed = [arrivals.saw(old) is not None for _ in range(64)]
    assert [at + 1 for at, due in enumerate(renewed) if due] == [1, 4, 16, 32, 48, 64]
    last = [mix for _ in range(64) if (mix := arrivals.saw(new))][-1]
    assert dict(last.weights)[new] == pytest.approx(1 - 2**-4, abs=0.01)


def test_a_mix_that_is_learned_for_long_stays_within_bounds() -> None:
    arrivals = Arrivals(half_life=1)
    for at in range(200):
        mix = arrivals.saw(Task(gpus=1 + at))
        assert mix is not None
        assert len(mix.weights) <= 62
        assert sum(weight for _, weight in mix.weights) == pytest.approx(1)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_seed_gives_the_same_run(policy: str) -> None:
    nodes, pods = listed(3)
    first, second = (inflate(nodes, pods, policy, 7, 1.3) for _ in range(2))
    assert (first.placed == second.placed).all()
    assert (first.allocated_pct <= 100).all()
    assert first.load_pct[-1] >= 130 > first.load_pct[-2]


def test_chance_packs_worse_than_best_fit_that_worse_than_fgd_and_that_worse_than_ours() -> None:
    nodes = [Node(f"n{at}", 8, cpu_milli=96_000, memory_mib=1 << 20) for at in range(40)]
    shares = ((810, 8), (470, 4), (320, 12), (650, 8), (160, 2))
    kinds = [Task(gpu_milli=milli, cpu_milli=cpus * 1000) for milli, cpus in shares]
    kinds += [Task(gpus=1, cpu_milli=12_000), Task(gpus=8, cpu_milli=64_000), Task(cpu_milli=8_000)]
    often = [0.25, 0.25, 0.1, 0.05, 0.05, 0.15, 0.05, 0.1]
    pods = [kinds[at] for at in np.random.default_rng(4).choice(len(kinds), size=600, p=often)]
    at = {
        policy: means([inflate(nodes, pods, policy, seed, 1.3) for seed in (1, 2)], 1.3)["130"] for policy in POLICIES
    }
    assert at["random"] < at["best-fit"] < at["fgd"] < at["switchgear"]


def test_fgd_looks_at_the_most_popular_classes_whatever_memory_they_need() -> None:
    often = [(Task(gpus=1, memory_mib=memory), 0.24) for memory in (1, 2, 3, 4)]
    mix = popular(Mix.of([*often, (Task(gpus=2), 0.04)]))
    assert mix.weights == ((Task(gpus=1), 1.0),)


def test_fgd_scores_are_those_that_were_published() -> None:
    """Whole numbers from 0 to 100, 50 where nothing is fragmented by it."""
    task = Task(gpus=1)
    packer = Packer(Fleet([Node("a", 2), Node("b", 1)]), Mix())
    scores = Packer(packer.fleet, Mix(), Fgd(packer.fleet, even([task]))).scores(task)
    assert scores.tolist() == [50, 50]


def test_allocation_at_a_load_is_the_mean_over_arrivals_near_it() -> None:
    run = Run(np.array([50.0, 99.6, 100.3, 130.0]), np.array([50.0, 90.0, 92.0, 93.0]), np.ones(4, bool))
    assert (run.at(100), run.at(130), run.at(75), run.at(10)) == (91.0, 93.0, 50.0, 0.0)
    assert marks(1.3) == (100, 130)
    assert marks(0.8) == (80,)
    assert means([run, run], 1.3) == {"100": 91.0, "130": 93.0}
