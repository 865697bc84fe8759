"""A pass of the scheduler over the largest fleet with the largest queue, on SQLite: reading, planning, writing.

    python benchmarks/scheduler.py [--nodes 10000] [--jobs 10000]

Prints a table. The fleet is filled first, in passes as they come; then the queue is as long as asked for, and nothing can start.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from switchgear.core.clock import ManualClock
from switchgear.core.warm import WarmKind
from switchgear.scheduler.decide import Snapshot
from switchgear.scheduler.model import (
    GpuRecord,
    Inventory,
    JobRecord,
    JobSpec,
    JobState,
    NodeRecord,
    NodeStatus,
    Observation,
    Wanted,
)
from switchgear.scheduler.reconciler import Reconciler
from switchgear.scheduler.repository import Repository
from switchgear.store.database import Database, sqlite_url

_INVENTORY = Inventory("127.0.0.1", tuple(GpuRecord(index, model="H100") for index in range(8)), "1")


class _Engine:
    """All nodes are there, and nothing runs on them."""

    def __init__(self, nodes: int) -> None:
        status = NodeStatus(_INVENTORY, connected=True, silent=False)
        self._observation = Observation(tuple((f"nodes/n{n:05}", status) for n in range(nodes)), complete=True)

    def observe(self) -> Observation:
        return self._observation

    def last_heard(self) -> Mapping[str, int]:
        return {}

    def want(self, wanted: Mapping[str, Wanted], warm: Mapping[str, Sequence[WarmKind]]) -> None:
        pass


async def main(nodes: int, jobs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        database = Database(sqlite_url(Path(folder) / "state.db"))
        await database.migrate()
        clock = ManualClock()
        repository = Repository(database, clock)
        async with repository.write() as transaction:
            for number in range(nodes):
                await transaction.put_node(NodeRecord(f"nodes/n{number:05}", _INVENTORY, clock.unix_ns()))
        seen: list[Snapshot] = []
        reconciler = Reconciler(
            repository, _Engine(nodes), asyncio.Event(), interval_s=1.0, seen=lambda snapshot, _: seen.append(snapshot)
        )
        await _submit(repository, jobs, 0)
        starts, begin_s = 0, time.perf_counter()
        print(f"{'pass':>30}  {'seconds':>8}  {'pending':>8}  {'running':>8}")
        for number in range(100):
            pass_s = time.perf_counter()
            await reconciler.reconcile()
            running = sum(bool(job.placement.nodes) for job in seen[-1].jobs)
            _row(f"filling, {number + 1}", time.perf_counter() - pass_s, seen[-1])
            if running == starts:
                break
            starts = running
        print(f"{starts} jobs started in {time.perf_counter() - begin_s:.1f} s")
        await _submit(repository, jobs - sum(job.state is JobState.PENDING for job in seen[-1].jobs), jobs)
        for number in range(3):
            clock.advance(11)
            pass_s = time.perf_counter()
            await reconciler.reconcile()
            _row(f"full, {number + 1}", time.perf_counter() - pass_s, seen[-1])
        await database.close()


async def _submit(repository: Repository, count: int, first: int) -> None:
    async with repository.write() as transaction:
        for number in range(first, first + count):
            spec = JobSpec(
                ("train.py",),
                "/w",
                (),
                "",
                1 + number % 4,
                8 if number % 3 else 2,
                0,
                "",
                "/logs",
                user=f"u{number % 7}",
            )
            await transaction.put_job(JobRecord(f"jobs/j{number:05}", spec, transaction.now_unix_ns))


def _row(what: str, took_s: float, snapshot: Snapshot) -> None:
    pending = sum(job.state is JobState.PENDING for job in snapshot.jobs)
    running = sum(bool(job.placement.nodes) for job in snapshot.jobs)
    print(f"{what:>30}  {took_s:8.2f}  {pending:8}  {running:8}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=10_000)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.nodes, arguments.jobs))
