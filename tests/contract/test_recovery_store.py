"""Recovery's tables on both databases: one step is one transaction, history is bounded, lists are paged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recovery_plane import refusal, running
from sqlalchemy import func, select

from switchgear.core.errors import FailedPrecondition, Reason
from switchgear.recovery import model as m
from switchgear.recovery import store
from switchgear.store.database import Database
from switchgear.store.revisions import current_revision
from switchgear.v1 import recovery_service_pb2 as pb

JOB = "jobs/llama"
SPEC = m.Spec(nnodes=1, nproc_per_node=1, max_restarts=3, checkpoint_directory="")


def state(job: str = JOB, **fields: Any) -> m.JobState:
    return m.JobState(job, SPEC, create_ns=1, **fields)


def ended(job: str, end_ns: int, **fields: Any) -> m.JobState:
    return state(job, phase=m.Phase.ENDED, end_ns=end_ns, outcome=m.JobOutcome.SUCCEEDED, **fields)


def attempt(generation: int) -> m.SaveAttempt:
    return m.SaveAttempt(m.Attempt(generation, m.AttemptState.FAILED, ["nodes/a"], generation, 0, "127.0.0.1", 4000))


def incident(number: int, job: str = JOB, now: m.IncidentState = m.IncidentState.OPEN) -> m.SaveIncident:
    found = m.Incident(f"{job.removeprefix('jobs/')}-{number}", job, now, m.Fault.RANK_KILLED)
    return m.SaveIncident(replace(found, evidence=["seen"], timeline={"detected": number}))


def checkpoint(step: int) -> m.SaveCheckpoint:
    return m.SaveCheckpoint(m.Checkpoint(f"/c/{step}", m.CheckpointState.VERIFIED, step, commit_ns=step))


async def save(database: Database, state: m.JobState, *records: m.Effect) -> None:
    async with database.write() as session:
        await store.save(session, state, records)


async def count(database: Database, table: type[Any]) -> int:
    async with database.read() as session:
        return await session.scalar(select(func.count()).select_from(table)) or 0


async def test_what_is_stored_is_read_back_as_it_was(database: Database) -> None:
    rank = m.Rank("nodes/a", pid=7, step=None, exit=m.Exit(0, "nodes/a", 7, 5, -9, by_us=False, step=3))
    running_attempt = replace(attempt(1).attempt, ranks={0: rank}, launcher_ids={"nodes/a": "x"})
    before = state(
        phase=m.Phase.STOPPING,
        slots=[m.Slot("nodes/a", "127.0.0.1", 1)],
        launchers={"nodes/a": m.Launcher(connected=True, launcher_id="x", seen_s=1.5)},
        attempt=running_attempt,
        incident=incident(1).incident,
        checkpoints={"/c/1": checkpoint(1).checkpoint},
        failures=[
            m.Failure(m.Fault.RANK_KILLED, "SIGKILL", None, progressed=False),
            m.Failure(
                m.Fault.RANK_HUNG, "hung: 0", 3, progressed=False, hang=m.Hang(3, 2, True, (0,), ("f (a.py:1)",))
            ),
        ],
        outbox=[m.Call(1, "set_state", outcome=m.JobOutcome.RECOVERING)],
    )
    await save(database, before)
    async with database.read() as session:
        assert await store.running(session) == [before]


async def test_a_step_is_stored_whole_or_not_at_all(database: Database) -> None:
    broken: Any = m.SaveCheckpoint(None)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        await save(database, state(), attempt(1), incident(1), broken)
    for table in (store.RecoveryJobRow, store.AttemptRow, store.IncidentRow, store.CheckpointRow):
        assert await count(database, table) == 0
    async with database.read() as session:
        assert await current_revision(session, store.SERVICE) == 0


async def test_an_ended_job_is_loaded_again_until_its_last_call_is_confirmed(database: Database) -> None:
    unconfirmed = ended(JOB, 5, outbox=[m.Call(1, "set_state", outcome=m.JobOutcome.SUCCEEDED)])
    await save(database, unconfirmed)
    async with database.read() as session:
        assert await store.running(session) == [unconfirmed]
    await save(database, replace(unconfirmed, outbox=[]))
    async with database.read() as session:
        assert await store.running(session) == []
        assert await store.state_of(session, JOB) == replace(unconfirmed, outbox=[])


async def test_the_records_of_a_job_are_bounded_and_the_oldest_go_first(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bound in ("ATTEMPTS_MAX", "INCIDENTS_MAX", "CHECKPOINTS_MAX"):
        monkeypatch.setattr(store, bound, 3)
    await save(database, state("jobs/other"), attempt(1), incident(1, "jobs/other"), checkpoint(1))
    for number in range(1, 6):
        await save(database, state(), attempt(number), incident(number), checkpoint(number))
    await save(database, state(), incident(5, now=m.IncidentState.RESOLVED), *map(checkpoint, range(4, 7)))
    async with database.read() as session:
        assert [found.generation for found in await store.attempts(session, JOB, 0, 10)] == [3, 4, 5]
        found = [(i.incident_id, i.state.value) for _, i in await store.incidents(session, JOB, None, 10)]
        assert found == [("llama-5", "RESOLVED"), ("llama-4", "OPEN"), ("llama-3", "OPEN")]
        assert [found.step for found in await store.checkpoints(session, JOB)] == [6, 5, 4]
        assert len(await store.attempts(session, "jobs/other", 0, 10)) == 1
        assert len(await store.checkpoints(session, "jobs/other")) == 1


async def test_the_jobs_that_ended_first_are_forgotten_with_all_their_records(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "JOBS_ENDED_MAX", 2)
    await save(database, state("jobs/alive"))
    for number in (3, 1, 2, 4):
        await save(
            database, ended(f"jobs/j{number}", number), attempt(1), incident(1, f"jobs/j{number}"), checkpoint(1)
        )
    async with database.read() as session:
        known = [await store.state_of(session, f"jobs/{name}") for name in ("j1", "j2", "j3", "j4", "alive")]
    assert [found is not None for found in known] == [False, False, True, True, True]
    for table in (store.AttemptRow, store.IncidentRow, store.CheckpointRow):
        assert await count(database, table) == 2


async def test_a_state_that_cannot_be_read_is_left_out_and_said(database: Database) -> None:
    await save(database, state())
    async with database.write() as session:
        session.add(store.RecoveryJobRow(job="jobs/strange", state={"job": 1}, ended=False))
    async with database.read() as session:
        assert await store.running(session) == [state()]
        with pytest.raises(FailedPrecondition, match="cancel the job") as caught:
            await store.state_of(session, "jobs/strange")
    assert caught.value.reason is Reason.STATE_NEWER


async def test_lists_are_paged_and_their_tokens_are_only_good_for_them(database: Database, tmp_path: Path) -> None:
    numbers = range(1, 6)
    await save(database, ended(JOB, 9), *map(attempt, numbers), *map(checkpoint, numbers))
    for number in numbers:
        await save(database, ended(JOB, 9), incident(number))
    await save(database, ended("jobs/other", 9), incident(1, "jobs/other"))
    async with running(database, tmp_path) as world:

        async def pages(method: str, request: Any, field: str, key: str) -> list[list[Any]]:
            found: list[list[Any]] = []
            while not found or request.page_token:
                page = await world.call(method, request)
                found.append([getattr(item, key) for item in getattr(page, field)])
                request.page_token = page.next_page_token
            return found

        attempts = pb.ListAttemptsRequest(parent=JOB, page_size=2)
        assert await pages("ListAttempts", attempts, "attempts", "generation") == [[1, 2], [3, 4], [5]]
        checkpoints = pb.ListCheckpointsRequest(parent=JOB, page_size=5)
        assert await pages("ListCheckpoints", checkpoints, "checkpoints", "step") == [[5, 4, 3, 2, 1]]
        incidents = pb.ListIncidentsRequest(job=JOB, page_size=3)
        assert await pages("ListIncidents", incidents, "incidents", "name") == [
            ["incidents/llama-5", "incidents/llama-4", "incidents/llama-3"],
            ["incidents/llama-2", "incidents/llama-1"],
        ]
        everything = await pages("ListIncidents", pb.ListIncidentsRequest(page_size=1000), "incidents", "name")
        assert everything[0][0] == "incidents/other-1"
        assert len(everything[0]) == 6

        first = await world.call("ListIncidents", pb.ListIncidentsRequest(job=JOB, page_size=1))
        elsewhere = pb.ListAttemptsRequest(parent=JOB, page_token=first.next_page_token)
        assert (await refusal(world.call("ListAttempts", elsewhere))).reason is Reason.BAD_PAGE_TOKEN
