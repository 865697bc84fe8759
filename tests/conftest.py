"""Databases for the tests that need one: SQLite always, PostgreSQL where it is installed.

SWITCHGEAR_REQUIRE_SERVICES=1 turns a missing PostgreSQL from a skip into a failure.
"""

from __future__ import annotations

import os
import uuid
import venv
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from switchgear.cli.demo.postgres import Postgres, binaries
from switchgear.store.database import Database


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Path]:
    """A PostgreSQL of our own that listens on a Unix socket only; yields the socket's folder."""
    if binaries() is None:
        reason = "PostgreSQL is not installed; install the package postgresql to run this test"
        if os.environ.get("SWITCHGEAR_REQUIRE_SERVICES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    postgres = Postgres()
    try:
        postgres.start("-c fsync=off", "-c synchronous_commit=off", "-c full_page_writes=off")
        yield postgres.folder
    finally:
        postgres.close()


@pytest.fixture(params=["sqlite", "postgres"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'state.db'}"
        return
    socket_folder: Path = request.getfixturevalue("postgres_server")
    name = f"test_{uuid.uuid4().hex}"
    server = await asyncpg.connect(host=str(socket_folder), user="postgres", database="postgres")
    try:
        await server.execute(f"CREATE DATABASE {name}")
        yield f"postgresql+asyncpg://postgres@/{name}?host={socket_folder}"
        await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await server.close()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A migrated database of each kind."""
    database = Database(database_url)
    try:
        await database.migrate()
        yield database
    finally:
        await database.close()


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that has the standard library only."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    return str(folder / "bin/python")
