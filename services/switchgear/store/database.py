"""One database for a process: SQLite or PostgreSQL behind the same two words, `read` and `write`."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from switchgear.core.errors import FailedPrecondition, Invalid, Reason, Unavailable
from switchgear.store.batches import cancellable
from switchgear.store.leases import Lease, fence
from switchgear.store.wal import WAL_BYTES_MAX, Wal

log = logging.getLogger(__name__)

_MIGRATIONS = Path(__file__).parent / "migrations"
_DRIVERS = ("sqlite+aiosqlite", "postgresql+asyncpg")
#: Any constant will do: it only has to be the same in all processes.
_MIGRATE_LOCK = 7_294_451_002_713
#: Another process may hold SQLite's write lock for a migration or a slow disk's fsync; beyond this the disk is ill.
_BUSY_TIMEOUT_MS = 10_000
#: A process that is stopped in the middle of a write would keep its locks, and with them its lease, for as long as it is stopped.
_SERVER_SETTINGS = {"idle_in_transaction_session_timeout": "10000"}
#: A cancelled session ends in milliseconds; one that does not is stuck and must not keep the process.
_CLOSE_TIMEOUT_S = 5.0
#: PostgreSQL's classes of errors that are not about a statement: connection, authorization, no such database, resources,
#: not in the state for it, operator, system.
_OUTAGES = frozenset({"08", "28", "3D", "53", "55", "57", "58"})


class Database:
    """A pool of connections to `sqlite+aiosqlite:///PATH` or `postgresql+asyncpg://…`.

    Never await a network call or another `read` or `write` of the same task inside one: on SQLite there is one writer.
    Both raise Unavailable (DATABASE_UNUSABLE) while the database is away. The log says so when that begins and when it ends, so
    whoever tries again need not.
    Raises Invalid for any other URL.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
        except ArgumentError:
            parsed = None
        if parsed is None or parsed.drivername not in _DRIVERS or not parsed.database or parsed.database == ":memory:":
            # The URL itself may hold a password, so it is not repeated.
            raise Invalid(
                "the database URL must read sqlite+aiosqlite:///PATH or postgresql+asyncpg://USER@HOST/DATABASE",
                Reason.BAD_FIELD,
                field="database_url",
            )
        sqlite = parsed.drivername == "sqlite+aiosqlite"
        # A server closes idle connections when it restarts; the probe costs one round trip and saves one failed call.
        # `read` and `write` always end their transaction, so SQLite saves the second rollback.
        reset = None if sqlite else "rollback"
        connect_args = {} if sqlite else {"server_settings": _SERVER_SETTINGS}
        self._engine = create_async_engine(
            parsed, pool_pre_ping=not sqlite, pool_reset_on_return=reset, connect_args=connect_args
        )
        if sqlite:
            event.listen(self._engine.sync_engine, "connect", _prepare_sqlite)
            event.listen(self._engine.sync_engine, "begin", _begin_sqlite)
            event.listen(self._engine.sync_engine, "invalidate", _abandon_sqlite)
            self._writer = self._engine.execution_options(switchgear_write=True)
            reader = self._engine
        else:
            self._writer = self._engine
            cancellable(self._engine)
            # One snapshot for all statements of a read: a list and the revision that it names agree.
            reader = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        # Two async sessions that read, modify and write lose updates on SQLite without any error; so they take turns.
        self._turn: AbstractAsyncContextManager[Any] = asyncio.Lock() if sqlite else nullcontext()
        self._file = Path(parsed.database) if sqlite else None
        self._wal = Wal(self._file) if self._file else None
        #: Processes on several machines may use it at the same time.
        self.is_shared = not sqlite
        self._leases: tuple[Lease, ...] = ()
        self._away = False
        self._sessions_open = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._read_sessions = async_sessionmaker(reader, expire_on_commit=False)
        self._write_sessions = async_sessionmaker(self._writer, expire_on_commit=False)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session that sees one snapshot and writes nothing."""
        with self._counted(), self._watched():
            async with self._read_sessions() as session, session.begin():
                yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A transaction: committed, on disk, when the block ends; rolled back when it raises.

        On PostgreSQL writers run at the same time under READ COMMITTED. One that reads what it changes takes the
        service's turn first: `lock_revision` or `next_revision`.
        Raises Aborted (LEASE_LOST) when this process has lost a lease under which it writes.
        """
        async with self.write_unfenced() as session:
            if self._leases:
                await fence(session, *self._leases)
            yield session

    @asynccontextmanager
    async def write_unfenced(self) -> AsyncIterator[AsyncSession]:
        """As `write`, for the leases themselves."""
        with self._counted(), self._watched():
            async with self._turn:
                async with self._write_sessions() as session, session.begin():
                    yield session
                if self._wal and self._wal.is_long():
                    await self._cut(self._wal)

    def write_under(self, leases: Sequence[Lease]) -> None:
        """From now on every `write` is made under these leases."""
        self._leases = tuple(leases)

    async def migrate(self) -> None:
        """Brings the schema to this version's; safe when several processes do it at once.

        Raises FailedPrecondition (STATE_NEWER) when a newer version has written here.
        """
        try:
            if self._file:  # SQLite gives its other files the same mode
                os.close(os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            async with self._turn, self._writer.begin() as connection:
                await connection.run_sync(_upgrade)
        except (OSError, SQLAlchemyError, asyncpg.PostgresError) as error:
            raise self._unusable(error) from error

    async def _cut(self, wal: Wal) -> None:
        async with self._engine.connect() as connection:
            raw = await connection.get_raw_connection()
            await wal.cut(raw.driver_connection, _BUSY_TIMEOUT_MS)

    async def close(self) -> None:
        """Closes all connections, once the open sessions have ended; their tasks must have been told to.

        A cancelled task closes its SQLite connection on the way out. If the event loop ended and cancelled it once more in the
        middle of that, the driver would wait for ever, and so would the end of the process.
        """
        try:
            await asyncio.wait_for(self._idle.wait(), _CLOSE_TIMEOUT_S)
        except TimeoutError:
            log.error("%d database sessions do not end; closing without them", self._sessions_open)
        await self._engine.dispose()

    def _unusable(self, error: Exception) -> Unavailable:
        cause = (str(getattr(error, "orig", None) or error) or type(error).__name__).splitlines()[0]
        return Unavailable(
            f"cannot use the database {self._engine.url.render_as_string(hide_password=True)}: {cause}; "
            "is it there, may this user write to it, and is its disk not full?",
            Reason.DATABASE_UNUSABLE,
        )

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # Drivers may answer a cancellation with an error of their own; who goes on after that never ends.
                raise asyncio.CancelledError from error
            if not _is_outage(error):
                raise
            unusable = self._unusable(error)
            if not self._away:
                log.error(unusable.message)
            self._away = True
            raise unusable from error
        if self._away:
            log.warning("the database can be used again")
        self._away = False

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._sessions_open += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._sessions_open -= 1
            if not self._sessions_open:
                self._idle.set()


def _is_outage(error: Exception) -> bool:
    """Whether it is the database that cannot, and not the statement that is wrong: the same again may succeed."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, OSError | asyncpg.PostgresError | asyncpg.InterfaceError)  # no connection was made
    if error.connection_invalidated or isinstance(error, InterfaceError):
        return True
    if sqlstate := getattr(error.orig, "sqlstate", None):
        return str(sqlstate)[:2] in _OUTAGES
    code = getattr(error.orig, "sqlite_errorcode", sqlite3.SQLITE_ERROR)  # SQLITE_ERROR: of the statement
    return isinstance(error, OperationalError) and code & 0xFF != sqlite3.SQLITE_ERROR


def sqlite_url(path: Path) -> str:
    """The URL of the SQLite database in that file, whatever characters its path has. The folder must exist."""
    return URL.create("sqlite+aiosqlite", database=str(path)).render_as_string()


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver must not begin by itself: `_begin_sqlite` says how
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    _use_wal(cursor)
    cursor.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _use_wal(cursor: Any) -> None:
    """Two that turn a new file into WAL at once: SQLite tells one of them at once that it is locked, whatever its busy timeout."""
    deadline_s = time.monotonic() + _BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                raise
            time.sleep(0.005)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that turns into a write fails at once when another process wrote meanwhile.
    writes = connection.get_execution_options().get("switchgear_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _abandon_sqlite(connection: Any, _record: object, _error: object) -> None:
    # A task was cancelled in the middle of a statement. Closing alone would leave the transaction, and with it the write
    # lock, to the garbage collector: a cursor that is still referenced keeps the closed connection alive in SQLite.
    connection.rollback()


def migrations() -> Config:
    """Alembic's configuration of our chain of migrations."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATE_LOCK})
    config = migrations()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    present = MigrationContext.configure(connection).get_current_heads()
    if unknown := sorted(set(present) - known):
        raise FailedPrecondition(
            f"the state was written by a newer version of Switchgear (schema {', '.join(unknown)}); "
            "install that version or choose another state directory or database",
            Reason.STATE_NEWER,
            schema=",".join(unknown),
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
