"""GetJobGoodput and GetReliability over real gRPC and REST, on both databases, also when recovery is stopped on the way."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from recovery_plane import Launcher, World, refusal, running, until
from sqlalchemy import update

from switchgear.cli import exits
from switchgear.cli.goodput import tell_at_end
from switchgear.cli.main import main
from switchgear.core.errors import Reason
from switchgear.core.service import Endpoints
from switchgear.gateway.main import build_app, serve
from switchgear.recovery import model as m
from switchgear.recovery import store
from switchgear.recovery.ledger import Bucket, Cost, Ledger
from switchgear.store.database import Database
from switchgear.v1 import job_service_pb2 as job_pb
from switchgear.v1 import recovery_service_pb2 as pb
from switchgear.v1alpha import launcher_service_pb2 as wire

JOB = "jobs/llama"
SECOND_NS = 1_000_000_000
#: 100 s of two GPUs.
KILLED = Cost("RANK_KILLED", "nodes/a", incidents=2, lost_gpu_ns=30 * SECOND_NS, recovered=1, recovery_ns=4 * SECOND_NS)
LEDGER = Ledger(
    gpus=2,
    settled_ns=100 * SECOND_NS,
    at_ns=100 * SECOND_NS,
    gpu_ns={Bucket.QUEUE: 20 * SECOND_NS, Bucket.PRODUCTIVE: 150 * SECOND_NS, Bucket.RESTART: 30 * SECOND_NS},
    costs=(KILLED,),
)


def ended(job: str, ledger: Ledger, *, inference: bool = False) -> m.JobState:
    spec = m.Spec(1, 2, 3, "", inference=inference)
    return m.JobState(job, spec, create_ns=1, phase=m.Phase.ENDED, end_ns=100 * SECOND_NS, ledger=ledger)


async def goodput(world: World, job: str = JOB) -> pb.JobGoodput:
    found: pb.JobGoodput = await world.call("GetJobGoodput", pb.GetJobGoodputRequest(name=f"{job}/goodput"))
    assert [bucket.bucket for bucket in found.buckets] == list(Bucket)
    assert sum(bucket.gpu_seconds for bucket in found.buckets) == pytest.approx(found.gpu_seconds)
    assert found.gpu_seconds == pytest.approx(2 * found.wall_seconds)
    return found


async def step(world: World, launcher: Launcher, made: int) -> None:
    """All ranks have completed that step by now, their first one."""
    now_ns = world.clock.unix_ns()
    steps = [
        wire.RankStep(
            rank=rank,
            step=made,
            count=made - launcher.resume_step,
            time_unix_ns=now_ns,
            first_step_time_unix_ns=now_ns,
            first_new_step_time_unix_ns=now_ns,
        )
        for rank in launcher.alive
    ]
    await launcher.report(progress=wire.Progress(ranks=steps))


def seconds(found: pb.JobGoodput) -> dict[str, float]:
    return {b.bucket: round(b.gpu_seconds / 2, 3) for b in found.buckets if b.gpu_seconds}


async def test_the_time_of_a_job_is_told_while_it_runs_and_after_its_end(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path) as world:
        agent = await world.agent("a")
        await world.create("llama", checkpoints=True)
        launcher = await world.launcher(agent, JOB)
        await launcher.has("start", 1)
        world.clock.advance(5)
        await step(world, launcher, 1)
        await world.job(JOB, job_pb.Job.RUNNING)
        world.clock.advance(10)
        running_now = seconds(await goodput(world))
        assert running_now == {"startup": 5, "productive": 10}

        await world.restart_recovery()
        await launcher.heard()
        world.clock.advance(1)
        assert seconds(await goodput(world)) == {"startup": 5, "productive": 11}
        launcher.checkpoints = [
            wire.CheckpointReport(path="/w/checkpoints/1.pt", state=wire.CheckpointReport.VERIFIED, step=1, digest="d")
        ]
        await launcher.exit(1, -9)
        await launcher.has("start", 2)
        world.clock.advance(2)
        await step(world, launcher, 3)
        await world.incident(JOB, pb.Incident.RESOLVED)
        for rank in list(launcher.alive):
            await launcher.exit(rank, 0)
        await until(lambda: bool(launcher.finished))
        await world.job(JOB, job_pb.Job.SUCCEEDED)
        world.clock.advance(1000)
        found = await goodput(world)
        assert found.wall_seconds == pytest.approx(18)
        assert seconds(found).keys() >= {"startup", "load"}
        (cost,) = found.costs
        assert (cost.cause, cost.node, cost.incidents) == ("RANK_KILLED", "nodes/a", 1)
        assert found.report.splitlines()[0] == "where the 18.0 s of 2 ranks went:"
        reliability = await world.call("GetReliability", pb.GetReliabilityRequest())
        assert (reliability.jobs, reliability.gpu_seconds) == (1, pytest.approx(36))
        assert list(reliability.costs) == [cost]


async def test_a_job_that_is_not_known_has_no_goodput(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path) as world:
        request = pb.GetJobGoodputRequest(name="jobs/none/goodput")
        assert (await refusal(world.call("GetJobGoodput", request))).reason is Reason.NOT_FOUND
        nothing = await world.call("GetReliability", pb.GetReliabilityRequest())
        assert nothing == pb.Reliability()
        assert not nothing.HasField("ettr")


async def test_reliability_is_of_all_training_jobs_that_are_kept_and_can_be_read(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = replace(LEDGER, costs=(KILLED, Cost("GPU_LOST", "nodes/b", incidents=1, lost_gpu_ns=90 * SECOND_NS)))
    states = [
        ended("jobs/one", LEDGER),
        ended("jobs/two", other),
        ended("jobs/chat-r1", LEDGER, inference=True),
        ended("jobs/old", LEDGER),
        ended("jobs/strange", LEDGER),
    ]
    async with database.write() as session:
        for state in states:
            await store.save(session, state, [])
    async with database.write() as session:
        for job, changed in (("jobs/old", {"spec": {"inference": False}}), ("jobs/strange", {"ledger": {"gpus": "x"}})):
            row = store.RecoveryJobRow
            await session.execute(update(row).where(row.job == job).values(state=changed))
    async with running(database, tmp_path) as world:
        found: pb.Reliability = await world.call("GetReliability", pb.GetReliabilityRequest())
        assert (found.jobs, found.gpu_seconds, found.goodput) == (2, 400, 0.75)
        assert found.ettr == pytest.approx(300 / 360)
        assert (found.mttf_seconds, found.mttr_seconds) == (150 / 5, 4)
        told = [(cost.cause, cost.node, cost.incidents, cost.lost_gpu_seconds) for cost in found.costs]
        assert told == [("GPU_LOST", "nodes/b", 1, 90), ("RANK_KILLED", "nodes/a", 4, 60)]
        assert [record.__dict__["job"] for record in caplog.records if "cost" in record.message] == ["jobs/strange"]


async def test_people_read_both_and_the_report_at_the_end_of_a_run(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with database.write() as session:
        await store.save(session, ended("jobs/one", LEDGER), [])
    async with running(database, tmp_path) as world:

        async def shown(*words: str) -> str:
            code = await asyncio.to_thread(main, ["goodput", "--server", world.recovery_address, *words])
            assert code == exits.OK
            return capsys.readouterr().out

        assert (await shown("one")).splitlines()[:3] == [
            "jobs/one",
            "where the 1 min 40 s of 2 ranks went:",
            "  queue        10.0%       10.0 s",
        ]
        assert json.loads(await shown("one", "--json"))["goodput"] == 0.75
        assert (await shown()).splitlines() == [
            "1 job, 0.06 GPU h: goodput 75.0%, ETTR 83.3%",
            "one incident each 38 s of productive time, 4.0 s until the next new step",
            "",
            "CAUSE        NODE  INCIDENTS  GPU HOURS LOST  SECONDS TO A NEW STEP",
            "RANK_KILLED  a     2          0.008           4.0",
        ]
        assert json.loads(await shown("--json"))["jobs"] == "1"
        await asyncio.to_thread(tell_at_end, world.recovery_address, "jobs/one")
        assert capsys.readouterr().err.startswith("switchgear: where the 1 min 40 s of 2 ranks went:\n")
        await asyncio.to_thread(tell_at_end, world.recovery_address, "jobs/none")
        assert capsys.readouterr() == ("", "")


async def test_both_are_served_by_rest_and_in_the_api_description(database: Database, tmp_path: Path) -> None:
    async with database.write() as session:
        await store.save(session, ended("jobs/one", LEDGER), [])
    async with (
        running(database, tmp_path) as world,
        serve(build_app(Endpoints.all_at(world.recovery_address)), "127.0.0.1", 0) as address,
        httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as client,
    ):
        found = (await client.get("/v1/jobs/one/goodput")).json()
        assert (found["name"], found["wallSeconds"], found["goodput"]) == ("jobs/one/goodput", 100, 0.75)
        assert {"bucket": "restart", "gpuSeconds": 30} in found["buckets"]
        assert (await client.get("/v1/reliability")).json()["costs"][0]["cause"] == "RANK_KILLED"
        assert (await client.get("/v1/jobs/none/goodput")).status_code == 404
        paths = (await client.get("/openapi.json")).json()["paths"]
        assert {"/v1/jobs/{name_0}/goodput", "/v1/reliability"} <= paths.keys()
