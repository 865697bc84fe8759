"""The rules that every table of ours relies on, on both databases."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import pkgutil
import random
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

import switchgear
from switchgear.core.errors import FailedPrecondition, Invalid, Reason, Unavailable
from switchgear.store.base import Base
from switchgear.store.database import Database, sqlite_url
from switchgear.store.revisions import current_revision, lock_revision, next_revision
from switchgear.store.wal import WAL_BYTES_MAX


async def test_250_concurrent_increments_give_250(database: Database) -> None:
    async def increment() -> None:
        async with database.write() as session:
            await lock_revision(session, "counter")
            value = (await session.execute(text("SELECT token FROM leases WHERE name = 'n'"))).scalar_one()
            await session.execute(text("UPDATE leases SET token = :value WHERE name = 'n'"), {"value": value + 1})

    async with database.write() as session:
        await session.execute(text("INSERT INTO leases VALUES ('n', '', 0, 0)"))
    await asyncio.gather(*(increment() for _ in range(250)))
    async with database.read() as session:
        assert (await session.execute(text("SELECT token FROM leases WHERE name = 'n'"))).scalar_one() == 250


async def test_revisions_count_up_without_gaps_in_commit_order(database: Database) -> None:
    seen: list[int] = []

    async def write() -> None:
        async with database.write() as session:
            revision = await next_revision(session, "svc")
            seen.append(revision)

    await asyncio.gather(*(write() for _ in range(50)))
    assert seen == list(range(1, 51))
    async with database.read() as session:
        assert await current_revision(session, "svc") == 50
        assert await current_revision(session, "other") == 0


async def test_a_write_that_raises_leaves_nothing(database: Database) -> None:
    async def fail() -> None:
        async with database.write() as session:
            await next_revision(session, "svc")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    async with database.read() as session:
        assert await current_revision(session, "svc") == 0


async def test_a_statement_of_many_large_rows_can_be_cancelled_at_any_moment(database: Database) -> None:
    rows = [{"name": str(number), "holder": "h" * 64_000} for number in range(40)]

    async def insert() -> None:
        async with database.write() as session:
            await session.execute(text("INSERT INTO leases VALUES (:name, :holder, 0, 0)"), rows)
            await asyncio.sleep(60)

    moments = random.Random(1)
    for _ in range(60):
        task = asyncio.create_task(insert())
        await asyncio.sleep(moments.random() * 0.03)
        task.cancel()
        _, late = await asyncio.wait([task], timeout=20)
        assert not late
    async with database.read() as session:
        assert (await session.execute(text("SELECT count(*) FROM leases"))).scalar_one() == 0


async def test_a_driver_that_answers_a_cancellation_with_an_error_does_not_hide_it(database: Database) -> None:
    async def go_on() -> None:
        with contextlib.suppress(Unavailable):
            async with database.read():
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    raise OSError("connection was closed in the middle of operation") from None

    task = asyncio.create_task(go_on())
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_task_cancelled_in_a_write_leaves_no_lock_behind(database: Database) -> None:
    async def write() -> None:
        while True:
            async with database.read() as session:
                await current_revision(session, "svc")
            async with database.write() as session:
                await next_revision(session, "svc")

    moments = random.Random(1)
    for _ in range(60):
        task = asyncio.create_task(write())
        await asyncio.sleep(moments.random() * 0.01)
        task.cancel()
        # The lock would be missed for as long as a writer waits for another one: 10 s.
        await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 5)


async def test_a_read_sees_one_snapshot_while_others_write(database: Database) -> None:
    async with database.read() as session:
        assert await current_revision(session, "svc") == 0
        async with database.write() as writer:
            await next_revision(writer, "svc")
        session.expire_all()
        assert await current_revision(session, "svc") == 0


async def test_the_models_are_what_the_migrations_build(database: Database) -> None:
    for module in pkgutil.walk_packages(switchgear.__path__, "switchgear."):
        if module.name.endswith(("store", ".tables")):
            importlib.import_module(module.name)

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), Base.metadata))

    async with database.read() as session:
        assert await (await session.connection()).run_sync(differences) == []


async def test_several_processes_may_migrate_at_once_and_again(empty_database_url: str) -> None:
    databases = [Database(empty_database_url) for _ in range(4)]
    try:
        await asyncio.gather(*(database.migrate() for database in databases))
        await databases[0].migrate()
        async with databases[0].write() as session:
            assert await next_revision(session, "svc") == 1
    finally:
        for database in databases:
            await database.close()


async def test_a_newer_schema_is_refused_with_the_remedy(database: Database) -> None:
    async with database.write() as session:
        await session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(FailedPrecondition, match="install that version") as caught:
        await database.migrate()
    assert caught.value.reason is Reason.STATE_NEWER


@pytest.mark.parametrize(
    "url", ["", "state.db", "mysql://host/db", "sqlite+aiosqlite://", "sqlite+aiosqlite:///:memory:"]
)
def test_another_kind_of_database_is_refused(url: str) -> None:
    with pytest.raises(Invalid, match="sqlite"):
        Database(url)


_WRITER = """
import asyncio, sys
from switchgear.store.database import Database
from switchgear.store.revisions import next_revision

