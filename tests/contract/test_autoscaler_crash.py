"""The autoscaler is killed after every single write, and what it was about to do is done all the same, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from autoscaler_plane import SERVICE, Plane, Replica, Router, running
from scheduler_plane import until
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from switchgear.autoscaler.store import InferenceServiceRow, ReplicaRow
from switchgear.store.database import Database
from switchgear.v1 import autoscaler_service_pb2 as pb
from switchgear.v1 import job_service_pb2 as job_pb

READY = pb.Replica.READY


class Deadly(Database):
    """After each write that changes a service or a replica the autoscaler is killed before its next step."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.plane: Plane | None = None
        self.kills = 0
        self._stored: list[tuple[Any, ...]] = []

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        async with super().write() as session:
            yield session
        if self.plane is None:
            return
        async with self.read() as session:
            tables = (InferenceServiceRow.__table__, ReplicaRow.__table__)
            stored = [tuple(row) for table in tables for row in await session.execute(select(table))]
        if stored != self._stored:
            self._stored = stored
            self.kills += 1
            self.plane.run_again()
            await asyncio.sleep(0)  # it is here that it ends


async def test_every_write_may_be_the_last_one_of_a_process(database_url: str, tmp_path: Path) -> None:
    database = Deadly(database_url)
    try:
        await database.migrate()
        async with running(database, tmp_path) as plane:
            database.plane = plane
            await _live_and_die(plane)
            assert database.kills >= 10
    finally:
        await database.close()


async def _live_and_die(plane: Plane) -> None:
    """From two replicas over a lost one to none."""
    await plane.agent("a", gpus=8)
    router = Router(plane, "router")
    await plane.create(2, 2)
    replicas = {}
    for number in (1, 2):
        await plane.replica_in(number, pb.Replica.STARTING)
        replicas[number] = Replica(plane, number)
        await replicas[number].load()
    await router.routes(1, 2)
    replicas[1].die()
    await plane.end_job(1, job_pb.Job.FAILED, "killed")
    await plane.replica_in(3, pb.Replica.STARTING)
    replicas[3] = Replica(plane, 3)
    await replicas[3].load()
    await router.routes(2, 3)
    await plane.call("DeleteInferenceService", pb.DeleteInferenceServiceRequest(name=SERVICE))
    await replicas[2].draining.wait()
    await replicas[3].draining.wait()

    async def gone() -> bool:
        plane.clock.advance(2)  # each new process first hears the routers
        await router.report()
        listed = await plane.call("ListInferenceServices", pb.ListInferenceServicesRequest())
        return not listed.inference_services

    await until(gone, 30)
    assert await plane.job_states() == {"chat-r1": "FAILED", "chat-r2": "CANCELLED", "chat-r3": "CANCELLED"}
    assert router.versions == sorted(router.versions)
