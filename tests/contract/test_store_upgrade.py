"""What an earlier version has written is read after the upgrade, on both databases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import command
from sqlalchemy import Connection, text

from switchgear.core.clock import ManualClock
from switchgear.recovery import model as m
from switchgear.recovery import store
from switchgear.recovery.ledger import Bucket, Ledger
from switchgear.scheduler.model import EndedRun
from switchgear.scheduler.repository import Repository
from switchgear.store.database import Database, migrations, sqlite_url
from switchgear.store.installation import installation_name

#: Before jobs told when they were submitted, and whose they are.
BEFORE = "0013"


def _migrated(connection: Connection, revision: str) -> None:
    config = migrations()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


async def test_run_times_and_the_cost_of_jobs_outlive_the_upgrade(empty_database_url: str) -> None:
    database = Database(empty_database_url)
    try:
        async with database.write() as session:
            await (await session.connection()).run_sync(_migrated, BEFORE)
            columns = '(job, create_revision, "user", key, queue, gpus, seconds, end_unix_ns)'
            await session.execute(
                text(f"INSERT INTO job_runs {columns} VALUES ('jobs/a', 7, 'ada', 'train', 'queues/q', 8, 60, 9)")  # noqa: S608 - our own words
            )
            ended = m.JobState("jobs/a", m.Spec(1, 1, 3, ""), create_ns=1, phase=m.Phase.ENDED, end_ns=9)
            ended.ledger = Ledger(gpus=1, gpu_ns={Bucket.PRODUCTIVE: 5})
            await store.save(session, ended, [])
            row = await session.get_one(store.RecoveryJobRow, "jobs/a")
            row.state = {**row.state, "spec": _without(row.state["spec"], "account", "user", "queue")}
        await database.migrate()
        _, snapshot = await Repository(database, ManualClock()).snapshot()
        assert snapshot.rules.history == (EndedRun("ada", "train", "queues/q", 8, 60, 9, None),)
        assert snapshot.rules.attempts == ()
        async with database.read() as session:
            costs = [(owner, ledger.gpu_ns) async for owner, ledger in store.ended_ledgers(session, "user")]
        assert costs == [("", {Bucket.PRODUCTIVE: 5})]
    finally:
        await database.close()


async def test_an_installation_has_one_name_whoever_migrates_and_another_than_the_next(
    empty_database_url: str, tmp_path: Path
) -> None:
    first, again, other = (
        Database(empty_database_url),
        Database(empty_database_url),
        Database(sqlite_url(tmp_path / "other.db")),
    )
    try:
        found = []
        for database in (first, again, other):
            await database.migrate()
            async with database.read() as session:
                found.append(await installation_name(session))
        assert found[0] == found[1] != found[2]
        assert len(found[0]) == 8
    finally:
        for database in (first, again, other):
            await database.close()


def _without(stored: dict[str, Any], *fields: str) -> dict[str, Any]:
    return {name: value for name, value in stored.items() if name not in fields}
