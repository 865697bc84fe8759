from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from switchgear.cli.collector_flags import collector_config_from
from switchgear.collector.sharding import Sharding, owner
from switchgear.core.errors import FailedPrecondition

COLLECTORS = ("10.0.0.1:7071", "10.0.0.2:7071", "10.0.0.3:7071")
NODES = [f"nodes/gpu-{number:04}" for number in range(3000)]


def test_each_node_has_the_collector_that_it_had_in_earlier_releases() -> None:
    found = [COLLECTORS.index(owner(node, COLLECTORS)) for node in NODES[:12]]
    assert found == [2, 2, 2, 1, 1, 2, 2, 2, 1, 0, 0, 0]


def test_nodes_are_shared_out_evenly() -> None:
    counts = [sum(owner(node, COLLECTORS) == collector for node in NODES) for collector in COLLECTORS]
    assert max(counts) < 1.1 * len(NODES) / len(COLLECTORS)


@given(st.lists(st.sampled_from([f"c{number}:1" for number in range(9)]), min_size=1, unique=True), st.text())
def test_one_more_collector_takes_nodes_and_moves_no_other(collectors: list[str], node: str) -> None:
    assert owner(node, [*collectors, "new:1"]) in {"new:1", owner(node, collectors)}
    assert owner(node, collectors[::-1]) == owner(node, collectors)


def test_a_fourth_collector_takes_a_fourth_of_the_nodes() -> None:
    moved = sum(owner(node, COLLECTORS) != owner(node, (*COLLECTORS, "10.0.0.4:7071")) for node in NODES)
    assert 0.22 < moved / len(NODES) < 0.28


def test_each_collector_knows_its_own_nodes() -> None:
    rings = [Sharding(collectors=COLLECTORS, own=own) for own in COLLECTORS]
    for node in NODES[:100]:
        assert sorted({ring.elsewhere(node) for ring in rings}) == ["", owner(node, COLLECTORS)]
    assert Sharding().elsewhere("nodes/any") == ""


@pytest.mark.parametrize(
    ("collectors", "own", "said"),
    [
        (COLLECTORS, "10.0.0.9:7071", "none of the collectors"),
        ((), "10.0.0.9:7071", "none of the collectors"),
        (("a:1", "a:1"), "a:1", "named twice"),
        (("a",), "a", "write HOST:PORT"),
    ],
)
def test_a_ring_that_makes_no_sense_is_refused(collectors: tuple[str, ...], own: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Sharding(collectors=collectors, own=own)


def test_several_collectors_need_a_database_that_they_share(tmp_path: Path) -> None:
    file = tmp_path / "collector.toml"
    file.write_text('[sharding]\ncollectors = ["10.0.0.1:7071", "10.0.0.2:7071"]\nown = "10.0.0.1:7071"\n')
    args = argparse.Namespace(collector_config=str(file), database_url="")
    with pytest.raises(FailedPrecondition, match="share one PostgreSQL"):
        collector_config_from(args)
    args.database_url = "postgresql+asyncpg://a@b/c"
    assert collector_config_from(args).sharding.own == "10.0.0.1:7071"
