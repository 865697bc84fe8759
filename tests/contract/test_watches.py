"""What watchers of signals and health are promised: nothing twice, nothing left out, a clear end when history is gone, and no cost by the head."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import grpc.aio
import pytest
from health_plane import WITHIN_S, collector
from sqlalchemy.ext.asyncio import AsyncSession

from switchgear.collector import health_store, store
from switchgear.collector.detectors import signals_of
from switchgear.collector.model import Event, Signal
from switchgear.core import rpc
from switchgear.core.clock import ManualClock
from switchgear.core.errors import OutOfRange
from switchgear.store.database import Database
from switchgear.store.feed import ChangeFeed
from switchgear.v1 import signal_service_pb2 as signals
from switchgear.v1.signal_service_pb2_grpc import SignalServiceStub
from switchgear.v1alpha import health_service_pb2 as pb


async def raise_signals(database: Database, first: int, count: int) -> None:
    events = [
        Event("nodes/n1", "boot", "kernel_log", number, 5, "XID", None, 79, f"{number}", simulated=False)
        for number in range(first, first + count)
    ]
    async with database.write() as session:
        await store.add_events(session, [(event, signals_of(event)) for event in events])


async def test_a_client_that_is_killed_again_and_again_gets_each_signal_once(database: Database) -> None:
    await raise_signals(database, 1, 450)  # more than two pages
    async with collector(database, ManualClock()) as plane:
        seen, revision = list[str](), 0
        for lives in (1, 199, 2, 248, None):
            stub: Any = SignalServiceStub(plane.channel)
            call = stub.WatchSignals(signals.WatchSignalsRequest(revision=revision))
            left = lives
            while left is None or left:
                told = await asyncio.wait_for(call.read(), WITHIN_S)
                revision = told.revision
                if not told.HasField("signal"):
                    break  # a bookmark: caught up
                seen.append(told.signal.evidence)
                left = None if left is None else left - 1
            call.cancel()
        assert seen == [str(number) for number in range(1, 451)]
        assert revision == 450


async def test_a_watch_of_what_was_pruned_ends_with_out_of_range(database: Database) -> None:
    await raise_signals(database, 1, 20)
    async with database.write() as session:
        await store.prune(session, events_max=100, signals_max=5)
    async with collector(database, ManualClock()) as plane:
        stub: Any = SignalServiceStub(plane.channel)
        for revision in (0, 14):
            call = stub.WatchSignals(signals.WatchSignalsRequest(revision=revision))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.wait_for(call.read(), WITHIN_S)
            assert isinstance(rpc.from_rpc_error(caught.value), OutOfRange)
        call = stub.WatchSignals(signals.WatchSignalsRequest(revision=15))
        assert (await asyncio.wait_for(call.read(), WITHIN_S)).revision == 16


async def test_a_watch_behind_a_forgotten_node_ends_with_out_of_range(database: Database) -> None:
    clock = ManualClock()
    async with database.write() as session:
        now = clock.unix_ns()
        await health_store.change(session, ["nodes/gone", "nodes/here"], lambda one: one, now)
    for _ in range(2):  # told that it is forgotten, then gone itself
        async with database.write() as session:
            await health_store.change(session, ["nodes/here"], lambda one: one, now)
            await session.execute(
                health_store.HealthRow.__table__.update()
                .where(health_store.HealthRow.node == "nodes/gone", health_store.HealthRow.verdict == "HEALTHY")
                .values(verdict="SILENT")
            )
            now += 10**9
            await health_store.forget(session, now, now)
    async with collector(database, clock) as plane:
        listed = await plane.health.ListNodeHealth(pb.ListNodeHealthRequest())
        assert [one.name for one in listed.nodes] == ["nodes/here/health"]
        call = plane.health.WatchNodeHealth(pb.WatchNodeHealthRequest(revision=2))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(call.read(), WITHIN_S)
        assert isinstance(rpc.from_rpc_error(caught.value), OutOfRange)
        call = plane.health.WatchNodeHealth(pb.WatchNodeHealthRequest(revision=listed.revision))
        assert (await asyncio.wait_for(call.read(), WITHIN_S)).revision == listed.revision


async def test_a_thousand_watchers_cost_the_database_as_much_as_one(sqlite_database: Database) -> None:
    await raise_signals(sqlite_database, 1, 250)
    feed = ChangeFeed(sqlite_database, store.SERVICE, poll_s=1e9)
    reads = 0

    async def page(session: AsyncSession, after: int, limit: int) -> Sequence[tuple[int, Signal]]:
        nonlocal reads
        reads += 1
        return await store.signals_after(session, after, limit)

    caught_up = [asyncio.Event() for _ in range(1000)]

    async def watch(number: int) -> list[int]:
        seen = list[int]()
        async for revision, signal in feed.watch(0, page):
            if signal is None:
                caught_up[number].set()
            else:
                seen.append(revision)
            if revision == 251:
                return seen
        raise AssertionError("the watch ended")

    async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as tasks:
        watchers = [tasks.create_task(watch(number)) for number in range(1000)]
        for event in caught_up:
            await event.wait()
        assert reads == 2  # its two pages
        await raise_signals(sqlite_database, 251, 1)
        feed.changed()
    assert reads == 3
    assert all(watcher.result() == list(range(1, 252)) for watcher in watchers)


async def test_a_watcher_that_is_killed_while_it_reads_for_others_takes_nothing_from_them(
    sqlite_database: Database,
) -> None:
    await raise_signals(sqlite_database, 1, 1)
    feed = ChangeFeed(sqlite_database, store.SERVICE, poll_s=1e9)
    reading, go_on = asyncio.Event(), asyncio.Event()

    async def page(session: AsyncSession, after: int, limit: int) -> Sequence[tuple[int, Signal]]:
        reading.set()
        await go_on.wait()
        return await store.signals_after(session, after, limit)

    first, second = (asyncio.ensure_future(anext(feed.watch(0, page))) for _ in range(2))
    await asyncio.wait_for(reading.wait(), WITHIN_S)
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    go_on.set()
    revision, _ = await asyncio.wait_for(second, WITHIN_S)
    assert revision == 1


async def test_a_watcher_that_does_not_take_what_it_gets_holds_one_page(sqlite_database: Database) -> None:
    await raise_signals(sqlite_database, 1, 450)
    feed = ChangeFeed(sqlite_database, store.SERVICE, poll_s=1e9)
    reads = list[int]()

    async def page(session: AsyncSession, after: int, limit: int) -> Sequence[tuple[int, Signal]]:
        reads.append(after)
        return await store.signals_after(session, after, limit)

    watch = feed.watch(0, page)
    await anext(watch)
    await asyncio.sleep(0.05)
    assert reads == [0]
    await watch.aclose()
