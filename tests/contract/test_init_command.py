"""`switchgear init` and the database that its first token goes into."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from switchgear.access.people import People
from switchgear.cli import init
from switchgear.cli.main import parser
from switchgear.core.clock import SystemClock
from switchgear.core.identity import Role
from switchgear.store.database import Database


async def test_the_first_token_is_in_the_database_that_the_services_will_read(
    tmp_path: Path, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWITCHGEAR_DATABASE_URL", empty_database_url)
    for command in (["init"], ["up"], ["serve", "gateway"]):
        assert parser(command[0]).parse_args(command).database_url == empty_database_url
    arguments = parser("init").parse_args(["init", "--state-dir", str(tmp_path / "state")])
    assert await asyncio.to_thread(init.main, arguments) == 0
    database = Database(empty_database_url)
    try:
        admin = await People(database, SystemClock()).holder(f"Bearer {(tmp_path / 'state/token').read_text().strip()}")
    finally:
        await database.close()
    assert admin.role is Role.ADMIN
    assert not (tmp_path / "state/switchgear.db").exists()
