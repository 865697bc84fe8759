"""Databases for the tests that need one: SQLite always, PostgreSQL where it is installed.

SWITCHGEAR_REQUIRE_SERVICES=1 turns a missing PostgreSQL from a skip into a failure; the same for Slurm (`slurm_cluster.py`).
"""

from __future__ import annotations

import os
import shutil
import uuid
import venv
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import hypothesis
import pytest
from slurm_cluster import SlurmCluster

from switchgear.cli.demo.postgres import Postgres, binaries
from switchgear.store.database import Database, sqlite_url

# How long an example takes says more about the machine and its other processes than about the code.
hypothesis.settings.register_profile("switchgear", deadline=None)
hypothesis.settings.load_profile("switchgear")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: "e2e" not in item.path.parts)


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
async def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """A database of each kind without tables."""
    if request.param == "sqlite":
        yield sqlite_url(tmp_path / "state.db")
        return
    async with _postgres_database(request.getfixturevalue("postgres_server"), migrated=False) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
async def database_url(
    request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[str]:
    """A migrated database of each kind."""
    if request.param == "sqlite":
        yield await _migrated_sqlite(tmp_path_factory, tmp_path)
        return
    async with _postgres_database(request.getfixturevalue("postgres_server"), migrated=True) as url:
        yield url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A migrated database of each kind."""
    database = Database(database_url)
    yield database
    await database.close()


@pytest.fixture
async def sqlite_database(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Database]:
    """A migrated database for tests of what does not reach it, or does so elsewhere on both kinds."""
    database = Database(await _migrated_sqlite(tmp_path_factory, tmp_path))
    yield database
    await database.close()


async def _migrated_sqlite(factory: pytest.TempPathFactory, folder: Path) -> str:
    """The URL of a copy: migrations cost many times what a copy does."""
    template = factory.getbasetemp() / "migrated.db"
    if not template.exists():
        await _migrate(sqlite_url(template))
    return sqlite_url(shutil.copy(template, folder / "state.db"))


@asynccontextmanager
async def _postgres_database(socket_folder: Path, *, migrated: bool) -> AsyncIterator[str]:
    """The URL of a new database: a copy of one that is migrated once a server, or an empty one."""
    name, template = f"test_{uuid.uuid4().hex}", "migrated" if migrated else "template1"
    server = await asyncpg.connect(host=str(socket_folder), user="postgres", database="postgres")
    try:
        if migrated and not await server.fetchval("SELECT count(*) FROM pg_database WHERE datname = $1", template):
            await server.execute(f"CREATE DATABASE {template}")
            await _migrate(f"postgresql+asyncpg://postgres@/{template}?host={socket_folder}")
        await server.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        yield f"postgresql+asyncpg://postgres@/{name}?host={socket_folder}"
        await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await server.close()


async def _migrate(url: str) -> None:
    database = Database(url)
    try:
        await database.migrate()
    finally:
        await database.close()


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that has the standard library only."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    return str(folder / "bin/python")


@pytest.fixture(scope="session")
def slurm_of_session() -> Iterator[SlurmCluster]:
    """A real Slurm that the tests of this process share."""
    cluster = SlurmCluster()
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def slurm(slurm_of_session: SlurmCluster) -> SlurmCluster:
    """A real Slurm: all nodes idle, no job. A test may end its daemons: the next test finds them mended."""
    slurm_of_session.mend()
    return slurm_of_session
