"""What becomes of rows before anybody sends them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from export_world import STALE_BITS, START_NS, fill, key, window

from switchgear.collector.export.feed import TEMPLATE_S, TEMPLATES_AHEAD_S, Feed, FeedSettings
from switchgear.collector.export.rows import Batch
from switchgear.collector.windows import NodeWindow, Windows
from switchgear.core.clock import ManualClock

A, B, C = key("a"), key("b", ("gpu", "1")), key("c")
NAN = float("nan")


class World:
    """A feed, its clock, and what it hands over."""

    def __init__(self, **settings: Any) -> None:
        self.clock = ManualClock()
        self.batches: list[Batch] = []
        self.drops: list[tuple[int, str]] = []
        wanted = {"interval_s": 0.0, "keep": "", "drop": "", "samples_max": 1000, "lanes": 1, **settings}
        self.feed = Feed(FeedSettings(**wanted), self.clock, [self])

    def put(self, batch: Batch) -> None:
        self.batches.append(batch)

    def dropped(self, samples: int, reason: str) -> None:
        self.drops.append((samples, reason))

    def tick(self, opened: NodeWindow, second: float, *values: float) -> None:
        fill(opened, second, *values)
        self.feed.row(opened)

    def take(self) -> list[tuple[float, dict[str, float | str]]]:
        """Each row as its time in s and its values by metric; "ended" for the marker."""
        self.feed.seal(float("inf"))
        rows = [row for batch in self.batches for row in batch.rows]
        self.batches.clear()
        return [
            (
                (row.time_unix_ns - START_NS) / 1e9,
                {
                    one.metric: "ended" if bits == STALE_BITS else value
                    for one, value, bits in zip(
                        row.selection.keys, row.values.tolist(), row.values.view(np.uint64).tolist(), strict=True
                    )
                },
            )
            for row in rows
        ]


def test_a_row_goes_out_as_it_was_whatever_the_window_does_then() -> None:
    world, node = World(), window("n", A, B)
    world.tick(node, 0, 1, 2)
    world.tick(node, 1, 3, 4)
    assert world.take() == [(0, {"a": 1, "b": 2}), (1, {"a": 3, "b": 4})]


def test_what_is_unknown_is_left_out_and_told_once_when_it_was_known() -> None:
    world, node = World(), window("n", A, B, C)
    world.tick(node, 0, 1, 2, NAN)
    world.tick(node, 1, 3, NAN, NAN)
    world.tick(node, 2, 5, NAN, NAN)
    world.tick(node, 3, 7, 8, 9)
    rows = world.take()
    assert rows == [
        (0, {"a": 1, "b": 2}),
        (1, {"b": "ended"}),
        (1, {"a": 3}),
        (2, {"a": 5}),
        (3, {"a": 7, "b": 8, "c": 9}),
    ]


def test_a_series_that_is_new_comes_with_the_next_row() -> None:
    windows = Windows(bytes_max=1 << 30)
    world, node = World(), window("n", A, windows=windows)
    world.tick(node, 0, 1)
    windows.define(node, 1, [B])
    world.tick(node, 1, 2, 3)
    assert world.take() == [(0, {"a": 1}), (1, {"a": 2, "b": 3})]


def test_rows_of_the_same_series_share_what_is_made_of_them() -> None:
    world, node = World(), window("n", A, B)
    for second in range(3):
        world.tick(node, second, second, second)
    world.feed.seal(float("inf"))
    assert len({id(row.selection) for batch in world.batches for row in batch.rows}) == 1


def test_a_node_with_many_series_goes_in_parts_and_a_change_costs_one_of_them() -> None:
    keys = [key(f"m{at}") for at in range(600)]
    world, node = World(samples_max=5000), window("n", *keys)
    values = np.arange(600.0)
    world.tick(node, 0, *values)
    values[300] = NAN
    world.tick(node, 1, *values)
    world.feed.seal(float("inf"))
    rows = [row for batch in world.batches for row in batch.rows]
    assert [len(row.values) for row in rows] == [192, 192, 192, 24, 1, 192, 191, 192, 24]
    assert rows[5].selection is rows[0].selection
    assert rows[6].selection is not rows[1].selection
    assert rows[7].selection is rows[2].selection


def test_a_node_whose_values_come_and_go_with_each_row_makes_few_templates_and_loses_rows_of_its_own() -> None:
    world, node, calm = World(), window("n", A, B), window("calm", A, B)
    for second in range(400):
        world.tick(node, second, 1, NAN if second % 2 else 2)
        world.tick(calm, second, 1, 2)
        world.clock.advance(0.01)
    world.feed.seal(float("inf"))
    rows = [row for batch in world.batches for row in batch.rows]
    of_node = [row for row in rows if row.selection.node == "n"]
    assert len({id(row.selection) for row in of_node if not row.selection.stale}) <= 4 / TEMPLATE_S + 122
    assert sum(row.selection.node == "calm" for row in rows) == 400
    assert {reason for _, reason in world.drops} == {"changes"}
    world.drops.clear()
    world.clock.advance(TEMPLATES_AHEAD_S)
    world.tick(node, 500, 1, 2)
    world.tick(node, 501, 1, NAN)
    assert not world.drops


def test_rows_of_an_outage_that_each_have_other_series_are_bounded_too() -> None:
    world, node = World(), window("n", *(key(f"m{at}") for at in range(10)))
    rows = np.where(np.arange(500)[:, None] >> np.arange(10) & 1, 1.0, NAN)
    world.feed.late(node, node.series, START_NS + np.arange(500) * 10**9, rows)
    world.feed.seal(float("inf"))
    made = {id(row.selection) for batch in world.batches for row in batch.rows}
    assert len(made) <= TEMPLATES_AHEAD_S / TEMPLATE_S + 1
    sent = sum(batch.samples for batch in world.batches)
    assert sent + sum(samples for samples, _ in world.drops) == np.count_nonzero(~np.isnan(rows))


def test_at_an_interval_a_node_is_sent_once_in_each_and_nodes_at_different_moments() -> None:
    world = World(interval_s=15.0)
    moments = set()
    for name in ("n1", "n2", "n3"):
        node = window(name, A)
        for second in range(60):
            world.tick(node, second, second)
        seconds = [second for second, _ in world.take()]
        assert seconds[0] == 0
        assert {later - sooner for sooner, later in pairwise(seconds[1:])} == {15}
        moments.add(seconds[1])
    assert len(moments) == 3


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"keep": "a|b"}, {"a", "b"}),
        ({"drop": "a"}, {"b", "c"}),
        ({"keep": "a|b", "drop": "b"}, {"a"}),
        ({"keep": "x"}, set()),
    ],
)
def test_metrics_are_chosen_by_their_whole_names(settings: dict[str, str], expected: set[str]) -> None:
    world, node = World(**settings), window("n", A, B, C, key("abc"))
    world.tick(node, 0, 1, 2, 3, NAN)
    assert {metric for _, row in world.take() for metric in row} == expected


def test_a_silent_source_ends_a_millisecond_behind_its_last_row() -> None:
    world, node = World(), window("n", A, B)
    world.tick(node, 0, 1, 2)
    world.clock.advance(29)
    world.feed.tidy()
    assert len(world.take()) == 1
    world.clock.advance(2)
    world.feed.tidy()
    assert world.take() == [(0.001, {"a": "ended", "b": "ended"})]
    world.tick(node, 40, 3, 4)
    assert world.take() == [(40, {"a": 3, "b": 4})]


def test_a_source_that_tells_seldom_is_not_taken_for_silent() -> None:
    world, node = World(), window("n", A, source="scrape/x")
    for second in (0, 60, 120):
        world.tick(node, second, 1)
        world.clock.advance(60)
    world.feed.tidy()
    assert len(world.take()) == 3
    world.clock.advance(130)
    world.feed.tidy()
    assert world.take() == [(120.001, {"a": "ended"})]


def test_a_new_epoch_ends_the_series_of_the_one_before() -> None:
    windows = Windows(bytes_max=1 << 30)
    world, old = World(), window("n", A, B, windows=windows)
    world.tick(old, 0, 1, 2)
    new = window("n", A, windows=windows, epoch="later")
    world.tick(new, 1, 5)
    assert world.take() == [(0, {"a": 1, "b": 2}), (0.001, {"a": "ended", "b": "ended"}), (1, {"a": 5})]


def test_times_that_stores_refuse_are_not_sent_but_counted() -> None:
    world, node = World(), window("n", A, B)
    world.tick(node, 5, 1, 2)
    world.tick(node, 5, 1, 2)
    world.tick(node, 4, 1, 2)
    world.tick(node, 4_000_000_000, 1, 2)
    world.tick(node, 6, 3, 4)
    assert world.drops == [(2, "out_of_order"), (2, "out_of_order"), (2, "bad_time")]
    assert [second for second, _ in world.take()] == [5, 6]


def test_rows_of_an_outage_go_in_batches_of_their_own() -> None:
    world, node = World(), window("n", A, B)
    world.tick(node, 100, 1, 2)
    times = np.array([START_NS + second * 10**9 for second in range(3)])
    rows = np.array([[1, 2, 3], [4, NAN, 6], [7, NAN, 9]])
    world.feed.late(node, [A, B, C], times, rows)
    world.feed.seal(float("inf"))
    assert [batch.late for batch in world.batches] == [False, True]
    assert world.take()[1:] == [(0, {"a": 1, "b": 2, "c": 3}), (1, {"a": 4, "c": 6}), (2, {"a": 7, "c": 9})]


def test_rows_of_an_outage_keep_the_interval() -> None:
    world, node = World(interval_s=10.0), window("n", A)
    for begin in (0, 30):
        times = np.array([START_NS + second * 10**9 for second in range(begin, begin + 30)])
        world.feed.late(node, [A], times, np.ones((30, 1)))
    seconds = [second for second, _ in world.take()]
    assert {later - sooner for sooner, later in pairwise(seconds[1:])} == {10}
    assert len(seconds) in {6, 7}


def test_a_batch_is_handed_over_when_it_is_full_or_old() -> None:
    world = World(samples_max=6)
    nodes = [window(f"n{at}", A, B) for at in range(4)]
    for node in nodes:
        world.tick(node, 0, 1, 2)
    assert [batch.samples for batch in world.batches] == [6]
    world.clock.advance(5)
    world.tick(window("n9", A, B), 0, 1, 2)
    world.feed.seal(world.clock.monotonic_s() - 1)
    assert [batch.samples for batch in world.batches] == [6, 4]


def test_a_node_keeps_its_lane() -> None:
    world = World(lanes=4)
    for second in range(3):
        for at in range(20):
            world.tick(window(f"n{at}", A), second, 1)
    world.feed.seal(float("inf"))
    lanes: dict[str, set[int]] = {}
    for batch in world.batches:
        for row in batch.rows:
            lanes.setdefault(row.selection.node, set()).add(batch.lane)
    assert {len(lane) for lane in lanes.values()} == {1}
    assert len({next(iter(lane)) for lane in lanes.values()}) == 4
