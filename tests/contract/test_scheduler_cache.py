"""What the scheduler keeps of its records in memory, while others write."""

from __future__ import annotations

import pytest

from switchgear.core.clock import ManualClock
from switchgear.scheduler import rules_store
from switchgear.scheduler.model import Inventory, NodeRecord, QueueRecord
from switchgear.scheduler.repository import Repository
from switchgear.scheduler.store import SERVICE
from switchgear.store.database import Database
from switchgear.store.revisions import current_revision


@pytest.fixture
async def repository(database: Database) -> Repository:
    repository = Repository(database, ManualClock())
    async with repository.write() as transaction:
        for name in ("nodes/a", "nodes/b"):
            await transaction.put_node(NodeRecord(name, Inventory("127.0.0.1", (), ""), 0))
    return repository


async def test_what_is_written_while_an_older_snapshot_is_read_is_in_the_next_one(repository: Repository) -> None:
    async with repository.database.read() as earlier:
        await current_revision(earlier, SERVICE)
        async with repository.write() as transaction:
            await rules_store.save_queue(transaction.session, QueueRecord("queues/lab"))
            await transaction.rules_changed()
            await transaction.forget_node("nodes/a")
        await repository.cache.snapshot(earlier, 0)
    _, snapshot = await repository.snapshot()
    assert [queue.name for queue in snapshot.rules.queues] == ["queues/lab"]
    assert [node.name for node in snapshot.nodes] == ["nodes/b"]


async def test_what_another_process_writes_is_seen(repository: Repository) -> None:
    await repository.snapshot()
    other = Repository(repository.database, ManualClock())
    async with other.write() as transaction:
        await rules_store.save_queue(transaction.session, QueueRecord("queues/lab"))
        await transaction.rules_changed()
        await transaction.forget_node("nodes/a")
    _, snapshot = await repository.snapshot()
    assert [queue.name for queue in snapshot.rules.queues] == ["queues/lab"]
    assert [node.name for node in snapshot.nodes] == ["nodes/b"]
