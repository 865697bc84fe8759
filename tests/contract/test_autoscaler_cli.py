"""`switchgear services`, against a running autoscaler."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from autoscaler_plane import SERVICE, Plane, running

from switchgear.cli import exits
from switchgear.cli.main import main
from switchgear.core.errors import Reason
from switchgear.store.database import Database
from switchgear.v1 import autoscaler_service_pb2 as pb


@pytest.fixture
async def plane(sqlite_database: Database, tmp_path: Path) -> AsyncIterator[Plane]:
    async with running(sqlite_database, tmp_path) as plane:
        yield plane


async def test_a_service_is_created_listed_shown_scaled_and_deleted(
    plane: Plane, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    async def services(*words: str) -> tuple[int, str]:
        arguments = ["services", "--server", plane.address, *words]
        code = await asyncio.to_thread(main, arguments)
        return code, capsys.readouterr().out

    await plane.agent("a")
    assert (await services())[1].startswith("no inference services: make one with")
    create = ("create", "chat", "--min", "1", "--max", "2", "--tokens-per-second", "40", "--env", "B=2")
    assert (await services(*create, "--", "serve.py"))[0] == exits.exit_code(Reason.SCRIPT_UNREADABLE)
    (tmp_path / "serve.py").touch()
    with pytest.raises(SystemExit, match="2"):
        await services("create", "chat", "--max", "99999999999999", "--", "serve.py")
    code, out = await services(*create, "--", "serve.py", "--json", "--batch", "4")
    assert (code, out) == (exits.OK, f"{SERVICE}: 0 ready, 1 desired of 1 to 2\n")
    spec = (await plane.get()).spec
    assert (list(spec.argv), dict(spec.environment)) == (["serve.py", "--json", "--batch", "4"], {"B": "2"})
    await plane.ready(1)
    assert "chat     1      1        1-2" in (await services())[1]
    shown = (await services("chat"))[1]
    assert "READY  a     127.0.0.1:9001  0        0" in shown
    found = json.loads((await services("chat", "--json"))[1])
    assert [one["name"] for one in found] == [SERVICE, f"{SERVICE}/replicas/1"]
    assert (await services("scale", "chat", "--min", "2"))[1] == f"{SERVICE}: 1 ready, 2 desired of 2 to 2\n"
    await plane.replica_in(2, pb.Replica.STARTING)
    assert (await services("delete", "chat"))[1] == f"{SERVICE}: being deleted, 1 ready\n"
    assert (await services("create", "other"))[0] == exits.USAGE
