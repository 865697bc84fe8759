"""The collector's tables on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from switchgear.collector import store
from switchgear.collector.detectors import signals_of, silence_signal
from switchgear.collector.event_writer import EventWriter
from switchgear.collector.main import build
from switchgear.collector.model import Event
from switchgear.core import rpc
from switchgear.core.clock import ManualClock
from switchgear.core.errors import OutOfRange
from switchgear.store.database import Database, sqlite_url
from switchgear.v1.signal_service_pb2 import ListSignalsRequest
from switchgear.v1.signal_service_pb2_grpc import SignalServiceStub

EVENT = Event("nodes/n1", "boot", "kernel_log", 1, 5, "XID", None, 79, "text", simulated=False)


async def add(database: Database, *events: Event) -> tuple[int, int]:
    async with database.write() as session:
        stored, raised = await store.add_events(session, [(event, signals_of(event)) for event in events])
    return stored, len(raised)


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


async def test_an_event_that_was_pruned_and_is_sent_again_raises_no_second_signal(database: Database) -> None:
    second = replace(EVENT, sequence=2)
    await add(database, EVENT, second)
    async with database.write() as session:
        await store.prune(session, events_max=1, signals_max=4)
    assert await add(database, EVENT, replace(EVENT, sequence=3)) == (2, 1)
    async with database.read() as session:
        assert [revision for revision, _ in await store.signals_after(session, 0, 10)] == [1, 2, 3]


@pytest.mark.parametrize("bad", [0, 3, 6])
async def test_an_event_that_the_database_does_not_take_costs_itself_alone(database: Database, bad: int) -> None:
    events = [replace(EVENT, sequence=2**63 if number == bad else number + 1) for number in range(7)]
    stored = 0

    async def commit(batch: Sequence[Event]) -> None:
        nonlocal stored
        stored += (await add(database, *batch))[0]

    dropped: list[None] = []
    done: list[Event] = []
    writer = EventWriter(commit, store.refused, lambda: dropped.append(None))
    for event in events:
        await writer.put(event, done.append)
    task = asyncio.create_task(writer.run())
    async with asyncio.timeout(10):
        while len(done) < len(events):  # noqa: ASYNC110 - the writer works in a task of its own
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (done, stored, len(dropped)) == (events, 6, 1)


async def test_a_page_of_long_signals_fits_into_a_message_and_leaves_none_out(database: Database) -> None:
    lines = [f"{number} " + "\N{HEAVY CHECK MARK}" * 5000 for number in range(300)]
    await add(database, *(replace(EVENT, sequence=number + 1, text=text) for number, text in enumerate(lines)))
    service, server = build(database, ManualClock()), rpc.Server()
    service.register(server.grpc)
    address = await server.start("127.0.0.1:0", service.service_names)
    seen: list[str] = []
    token = ""
    async with rpc.channel(address) as channel:
        stub: Any = SignalServiceStub(channel)
        while not seen or token:
            page = await stub.ListSignals(ListSignalsRequest(page_size=1000, page_token=token))
            seen += [signal.evidence for signal in page.signals]
            token = page.next_page_token
    await server.stop(0)
    assert seen == lines[::-1]


async def test_events_wait_while_the_database_is_away(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "state.db"))  # not migrated: it has no tables yet
    with pytest.raises(OperationalError) as caught:
        await add(database, EVENT)
    assert not store.refused(caught.value)
    await database.close()


async def test_a_silence_is_stored_only_for_a_node_that_is_expected(database: Database) -> None:
    async def add_silence(now: int) -> int:
        async with database.write() as session:
            await store.add_silences(session, [silence_signal("nodes/n1", 11, now)])
        async with database.read() as session:
            return len(await store.signals_before(session, "", None, 10))

    async with database.write() as session:
        await store.expect_nodes(session, ["nodes/n1"])
        await store.expect_nodes(session, ["nodes/n1"])
    async with database.read() as session:
        assert await store.expected_nodes(session) == ["nodes/n1"]
    assert await add_silence(1) == 1
    assert await add_silence(2) == 1
