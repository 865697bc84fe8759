"""`switchgear explain` and `switchgear simulate` on the live state, over real gRPC."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from scheduler_plane import Plane, running

from switchgear.cli.main import main
from switchgear.core.clock import ManualClock
from switchgear.planner.records import snapshot_from_json
from switchgear.store.database import Database
from switchgear.v1 import job_service_pb2 as job_pb


@pytest.fixture
async def plane(sqlite_database: Database, tmp_path: Path) -> AsyncIterator[Plane]:
    async with running(sqlite_database, ManualClock(), tmp_path) as plane:
        yield plane


async def test_a_waiting_job_is_explained_and_what_is_proposed_would_start_it(
    plane: Plane, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    async def printed(*words: str) -> str:
        assert await asyncio.to_thread(main, [*words, "--server", plane.address]) == 0
        return capsys.readouterr().out

    await plane.agent("a")
    await plane.create("first")
    await plane.job_in("jobs/first", job_pb.Job.STARTING)
    await plane.create("second", nproc_per_node=2)
    await plane.job_in("jobs/second", job_pb.Job.PENDING)

    lines = (await printed("explain", "second")).splitlines()
    assert lines[0].startswith("jobs/second: GPUS: no node has 2 GPUs")
    assert any(line.startswith("expected to start: ") for line in lines)
    (command,) = [line.strip() for line in lines if line.strip().startswith("switchgear simulate whatif ")]
    assert await printed(*shlex.split(command)[1:]) == "jobs/second would start now\n"

    found = json.loads(await printed("explain", "jobs/second", "--json"))
    assert found["causes"][0]["cause"] == "GPUS"
    assert found["changes"][0]["change"] == "end jobs/first"
    assert "on nodes/a" in await printed("explain", "first")

    assert "no move of a running job" in await printed("simulate", "defragment")
    snapshot, _ = snapshot_from_json((await printed("simulate", "snapshot")).encode())
    assert [job.name for job in snapshot.pending] == ["jobs/second"]
