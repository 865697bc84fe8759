"""Idempotent requests, leases, the change feed and pages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from google.protobuf.wrappers_pb2 import Int64Value, StringValue
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from switchgear.core.clock import ManualClock
from switchgear.core.errors import Aborted, Invalid, OutOfRange, Reason
from switchgear.store import leases
from switchgear.store.database import Database
from switchgear.store.feed import ChangeFeed
from switchgear.store.requests import RETENTION_S, once
from switchgear.store.revisions import next_revision
from switchgear.store.tables import RequestRow


async def _count_up(database: Database, request_id: str, payload: str, clock: ManualClock) -> int:
    async with database.write() as session:

        async def act() -> Int64Value:
            return Int64Value(value=await next_revision(session, "svc"))

        request = StringValue(value=payload)
        response = await once(session, request_id, request, Int64Value, act, now_unix_ns=clock.unix_ns())
        return response.value


async def test_the_same_request_acts_once_and_answers_the_same(database: Database) -> None:
    clock = ManualClock()
    answers = await asyncio.gather(*(_count_up(database, "r1", "a", clock) for _ in range(10)))
    assert answers == [1] * 10
    assert await _count_up(database, "r2", "a", clock) == 2
    assert await _count_up(database, "", "a", clock) == 3


async def test_a_request_id_with_another_request_is_refused(database: Database) -> None:
    clock = ManualClock()
    await _count_up(database, "r1", "a", clock)
    with pytest.raises(Invalid) as caught:
        await _count_up(database, "r1", "b", clock)
    assert caught.value.reason is Reason.REQUEST_ID_REUSED
    with pytest.raises(Invalid, match="UUID"):
        await _count_up(database, "x" * 129, "a", clock)


async def test_requests_are_forgotten_after_a_day(database: Database) -> None:
    clock = ManualClock()
    for request_id in ("r1", "r2", "r3"):
        await _count_up(database, request_id, "a", clock)
    clock.advance(RETENTION_S + 1)
    assert await _count_up(database, "r1", "b", clock) == 4
    async with database.read() as session:
        assert await session.scalar(select(func.count()).select_from(RequestRow)) == 1


async def test_a_lease_has_one_holder_until_it_expires(database: Database) -> None:
    now = 1_000_000_000_000
    async with database.write() as session:
        first = await leases.acquire(session, "placer", "a", duration_s=5, now_unix_ns=now)
    async with database.write() as session:
        assert await leases.acquire(session, "placer", "b", duration_s=5, now_unix_ns=now + 1) is None
    assert first is not None
    async with database.write() as session:
        renewed = await leases.renew(session, first, duration_s=5, now_unix_ns=now + 4_000_000_000)
    assert (renewed.token, renewed.expire_time_unix_ns) == (first.token, now + 9_000_000_000)
    async with database.write() as session:
        second = await leases.acquire(session, "placer", "b", duration_s=5, now_unix_ns=now + 9_000_000_000)
    assert second is not None
    assert second.token == first.token + 1


async def test_a_write_under_a_lost_lease_fails(database: Database) -> None:
    now = 1_000_000_000_000
    async with database.write() as session:
        old = await leases.acquire(session, "placer", "a", duration_s=1, now_unix_ns=now)
    async with database.write() as session:
        new = await leases.acquire(session, "placer", "b", duration_s=1, now_unix_ns=now + 2_000_000_000)
    assert old is not None
    assert new is not None
    with pytest.raises(Aborted) as caught:
        async with database.write() as session:
            await leases.fence(session, old)
    assert caught.value.reason is Reason.LEASE_LOST
    async with database.write() as session:
        await leases.release(session, old)
        await leases.fence(session, new)


async def test_a_holder_that_acquires_again_fences_off_its_former_self(database: Database) -> None:
    async with database.write() as session:
        old = await leases.acquire(session, "placer", "a", duration_s=9, now_unix_ns=1)
        new = await leases.acquire(session, "placer", "a", duration_s=9, now_unix_ns=2)
    assert old is not None
    assert new is not None
    with pytest.raises(Aborted):
        async with database.write() as session:
            await leases.renew(session, old, duration_s=9, now_unix_ns=3)


async def test_a_released_lease_is_free_and_its_token_grows_on(database: Database) -> None:
    async with database.write() as session:
        first = await leases.acquire(session, "placer", "a", duration_s=9, now_unix_ns=1)
        assert first is not None
        await leases.release(session, first)
        second = await leases.acquire(session, "placer", "b", duration_s=9, now_unix_ns=2)
    assert second is not None
    assert second.token > first.token


async def test_of_many_that_want_a_lease_one_gets_it(database: Database) -> None:
    async def want(holder: str) -> leases.Lease | None:
        async with database.write() as session:
            return await leases.acquire(session, "placer", holder, duration_s=9, now_unix_ns=1)

    got = await asyncio.gather(*(want(f"h{i}") for i in range(10)))
    assert len([lease for lease in got if lease is not None]) == 1


async def _add(database: Database, name: str) -> int:
    """A row whose token is its revision: enough of a table to be watched."""
    async with database.write() as session:
        revision = await next_revision(session, "svc")
        await session.execute(
            text(
                "INSERT INTO leases VALUES (:name, '', :revision, 0) ON CONFLICT (name) DO UPDATE SET token = :revision"
            ),
            {"name": name, "revision": revision},
        )
        return revision


async def _page(session: AsyncSession, after: int, limit: int) -> Sequence[tuple[int, str]]:
    rows = await session.execute(
        text("SELECT token, name FROM leases WHERE token > :after ORDER BY token LIMIT :limit"),
        {"after": after, "limit": limit},
    )
    return [(row.token, row.name) for row in rows]


async def test_a_watch_gives_the_newest_form_of_each_row_then_what_changes(database: Database) -> None:
    feed = ChangeFeed(database, "svc", poll_s=60)
    for name in ("a", "b", "a"):
        await _add(database, name)
    watch = feed.watch(0, _page)
    assert [await anext(watch) for _ in range(3)] == [(2, "b"), (3, "a"), (3, None)]
    following = asyncio.create_task(anext(watch))
    await asyncio.sleep(0.05)
    await _add(database, "c")
    feed.changed()
    assert await asyncio.wait_for(following, 5) == (4, "c")
    await watch.aclose()


async def test_a_watch_sees_what_another_process_wrote(database: Database) -> None:
    feed = ChangeFeed(database, "svc", poll_s=0.02)
    watch = feed.watch(0, _page)
    assert await anext(watch) == (0, None)
    await _add(database, "a")
    assert await asyncio.wait_for(anext(watch), 5) == (1, "a")
    await watch.aclose()


async def test_a_watch_is_told_when_the_revision_moves_without_a_row(database: Database) -> None:
    feed = ChangeFeed(database, "svc", poll_s=0.02)
    watch = feed.watch(0, _page)
    assert await anext(watch) == (0, None)
    async with database.write() as session:
        await next_revision(session, "svc")
    assert await asyncio.wait_for(anext(watch), 5) == (1, None)
    await watch.aclose()


async def test_a_watch_pages_through_a_long_past(database: Database) -> None:
    async with database.write() as session:
        for number in range(1, 451):
            await next_revision(session, "svc")
            await session.execute(text("INSERT INTO leases VALUES (:n, '', :r, 0)"), {"n": f"n{number}", "r": number})
    watch = ChangeFeed(database, "svc").watch(10, _page)
    assert [(await anext(watch))[0] for _ in range(441)] == [*range(11, 451), 450]
    await watch.aclose()


@pytest.mark.parametrize("revision", [-1, 2])
async def test_an_unknown_revision_is_out_of_range(database: Database, revision: int) -> None:
    await _add(database, "a")
    with pytest.raises(OutOfRange, match="list again"):
        await anext(ChangeFeed(database, "svc").watch(revision, _page))
