"""The collector's tables on both databases."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import func, select

from switchgear.collector import store
from switchgear.collector.detectors import signals_of, silence_signal
from switchgear.collector.model import Event
from switchgear.core.errors import OutOfRange
from switchgear.store.database import Database

EVENT = Event("nodes/n1", "boot", "kernel_log", 1, 5, "XID", None, 79, "text", simulated=False)


async def add(database: Database, *events: Event) -> tuple[int, int]:
    async with database.write() as session:
        return await store.add_events(session, [(event, signals_of(event)) for event in events])


async def test_each_event_is_stored_once_within_a_batch_and_across_batches(database: Database) -> None:
    second = replace(EVENT, sequence=2)
    assert await add(database, EVENT, EVENT) == (1, 1)
    assert await add(database, EVENT, second) == (1, 1)
    assert await add(database, replace(EVENT, boot_id="another boot")) == (1, 1)


async def test_an_event_comes_back_as_it_was(database: Database) -> None:
    await add(database, EVENT)
    async with database.read() as session:
        ((revision, signal),) = await store.signals_after(session, 0, 10)
    assert (revision, signal) == (1, signals_of(EVENT)[0])


async def test_pruning_keeps_the_newest_and_an_old_watcher_is_told(database: Database) -> None:
    await add(database, *(replace(EVENT, sequence=sequence) for sequence in range(1, 11)))
    async with database.write() as session:
        await store.prune(session, events_max=3, signals_max=4)
    async with database.read() as session:
        assert await session.scalar(select(func.count()).select_from(store.EventRow)) == 3
        assert [revision for revision, _ in await store.signals_after(session, 6, 10)] == [7, 8, 9, 10]
        with pytest.raises(OutOfRange, match="list them"):
            await store.signals_after(session, 5, 10)


async def test_a_silence_is_stored_only_for_a_node_that_is_expected(database: Database) -> None:
    async def add_silence(now: int) -> int:
        async with database.write() as session:
            await store.add_silence(session, silence_signal("nodes/n1", 11, now))
        async with database.read() as session:
            return len(await store.signals_before(session, "", None, 10))

    async with database.write() as session:
        await store.expect_node(session, "nodes/n1")
        await store.expect_node(session, "nodes/n1")
    async with database.read() as session:
        assert await store.expected_nodes(session) == ["nodes/n1"]
    assert await add_silence(1) == 1
    assert await add_silence(2) == 1
