"""Goodput by account, user and queue over real gRPC and REST, on both databases."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest
from recovery_plane import World, refusal, running

from switchgear.cli import exits
from switchgear.cli.main import main
from switchgear.core.errors import Reason
from switchgear.core.service import Endpoints
from switchgear.gateway.main import build_app, serve
from switchgear.recovery import model as m
from switchgear.recovery import store
from switchgear.recovery.ledger import Bucket, Cost, Ledger
from switchgear.store.database import Database
from switchgear.v1 import recovery_service_pb2 as pb

SECOND_NS = 1_000_000_000
BY = pb.GetReliabilityRequest


def ended(job: str, account: str, user: str, queue: str, *costs: Cost, hours: int = 1) -> m.JobState:
    """A job of one GPU: a tenth of its time in the queue, seven tenths productive, two of restarts."""
    tenth_ns = hours * 360 * SECOND_NS
    gpu_ns = {Bucket.QUEUE: tenth_ns, Bucket.PRODUCTIVE: 7 * tenth_ns, Bucket.RESTART: 2 * tenth_ns}
    ledger = Ledger(gpus=1, settled_ns=10 * tenth_ns, at_ns=10 * tenth_ns, gpu_ns=gpu_ns, costs=costs)
    spec = m.Spec(1, 1, 3, "", account=account, user=user, queue=queue)
    return m.JobState(job, spec, create_ns=1, phase=m.Phase.ENDED, end_ns=10 * tenth_ns, ledger=ledger)


def cost(cause: str, node: str, hours: float) -> Cost:
    return Cost(cause, node, incidents=1, lost_gpu_ns=round(hours * 3600 * SECOND_NS))


async def kept(database: Database) -> None:
    jobs = (
        ended("jobs/a", "chem", "ada", "queues/night", cost("RANK_KILLED", "nodes/a", 0.1), hours=2),
        ended("jobs/b", "chem", "bob", "", cost("RANK_KILLED", "nodes/b", 0.1), cost("NODE_LOST", "nodes/b", 0.05)),
        ended("jobs/c", "physics", "ada", "queues/night"),
        ended("jobs/d", "", "", ""),
    )
    async with database.write() as session:
        for job in jobs:
            await store.save(session, job, [])


async def by(world: World, group_by: BY.GroupBy) -> dict[str, pb.GoodputGroup]:
    found: pb.Reliability = await world.call("GetReliability", BY(group_by=group_by))
    assert found.gpu_seconds == pytest.approx(sum(group.gpu_seconds for group in found.groups))
    assert sum(group.jobs for group in found.groups) == found.jobs == 4
    for group in found.groups:
        assert [bucket.bucket for bucket in group.buckets] == list(Bucket)
        assert sum(bucket.gpu_seconds for bucket in group.buckets) == pytest.approx(group.gpu_seconds)
    return {group.key: group for group in found.groups}


async def test_the_gpu_time_of_all_jobs_is_told_by_account_user_and_queue(database: Database, tmp_path: Path) -> None:
    await kept(database)
    async with running(database, tmp_path) as world:
        accounts = await by(world, BY.ACCOUNT)
        assert list(accounts) == ["chem", "", "physics"]  # most GPU time first, then by name
        chem = accounts["chem"]
        assert (chem.jobs, chem.gpu_seconds, round(chem.goodput, 6)) == (2, 3 * 3600, 0.7)
        assert chem.ettr == pytest.approx(7 / 9)
        lost = [(one.cause, one.node, one.incidents, round(one.lost_gpu_seconds)) for one in chem.costs]
        assert lost == [("RANK_KILLED", "", 2, 720), ("NODE_LOST", "", 1, 180)]
        users = {key: group.gpu_seconds / 3600 for key, group in (await by(world, BY.USER)).items()}
        assert users == {"ada": 3, "bob": 1, "": 1}
        queues = {key: group.jobs for key, group in (await by(world, BY.QUEUE)).items()}
        assert queues == {"queues/night": 2, "": 2}
        assert not (await world.call("GetReliability", BY())).groups
        assert (await refusal(world.call("GetReliability", BY(group_by=9)))).reason is Reason.BAD_FIELD  # type: ignore[arg-type]


async def test_a_job_that_runs_counts_for_its_account(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path) as world:
        agent = await world.agent("a")
        await world.create("llama", account="chem")
        await (await world.launcher(agent, "jobs/llama")).has("start", 1)
        world.clock.advance(5)
        found: pb.Reliability = await world.call("GetReliability", BY(group_by=BY.ACCOUNT))
        assert [(group.key, group.jobs, group.gpu_seconds) for group in found.groups] == [("chem", 1, 10)]


async def test_people_read_it_as_a_table_and_programs_as_json(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await kept(database)
    async with (
        running(database, tmp_path) as world,
        serve(build_app(Endpoints.all_at(world.recovery_address)), "127.0.0.1", 0) as address,
        httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as client,
    ):

        async def shown(*words: str) -> str:
            code = await asyncio.to_thread(main, ["goodput", "--server", world.recovery_address, *words])
            assert code == exits.OK
            return capsys.readouterr().out

        assert (await shown("--by", "account")).splitlines() == [
            "ACCOUNT  JOBS  GPU HOURS  QUEUED  PRODUCTIVE  LOST   GOODPUT  ETTR   MOST LOST BY",
            "chem     2     3.000      0.300   2.100       0.250  70.0%    77.8%  RANK_KILLED 0.200",
            "-        1     1.000      0.100   0.700       0.000  70.0%    77.8%  -",
            "physics  1     1.000      0.100   0.700       0.000  70.0%    77.8%  -",
        ]
        assert [group["jobs"] for group in json.loads(await shown("--by", "user", "--json"))["groups"]] == [
            "2",
            "1",
            "1",
        ]
        assert (await shown("--by", "queue")).splitlines()[1].split()[:3] == ["night", "2", "3.000"]
        found = (await client.get("/v1/reliability", params={"groupBy": "ACCOUNT"})).json()
        assert [group.get("key", "") for group in found["groups"]] == ["chem", "", "physics"]
    code = await asyncio.to_thread(main, ["goodput", "llama", "--by", "user"])
    assert (code, "leave the job away" in capsys.readouterr().err) == (exits.USAGE, True)
