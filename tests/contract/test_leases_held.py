"""One process acts: it waits for its leases, keeps them, and writes nothing once it has lost them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from switchgear.core.clock import Clock, ManualClock, SystemClock
from switchgear.core.errors import Aborted, Reason
from switchgear.store import leases
from switchgear.store.database import Database
from switchgear.store.holder import Candidate
from switchgear.store.revisions import current_revision, next_revision

SCHEDULER = "services/scheduler"


def candidate(
    url: str, holder: str, *names: str, duration_s: float = 30, renew_s: float = 0.05, clock: Clock | None = None
) -> tuple[Database, Candidate]:
    database = Database(url)
    return database, Candidate(database, clock or SystemClock(), names or (SCHEDULER,), holder, duration_s, renew_s)


async def write(database: Database) -> int:
    async with database.write() as session:
        return await next_revision(session, "svc")


async def test_one_that_stands_by_takes_over_when_the_other_ends(database: Database, database_url: str) -> None:
    first, one = candidate(database_url, "one")
    second, two = candidate(database_url, "two")
    try:
        held = asyncio.Event()

        async def stand_by() -> None:
            async with two.holding():
                held.set()
                await write(second)

        async with one.holding():
            waiting = asyncio.create_task(stand_by())
            await write(first)
            await asyncio.sleep(0.2)
            assert not held.is_set()
        await asyncio.wait_for(waiting, 10)
    finally:
        await first.close()
        await second.close()


async def test_the_late_write_of_a_fenced_process_is_refused(database: Database, database_url: str) -> None:
    # As after a sleep that was longer than its lease.
    first, one = candidate(database_url, "one", duration_s=0, renew_s=30)
    second, two = candidate(database_url, "two")
    try:
        async with one.holding():
            await write(first)
            async with two.holding():
                with pytest.raises(Aborted) as refused:
                    await write(first)
                assert refused.value.reason is Reason.LEASE_LOST
                assert await write(second) == 2
        async with database.read() as session:
            assert await current_revision(session, "svc") == 2
    finally:
        await first.close()
        await second.close()


async def test_a_fenced_process_ends(database: Database, database_url: str) -> None:
    first, one = candidate(database_url, "one", duration_s=0)
    second, two = candidate(database_url, "two")
    try:
        with pytest.raises(ExceptionGroup) as ended:
            async with asyncio.timeout(10), one.holding(), two.holding():
                await asyncio.Event().wait()
        assert ended.group_contains(Aborted, match="taken over by")
    finally:
        await first.close()
        await second.close()


@pytest.mark.parametrize("answers", [True, False], ids=["fails", "hangs"])
async def test_one_that_alone_is_cut_off_from_the_database_stops_acting(
    database_url: str, answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, one = candidate(database_url, "one")

    @asynccontextmanager
    async def unreachable() -> AsyncIterator[AsyncSession]:
        if answers:
            raise OSError("network is unreachable")
        await asyncio.Event().wait()
        yield AsyncSession()

    async def act() -> None:
        async with asyncio.timeout(10), replace(one, give_up_s=0.5).holding():
            monkeypatch.setattr(cut, "write_unfenced", unreachable)
            await asyncio.Event().wait()

    try:
        with pytest.raises(Aborted, match=r"could not be renewed for 0\.5 s") as ended:
            await act()
        assert ended.value.reason is Reason.LEASE_LOST
    finally:
        await cut.close()


async def test_a_short_absence_of_the_database_ends_nobody(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, one = candidate(database_url, "one")

    @asynccontextmanager
    async def unreachable() -> AsyncIterator[AsyncSession]:
        raise OSError("network is unreachable")
        yield AsyncSession()

    try:
        async with replace(one, give_up_s=3).holding():
            with monkeypatch.context() as absence:
                absence.setattr(mine, "write_unfenced", unreachable)
                await asyncio.sleep(0.3)
            await asyncio.sleep(3)
            assert await write(mine) == 1
    finally:
        await mine.close()


async def test_one_that_comes_back_after_a_crash_waits_for_nobody(database: Database, database_url: str) -> None:
    async with database.write() as session:
        await leases.acquire(session, SCHEDULER, "one", duration_s=3600, now_unix_ns=SystemClock().unix_ns())
    again, one = candidate(database_url, "one")
    try:
        async with asyncio.timeout(5), one.holding():
            await write(again)
    finally:
        await again.close()


async def test_of_two_leases_both_are_taken_or_none(database: Database, database_url: str) -> None:
    now = SystemClock().unix_ns()
    async with database.write() as session:
        await leases.acquire(session, "services/b", "other", duration_s=3600, now_unix_ns=now)
    mine, one = candidate(database_url, "one", "services/a", "services/b")
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3), one.holding():
                pass
        async with database.write() as session:
            assert await leases.acquire(session, "services/a", "third", duration_s=1, now_unix_ns=now) is not None
    finally:
        await mine.close()


async def test_writers_under_one_lease_do_not_wait_for_each_other_nor_for_its_renewal(
    database: Database, database_url: str
) -> None:
    if not database.is_shared:
        pytest.skip("SQLite has one writer")
    clock = ManualClock()
    async with database.write() as session:
        lease = await leases.acquire(session, SCHEDULER, "one", duration_s=9, now_unix_ns=clock.unix_ns())
    assert lease is not None
    mine = Database(database_url)
    try:
        mine.write_under([lease])
        async with asyncio.timeout(5), mine.write() as session, mine.write() as another:
            await next_revision(session, "a")
            await next_revision(another, "b")
            async with mine.write_unfenced() as renewing:
                await leases.renew(renewing, lease, duration_s=9, now_unix_ns=clock.unix_ns())
            # A takeover does wait: nobody writes under the old lease once the new one is given out.
            clock.advance(60)
            taking = asyncio.create_task(_take(database, clock))
            await asyncio.sleep(0.2)
            assert not taking.done()
        assert (await asyncio.wait_for(taking, 5)).token == lease.token + 1
    finally:
        await mine.close()


async def test_one_that_stands_by_waits_for_no_writer_of_the_holder(database: Database, database_url: str) -> None:
    if not database.is_shared:
        pytest.skip("SQLite has one writer")
    clock = ManualClock()
    mine = Database(database_url)
    try:
        async with database.write() as session:
            lease = await leases.acquire(session, SCHEDULER, "one", duration_s=9, now_unix_ns=clock.unix_ns())
        assert lease is not None
        mine.write_under([lease])
        async with asyncio.timeout(5), mine.write(), database.write() as session:
            assert await leases.acquire(session, SCHEDULER, "two", duration_s=9, now_unix_ns=clock.unix_ns()) is None
    finally:
        await mine.close()


async def test_one_that_stands_by_outlives_an_absence_of_the_database(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, one = candidate(database_url, "one")

    @asynccontextmanager
    async def unreachable() -> AsyncIterator[AsyncSession]:
        raise OSError("network is unreachable")
        yield AsyncSession()

    async def stand_by() -> int:
        async with one.holding():
            return await write(mine)

    try:
        with monkeypatch.context() as absence:
            absence.setattr(mine, "write_unfenced", unreachable)
            waiting = asyncio.create_task(stand_by())
            await asyncio.sleep(0.2)
        assert await asyncio.wait_for(waiting, 5) == 1
    finally:
        await mine.close()


@pytest.mark.parametrize("skew_s", [-3600, 3600], ids=["behind", "ahead"])
async def test_on_a_shared_database_the_clock_of_a_process_says_nothing_about_an_expiry(
    database: Database, database_url: str, skew_s: int
) -> None:
    if not database.is_shared:
        pytest.skip("on SQLite all processes have the clock of one machine")
    skewed = ManualClock(SystemClock().unix_ns() + skew_s * 1_000_000_000)
    first, one = candidate(database_url, "one", duration_s=1)
    second, two = candidate(database_url, "two", clock=skewed)
    try:
        async with asyncio.timeout(10), one.holding():
            with pytest.raises(TimeoutError):  # one holds it, however late two believes it to be
                async with asyncio.timeout(0.3), two.holding():
                    pass
            await write(first)
        async with database.write() as session:
            now = await leases.now_unix_ns(session, skewed)
            await leases.acquire(session, SCHEDULER, "crashed", duration_s=0.2, now_unix_ns=now)
        async with asyncio.timeout(5), two.holding():  # nor does it wait an hour for one that has crashed
            await write(second)
    finally:
        await first.close()
        await second.close()


async def test_a_jump_of_the_wall_clock_ends_no_holder(database: Database, database_url: str) -> None:
    clock = ManualClock()
    mine, one = candidate(database_url, "one", duration_s=6, clock=clock)
    try:
        async with one.holding():
            for jump_s in (3600, -7200):
                clock.advance(jump_s)
                await asyncio.sleep(3 * one.renew_s)
            assert await write(mine) == 1
    finally:
        await mine.close()


async def _take(database: Database, clock: ManualClock) -> leases.Lease:
    async with database.write() as session:
        lease = await leases.acquire(session, SCHEDULER, "two", duration_s=9, now_unix_ns=clock.unix_ns())
    assert lease is not None
    return lease
