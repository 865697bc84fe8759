"""The scheduler over real gRPC, with node agents that a test plays by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio
import pytest
from scheduler_plane import RECOVERY, Agent, Plane, refused, running, until
from sqlalchemy.engine import make_url

from switchgear.core import rpc
from switchgear.core.clock import ManualClock
from switchgear.core.errors import Reason
from switchgear.scheduler.engines.local import LocalEngine
from switchgear.scheduler.nodes import FORGET_S
from switchgear.store.database import Database
from switchgear.v1 import fleet_service_pb2 as fleet_pb
from switchgear.v1 import job_service_pb2 as job_pb
from switchgear.v1alpha import node_agent_service_pb2 as agent_pb
from switchgear.v1alpha import node_agent_service_pb2_grpc as agent_grpc
from switchgear.v1alpha import placement_service_pb2 as placement_pb


@pytest.fixture
async def plane(database: Database, tmp_path: Path) -> AsyncIterator[Plane]:
    async with running(database, ManualClock(), tmp_path) as plane:
        yield plane


async def test_a_job_is_placed_started_and_freed(plane: Plane, tmp_path: Path) -> None:
    agent = await plane.agent("a")
    job = await plane.create("llama")
    assert (job.name, job.spec.log_directory) == ("jobs/llama", str(tmp_path / "jobs" / "llama" / "logs"))
    start = (await agent.obey()).start_launcher
    job = await plane.job_in("jobs/llama", job_pb.Job.STARTING)
    assert (start.job, start.placement_epoch, list(start.gpu_indices)) == ("jobs/llama", 1, [0, 1])
    assert (start.spec, start.recovery_address) == (job.spec, RECOVERY)
    assert job.placement == job_pb.Placement(
        epoch=1,
        nodes=[job_pb.PlacedNode(node="nodes/a", gpu_indices=[0, 1], address="127.0.0.1", launcher_epoch=1)],
    )
    assert (await plane.fleet.GetNode(fleet_pb.GetNodeRequest(name="nodes/a"))).gpus_allocated == 2

    for state in (job_pb.Job.RUNNING, job_pb.Job.RECOVERING, job_pb.Job.RUNNING, job_pb.Job.SUCCEEDED):
        request = placement_pb.UpdateJobStateRequest(job="jobs/llama", state=state, message="so it is")
        job = await plane.placement.UpdateJobState(request)
        assert (job.state, job.message) == (state, "so it is")
    assert job.HasField("end_time")
    assert (await plane.fleet.GetNode(fleet_pb.GetNodeRequest(name="nodes/a"))).gpus_allocated == 0
    plane.clock.advance(11)
    await agent.heartbeat()
    assert (await agent.obey()).stop_launcher == agent_pb.StopLauncher(job="jobs/llama", placement_epoch=1)


async def test_the_next_job_starts_when_the_launcher_of_the_one_before_is_gone(plane: Plane) -> None:
    agent = await plane.agent("a")
    await plane.create("one")
    await agent.obey()
    await plane.create("two")
    request = placement_pb.UpdateJobStateRequest(job="jobs/one", state=job_pb.Job.SUCCEEDED)
    await plane.placement.UpdateJobState(request)
    await agent.heartbeat()
    waits = await plane.job_in("jobs/two", job_pb.Job.PENDING)
    assert waits.placement.epoch == 0
    await agent.exited("jobs/one", 1)
    assert (await agent.obey()).start_launcher.job == "jobs/two"


async def test_a_cancelled_job_frees_its_gpus_and_cancelling_again_is_no_error(plane: Plane) -> None:
    agent = await plane.agent("a")
    await plane.create("one")
    await agent.obey()
    job = await plane.jobs.CancelJob(job_pb.CancelJobRequest(name="jobs/one"))
    assert job.state == job_pb.Job.CANCELLED
    assert await plane.jobs.CancelJob(job_pb.CancelJobRequest(name="jobs/one")) == job
    request = placement_pb.UpdateJobStateRequest(job="jobs/one", state=job_pb.Job.SUCCEEDED)
    error = await refused(plane.placement.UpdateJobState(request))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", Reason.JOB_ENDED)


async def test_a_job_that_waits_says_for_what_and_is_cancelled_at_once(plane: Plane) -> None:
    agent = await plane.agent("a")
    await plane.create("one", nproc_per_node=1)
    await agent.obey()
    await plane.create("two")

    async def explained() -> bool:
        job = await plane.jobs.GetJob(job_pb.GetJobRequest(name="jobs/two"))
        return job.state == job_pb.Job.PENDING and "first turn" not in job.message

    await until(explained)
    job = await plane.jobs.CancelJob(job_pb.CancelJobRequest(name="jobs/two"))
    assert (job.state, job.placement.epoch) == (job_pb.Job.CANCELLED, 0)


async def test_a_job_that_no_set_of_nodes_could_hold_is_refused(plane: Plane) -> None:
    error = await refused(plane.create("early"))
    assert (error.reason, "no node has registered yet" in error.message) == (Reason.JOB_TOO_LARGE, True)
    await plane.agent("a")
    error = await refused(plane.create("large", nnodes=2, nproc_per_node=4))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", Reason.JOB_TOO_LARGE)
    assert error.message.startswith(
        "asked for 2 nodes with 4 GPUs each, but the fleet has 1 node, the largest with 2 GPUs"
    )


async def test_a_specification_that_cannot_be_run_is_refused_by_field(plane: Plane) -> None:
    error = await refused(plane.create("x", nnodes=0))
    assert (error.code, error.reason, error.metadata["field"]) == (
        "INVALID_ARGUMENT",
        Reason.BAD_FIELD,
        "spec.nnodes",
    )


async def test_a_repeated_request_makes_one_job(plane: Plane) -> None:
    await plane.agent("a")
    first = await plane.create("", request_id="r-1")
    assert await plane.create("", request_id="r-1") == first
    assert first.name.startswith("jobs/train-")
    error = await refused(plane.create("", nproc_per_node=1, request_id="r-1"))
    assert error.reason is Reason.REQUEST_ID_REUSED
    error = await refused(plane.create(first.name.removeprefix("jobs/")))
    assert (error.code, error.reason) == ("ALREADY_EXISTS", Reason.ALREADY_EXISTS)
    assert len((await plane.jobs.ListJobs(job_pb.ListJobsRequest())).jobs) == 1


async def test_an_agent_that_comes_back_is_told_what_it_missed(plane: Plane) -> None:
    agent = await plane.agent("a")
    await plane.create("llama")
    await agent.obey()
    await agent.disconnect()
    agent.launchers = {("jobs/unheard-of", 3): agent_pb.StartLauncher()}
    await agent.connect()
    assert (await agent.obey()).stop_launcher == agent_pb.StopLauncher(job="jobs/unheard-of", placement_epoch=3)
    assert (await agent.obey()).start_launcher.job == "jobs/llama"


async def test_a_launcher_that_ended_is_started_again_after_a_moment(
    plane: Plane, caplog: pytest.LogCaptureFixture
) -> None:
    agent = await plane.agent("a")
    await plane.create("llama")
    await agent.obey()
    await agent.exited("jobs/llama", 1)

    async def taken() -> bool:
        return "launcher ended" in caplog.text

    await until(taken)
    plane.clock.advance(0.6)
    await agent.heartbeat()
    assert (await agent.obey()).start_launcher.job == "jobs/llama"


async def test_a_launcher_that_was_killed_is_started_again_at_once_but_not_each_time(plane: Plane) -> None:
    agent = await plane.agent("a")
    await plane.create("llama")
    await agent.obey()
    await agent.exited("jobs/llama", 1, exit_code=-9)
    assert (await agent.obey()).start_launcher.job == "jobs/llama"
    await agent.exited("jobs/llama", 1, exit_code=-9)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(agent.next_command(), 0.2)


async def test_a_silent_node_is_unreachable_until_it_is_heard_again(plane: Plane) -> None:
    agent = await plane.agent("a")
    plane.clock.advance(9)
    agent.launchers = {("jobs/unheard-of", 1): agent_pb.StartLauncher()}
    await agent.heartbeat()
    assert (await agent.next_command()).HasField("stop_launcher")  # it was heard
    plane.clock.advance(9)
    await asyncio.sleep(0.1)
    assert (await plane.fleet.GetNode(fleet_pb.GetNodeRequest(name="nodes/a"))).state == fleet_pb.Node.HEALTHY
    plane.clock.advance(2)
    node = await plane.node_in("nodes/a", fleet_pb.Node.UNREACHABLE)
    assert (node.reason, node.actor) == ("no heartbeat for more than 10 s", "policy:scheduler")
    await agent.heartbeat()
    await plane.node_in("nodes/a", fleet_pb.Node.HEALTHY)


async def test_a_restarted_scheduler_takes_up_where_it_was(database: Database, tmp_path: Path) -> None:
    clock = ManualClock()
    async with running(database, clock, tmp_path) as plane:
        agent = await plane.agent("a")
        await plane.create("llama")
        await agent.obey()
        launchers = agent.launchers
    async with running(database, clock, tmp_path) as plane:
        await plane.create("next", nproc_per_node=1)
        again = Agent(plane.channel, "a")
        again.launchers = launchers
        await again.connect()
        await again.heartbeat()
        await asyncio.sleep(0.2)
        assert again.commands == []
        again.launchers = {}
        await again.heartbeat()
        assert (await again.next_command()).start_launcher.job == "jobs/llama"
        clock.advance(11)
        await plane.node_in("nodes/a", fleet_pb.Node.UNREACHABLE)


async def test_a_database_that_is_away_is_told_once_and_calls_are_unavailable_meanwhile(
    database: Database, database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if not database.is_shared:
        pytest.skip("SQLite is as near as its file")
    url = make_url(database_url)
    server = await asyncpg.connect(host=url.query["host"], user="postgres", database="postgres")
    async with running(database, ManualClock(), tmp_path) as plane:
        await plane.agent("a")
        await server.execute(f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS false")
        await server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", url.database)
        for _ in range(5):
            error = await refused(plane.jobs.ListJobs(job_pb.ListJobsRequest()))
            assert (error.code, error.reason) == ("UNAVAILABLE", Reason.DATABASE_UNUSABLE)
        await server.execute(f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS true")
        await plane.agent("b")
    await server.close()
    told = [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert [record.name for record in told] == 2 * ["switchgear.store.database"]
    assert [record.exc_info for record in told] == [None, None]


async def test_cordoning_asks_for_a_reason_and_the_newest_etag(plane: Plane) -> None:
    await plane.agent("a")
    error = await refused(plane.fleet.CordonNode(fleet_pb.CordonNodeRequest(name="nodes/a")))
    assert (error.code, error.metadata["field"]) == ("INVALID_ARGUMENT", "reason")
    node = await plane.fleet.GetNode(fleet_pb.GetNodeRequest(name="nodes/a"))
    request = fleet_pb.CordonNodeRequest(name="nodes/a", reason="fan", actor="user:eve", etag=node.etag)
    cordoned = await plane.fleet.CordonNode(request)
    assert (cordoned.state, cordoned.reason, cordoned.actor) == (fleet_pb.Node.CORDONED, "fan", "user:eve")
    error = await refused(plane.fleet.CordonNode(request))
    assert (error.code, error.reason, error.metadata["etag"]) == ("ABORTED", Reason.ETAG_MISMATCH, cordoned.etag)
    healthy = await plane.fleet.UncordonNode(fleet_pb.UncordonNodeRequest(name="nodes/a"))
    assert (healthy.state, healthy.reason) == (fleet_pb.Node.HEALTHY, "")
    for missing in (
        plane.fleet.CordonNode(fleet_pb.CordonNodeRequest(name="nodes/zz", reason="x")),
        plane.fleet.GetNode(fleet_pb.GetNodeRequest(name="nodes/zz")),
        plane.jobs.GetJob(job_pb.GetJobRequest(name="jobs/zz")),
    ):
        assert (await refused(missing)).code == "NOT_FOUND"
    assert (await refused(plane.fleet.GetNode(fleet_pb.GetNodeRequest(name="zz")))).reason is Reason.BAD_NAME


async def test_lists_are_paged_and_watches_go_on_from_them(plane: Plane) -> None:
    for name in ("c", "a", "b"):
        await plane.agent(name)
    first = await plane.fleet.ListNodes(fleet_pb.ListNodesRequest(page_size=2))
    rest = await plane.fleet.ListNodes(fleet_pb.ListNodesRequest(page_size=2, page_token=first.next_page_token))
    assert [node.name for node in (*first.nodes, *rest.nodes)] == ["nodes/a", "nodes/b", "nodes/c"]
    assert (rest.next_page_token, rest.revision) == ("", first.revision)
    wrong = plane.jobs.ListJobs(job_pb.ListJobsRequest(page_token=first.next_page_token))
    assert (await refused(wrong)).reason is Reason.BAD_PAGE_TOKEN

    watch = plane.fleet.WatchNodes(fleet_pb.WatchNodesRequest(revision=rest.revision))
    bookmark = await watch.read()
    assert (bookmark.HasField("node"), bookmark.revision) == (False, rest.revision)
    await plane.fleet.CordonNode(fleet_pb.CordonNodeRequest(name="nodes/b", reason="fan"))
    change = await watch.read()
    assert (change.node.name, change.node.state) == ("nodes/b", fleet_pb.Node.CORDONED)
    assert change.revision == int(change.node.etag) > rest.revision
    watch.cancel()
    future = plane.jobs.WatchJobs(job_pb.WatchJobsRequest(revision=10_000))
    assert (await refused(future.read())).reason is Reason.REVISION_UNKNOWN


async def test_jobs_are_listed_newest_first_and_watched_in_their_newest_form(plane: Plane) -> None:
    await plane.agent("a")
    for number in range(3):
        await plane.create(f"j{number}")
    first = await plane.jobs.ListJobs(job_pb.ListJobsRequest(page_size=2))
    rest = await plane.jobs.ListJobs(job_pb.ListJobsRequest(page_size=2, page_token=first.next_page_token))
    assert [job.name for job in (*first.jobs, *rest.jobs)] == ["jobs/j2", "jobs/j1", "jobs/j0"]
    await plane.job_in("jobs/j0", job_pb.Job.STARTING)
    watch = plane.jobs.WatchJobs(job_pb.WatchJobsRequest())
    seen: dict[str, job_pb.Job] = {}
    while (message := await watch.read()).HasField("job"):
        assert message.job.name not in seen
        seen[message.job.name] = message.job
    assert seen["jobs/j0"].state == job_pb.Job.STARTING
    assert seen.keys() == {"jobs/j0", "jobs/j1", "jobs/j2"}
    watch.cancel()


async def test_a_page_of_large_nodes_fits_into_a_message(plane: Plane) -> None:
    names = [f"n{number:02}" for number in range(24)]
    for name in names:
        agent = Agent(plane.channel, name, gpus=256)
        for gpu in agent.node.gpus:
            gpu.uuid, gpu.model, gpu.pci_bus_id = "é" * 100, "é" * 200, "é" * 100
        await agent.connect()
    listed: list[str] = []

    async def list_all() -> bool:
        listed.clear()
        token = ""
        while not listed or token:
            page = await plane.fleet.ListNodes(fleet_pb.ListNodesRequest(page_token=token))
            if not page.nodes:
                return False
            listed.extend(node.name for node in page.nodes)
            token = page.next_page_token
        return len(listed) == len(names)

    await until(list_all)
    assert listed == [f"nodes/{name}" for name in names]


async def test_a_page_of_large_jobs_fits_into_a_message(plane: Plane) -> None:
    await plane.agent("a")
    for number in range(20):
        spec = job_pb.JobSpec(
            argv=["x.py", "y" * 64_000],
            environment={"A": "z" * 64_000},
            working_directory="/w",
            nnodes=1,
            nproc_per_node=1,
        )
        await plane.jobs.CreateJob(job_pb.CreateJobRequest(job=job_pb.Job(spec=spec), job_id=f"j{number}"))
    names: list[str] = []
    token = ""
    while not names or token:
        page = await plane.jobs.ListJobs(job_pb.ListJobsRequest(page_token=token))
        names += [job.name for job in page.jobs]
        token = page.next_page_token
    assert names == [f"jobs/j{number}" for number in reversed(range(20))]


async def test_an_agent_that_speaks_out_of_turn_is_told_so(plane: Plane) -> None:
    stub: Any = agent_grpc.NodeAgentServiceStub(plane.channel)
    stream = stub.Connect()
    await stream.write(agent_pb.NodeAgentReport(heartbeat=agent_pb.NodeAgentHeartbeat()))
    assert (await refused(stream.read())).reason is Reason.STREAM_PROTOCOL


async def test_a_second_agent_of_a_name_is_refused_until_the_first_is_gone_or_silent(plane: Plane) -> None:
    first = await plane.agent("a")
    second = Agent(plane.channel, "a")
    await second.connect()
    error = await refused(second.next_command())
    assert (error.code, error.reason, "--node" in error.message) == ("ALREADY_EXISTS", Reason.ALREADY_EXISTS, True)
    await plane.create("llama")
    assert (await first.next_command()).start_launcher.job == "jobs/llama"
    plane.clock.advance(11)
    await second.connect()
    assert (await second.obey()).start_launcher.job == "jobs/llama"
    await second.disconnect()

    async def taken() -> bool:
        await first.connect()
        with contextlib.suppress(grpc.aio.AioRpcError):
            return (await first.next_command()).HasField("start_launcher")
        return False

    await until(taken)


async def test_a_node_that_was_away_for_a_week_is_no_longer_listed(plane: Plane) -> None:
    agent = await plane.agent("a")
    await agent.disconnect()
    plane.clock.advance(11)
    await plane.node_in("nodes/a", fleet_pb.Node.UNREACHABLE)
    plane.clock.advance(FORGET_S)
    await plane.agent("b")

    async def listed(*names: str) -> bool:
        response = await plane.fleet.ListNodes(fleet_pb.ListNodesRequest())
        return [node.name for node in response.nodes] == list(names)

    await until(lambda: listed("nodes/b"))
    await agent.connect()
    await until(lambda: listed("nodes/a", "nodes/b"))


async def test_nodes_that_are_gone_make_room_for_new_ones() -> None:
    clock = ManualClock()
    engine = LocalEngine(clock, lambda: None, nodes_max=2)
    server = rpc.Server()
    agent_grpc.add_NodeAgentServiceServicer_to_server(engine, server.grpc)
    address = await server.start("127.0.0.1:0", ["switchgear.v1alpha.NodeAgentService"])

    async def seen(*names: str) -> None:
        async def there() -> bool:
            return [name for name, _ in engine.observe().nodes] == list(names)

        await until(there)

    async with rpc.channel(address) as channel:
        agents = {name: Agent(channel, name) for name in "abc"}
        await agents["a"].connect()
        await agents["b"].connect()
        await seen("nodes/a", "nodes/b")
        await agents["c"].connect()
        assert (await refused(agents["c"].next_command())).reason is Reason.LIMIT_EXCEEDED
        await agents["a"].disconnect()
        await until(lambda: _connected(engine, 1))
        clock.advance(11)
        await agents["c"].connect()
        await seen("nodes/b", "nodes/c")
    await server.stop(0)


async def _connected(engine: LocalEngine, number: int) -> bool:
    return sum(status.connected for _, status in engine.observe().nodes) == number


async def test_nodes_are_told_what_to_keep_warm_for_as_long_as_a_job_wants_it(plane: Plane) -> None:
    busy, spare = await plane.agent("a"), await plane.agent("b")
    await plane.create("llama")
    assert (await busy.obey()).start_launcher.job == "jobs/llama"
    reading = asyncio.gather(*(agent.listen() for agent in (busy, spare)))
    kind = agent_pb.Warm(working_directory="/work", environment={"A": "1"})

    async def told(kinds: list[agent_pb.Warm]) -> bool:
        return busy.warm == spare.warm == kinds

    await until(lambda: told([kind]))
    await plane.jobs.CancelJob(job_pb.CancelJobRequest(name="jobs/llama"))
    await until(lambda: told([]))
    reading.cancel()
