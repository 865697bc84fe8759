"""Databases for the tests that need one: SQLite always, PostgreSQL where it is installed.

SWITCHGEAR_REQUIRE_SERVICES=1 turns a missing PostgreSQL from a skip into a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from switchgear.store.database import Database


def _postgres_binaries() -> Path | None:
    newest_first = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]), reverse=True
    )
    found = [*newest_first, *map(Path, filter(None, [shutil.which("initdb")]))]
    return next((path.parent for path in found if (path.parent / "pg_ctl").exists()), None)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Path]:
    """A PostgreSQL of our own that listens on a Unix socket only; yields the socket's folder."""
    binaries = _postgres_binaries()
    if binaries is None:
        reason = "PostgreSQL is not installed; install the package postgresql to run this test"
        if os.environ.get("SWITCHGEAR_REQUIRE_SERVICES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    # PostgreSQL refuses to run as root, and its user must reach the folder, which pytest's own are too private for.
    root = os.geteuid() == 0
    as_user = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups"] if root else []
    folder = Path(tempfile.mkdtemp(prefix="switchgear-pg-"))
    if root:
        shutil.chown(folder, "postgres", "postgres")
    control = [*as_user, str(binaries / "pg_ctl"), "-D", str(folder / "data")]
    options = f"-k {folder} -c listen_addresses= -c fsync=off -c synchronous_commit=off -c full_page_writes=off"
    try:
        initialise = ["-o", "-A trust -U postgres -E UTF8 --locale=C.UTF-8 --no-sync"]
        subprocess.run([*control, *initialise, "initdb"], check=True, capture_output=True, cwd=folder)
        subprocess.run(
            [*control, "-w", "-l", str(folder / "log"), "-o", options, "start"],
            check=True,
            # A pipe would be inherited by the server and never close.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
        )
        yield folder
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=False, capture_output=True, cwd=folder)
        shutil.rmtree(folder, ignore_errors=True)


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