async def main():
    database = Database(sys.argv[1])
    while True:
        async with database.write() as session:
            revision = await next_revision(session, "svc")
        print(revision, flush=True)

asyncio.run(main())
"""


async def test_what_was_committed_survives_kill_9(database: Database, database_url: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WRITER, database_url, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    committed = [int(await process.stdout.readline()) for _ in range(20)]
    process.kill()
    committed += [int(line) for line in (await process.stdout.read()).splitlines()]
    await process.wait()
    async with database.write() as session:
        # The kill may fall between a commit and its print, or leave the server one statement behind.
        assert await next_revision(session, "svc") in (committed[-1] + 1, committed[-1] + 2)


async def test_a_closed_sqlite_database_is_one_file_under_the_path_that_was_given(tmp_path: Path) -> None:
    path = tmp_path / "50% & a#b?.db"
    database = Database(sqlite_url(path))
    await database.migrate()
    await database.close()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


async def test_an_outage_is_told_when_it_begins_and_when_it_ends_however_often_the_database_is_tried(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "disk"
    database = Database(sqlite_url(folder / "state.db"))
    for _ in range(5):
        with pytest.raises(Unavailable, match="unable to open") as caught:
            async with database.read() as session:
                await session.execute(text("SELECT 1"))
        assert caught.value.reason is Reason.DATABASE_UNUSABLE
    folder.mkdir()
    for _ in range(2):
        async with database.write() as session:
            await session.execute(text("SELECT 1"))
    await database.close()
    away, back = [record.message for record in caplog.records]
    assert "cannot use the database" in away
    assert back == "the database can be used again"


async def test_a_server_that_ends_its_sessions_is_an_outage_and_a_wrong_statement_is_none(database: Database) -> None:
    async def fail(statement: str) -> Exception:
        try:
            async with database.read() as session:
                await session.execute(text(statement))
        except Exception as error:
            return error
        raise AssertionError(statement)

    assert isinstance(await fail("SELECT * FROM nowhere"), DBAPIError)
    if database.is_shared:
        assert isinstance(await fail("SELECT pg_terminate_backend(pg_backend_pid())"), Unavailable)


async def test_the_log_of_sqlite_stays_short_beside_readers_that_leave_it_no_moment(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    database = Database(sqlite_url(path))
    await database.migrate()
    log, longest, stop = path.with_name("state.db-wal"), 0, asyncio.Event()

    async def read(until: asyncio.Event) -> None:
        async with database.read() as session:
            await session.execute(text("SELECT count(*) FROM revisions"))
            await until.wait()

    async def read_always(tasks: asyncio.TaskGroup) -> None:
        before = asyncio.Event()
        while not stop.is_set():
            end = asyncio.Event()
            tasks.create_task(read(end))
            await asyncio.sleep(0.02)
            before.set()  # the next one has begun
            before = end
        before.set()

    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read_always(tasks))
            async with database.write() as session:
                await session.execute(text("CREATE TABLE blobs (data BLOB)"))
            for _ in range(30):
                async with database.write() as session:
                    await session.execute(text("INSERT INTO blobs VALUES (zeroblob(2000000))"))
                    await session.execute(text("DELETE FROM blobs"))
                longest = max(longest, log.stat().st_size)
            stop.set()
        assert longest < 2 * WAL_BYTES_MAX
        # Jobs' environments are in it.
        assert {file.stat().st_mode & 0o777 for file in (path, log)} == {0o600}
    finally:
        await database.close()
