from __future__ import annotations

import numpy as np
from export_world import START_NS, key

from switchgear.collector.export.queue import BatchQueue
from switchgear.collector.export.rows import Batch, Row, Selection

VALUES = 100
NBYTES = VALUES * 8 + 300


def batch(second: float, *, lane: int = 0, late: bool = False) -> Batch:
    made = Batch(lane, second, late)
    made.add(Row(Selection("a", "agent", [key("m")], since_unix_ns=0), START_NS + int(second * 1e9), np.zeros(VALUES)))
    return made


async def test_live_batches_come_in_order_and_before_those_of_an_outage() -> None:
    queue = BatchQueue(1, 10**6, lambda _: None)
    late, first, second = batch(0, late=True), batch(1), batch(2)
    for item in (late, first, second):
        queue.put(item)
    assert [await queue.take(0) for _ in range(3)] == [first, second, late]


async def test_beyond_its_bytes_the_oldest_go_first_those_of_an_outage_before_all() -> None:
    dropped: list[int] = []
    queue = BatchQueue(2, 3 * NBYTES, dropped.append)
    late, first, other, second, third = batch(0, late=True), batch(1), batch(2, lane=1), batch(3), batch(4)
    for item in (first, late, other, second, third):
        queue.put(item)
    assert dropped == [VALUES, VALUES]
    assert queue.nbytes == 3 * NBYTES
    assert [await queue.take(0), await queue.take(1), await queue.take(0)] == [second, other, third]


async def test_what_is_under_way_counts_until_it_is_done() -> None:
    queue = BatchQueue(1, 2 * NBYTES, lambda _: None)
    queue.put(batch(1))
    taken = await queue.take(0)
    assert (queue.nbytes, queue.samples) == (NBYTES, VALUES)
    assert not queue.idle.is_set()
    queue.settled(VALUES)
    queue.done(taken, delivered=True)
    assert (queue.nbytes, queue.samples) == (0, 0)
    assert queue.idle.is_set()


async def test_what_is_under_way_is_never_given_up_though_it_is_the_oldest() -> None:
    dropped: list[int] = []
    queue = BatchQueue(1, NBYTES, dropped.append)
    queue.put(batch(1, late=True))
    await queue.take(0)
    for second in (2, 3):
        queue.put(batch(second))
    assert dropped == [VALUES, VALUES]
    assert (queue.nbytes, queue.samples) == (NBYTES, VALUES)
    assert not queue.idle.is_set()


async def test_the_lag_is_that_of_the_slowest_lane_and_ends_with_what_is_newest() -> None:
    queue = BatchQueue(2, 10**6, lambda _: None)
    assert queue.lag_s == 0
    for item in (batch(1), batch(5), batch(4, lane=1)):
        queue.put(item)
    assert queue.lag_s == 4
    queue.done(await queue.take(0), delivered=True)
    queue.done(await queue.take(1), delivered=True)
    assert queue.lag_s == 4
    queue.done(await queue.take(0), delivered=True)
    assert queue.lag_s == 0


async def test_what_is_given_up_at_the_end_is_counted() -> None:
    queue = BatchQueue(2, 10**6, lambda _: None)
    for item in (batch(1), batch(2, lane=1), batch(1, late=True)):
        queue.put(item)
    assert queue.samples == 3 * VALUES
    assert queue.clear() == 3 * VALUES
    assert queue.samples == 0
    assert queue.idle.is_set()
