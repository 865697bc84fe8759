"""The scheduler over real gRPC, with node agents that a test plays by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from switchgear.core import rpc
from switchgear.core.clock import ManualClock
from switchgear.core.errors import Reason, SwitchgearError
from switchgear.core.service import Endpoints
from switchgear.scheduler.main import SchedulerSettings, build
from switchgear.store.database import Database
from switchgear.v1 import fleet_service_pb2 as fleet_pb
from switchgear.v1 import fleet_service_pb2_grpc as fleet_grpc
from switchgear.v1 import job_service_pb2 as job_pb
from switchgear.v1 import job_service_pb2_grpc as job_grpc
from switchgear.v1alpha import node_agent_service_pb2 as agent_pb
from switchgear.v1alpha import node_agent_service_pb2_grpc as agent_grpc
from switchgear.v1alpha import placement_service_pb2 as placement_pb
from switchgear.v1alpha import placement_service_pb2_grpc as placement_grpc

RECOVERY = "127.0.0.1:7"


class Agent:
    """A node agent whose launchers are entries of a dictionary."""

    def __init__(self, channel: grpc.aio.Channel, name: str, gpus: int = 2) -> None:
        self.name = f"nodes/{name}"
        self.node = fleet_pb.Node(
            name=self.name,
            address="127.0.0.1",
            gpus=[fleet_pb.Gpu(index=i, model="Simulated GPU", simulated=True) for i in range(gpus)],
            agent_version="test",
        )
        self.launchers: dict[tuple[str, int], agent_pb.StartLauncher] = {}
        self.commands: list[agent_pb.NodeAgentCommand] = []
        self._stub: Any = agent_grpc.NodeAgentServiceStub(channel)
        self._stream: Any = None

    async def connect(self) -> None:
        self._stream = self._stub.Connect()
        await self._stream.write(
            agent_pb.NodeAgentReport(hello=agent_pb.NodeAgentHello(node=self.node, launchers=self._running()))
        )

    async def disconnect(self) -> None:
        self._stream.cancel()

    async def heartbeat(self) -> None:
        await self._stream.write(
            agent_pb.NodeAgentReport(heartbeat=agent_pb.NodeAgentHeartbeat(launchers=self._running()))
        )

    async def exited(self, job: str, epoch: int) -> None:
        del self.launchers[job, epoch]
        report = agent_pb.LauncherExited(job=job, placement_epoch=epoch, exit_code=1)
        await self._stream.write(agent_pb.NodeAgentReport(launcher_exited=report))

    async def failed(self, job: str, epoch: int, message: str) -> None:
        report = agent_pb.LauncherFailed(job=job, placement_epoch=epoch, message=message)
        await self._stream.write(agent_pb.NodeAgentReport(launcher_failed=report))

    async def next_command(self) -> agent_pb.NodeAgentCommand:
        command: agent_pb.NodeAgentCommand = await asyncio.wait_for(self._stream.read(), 10)
        self.commands.append(command)
        return command

    async def obey(self) -> agent_pb.NodeAgentCommand:
        """Takes the next command and does it."""
        command = await self.next_command()
        if command.HasField("start_launcher"):
            start = command.start_launcher
            self.launchers = {key: value for key, value in self.launchers.items() if key[0] != start.job}
            self.launchers[start.job, start.placement_epoch] = start
        else:
            stop = command.stop_launcher
            self.launchers = {
                key: value
                for key, value in self.launchers.items()
                if not (key[0] == stop.job and key[1] <= stop.placement_epoch)
            }
        await self.heartbeat()
        return command

    def _running(self) -> list[agent_pb.RunningLauncher]:
        return [agent_pb.RunningLauncher(job=job, placement_epoch=epoch, pid=1) for job, epoch in self.launchers]


class Plane:
    """A running scheduler and clients of it."""

    def __init__(self, clock: ManualClock, channel: grpc.aio.Channel) -> None:
        self.clock = clock
        self.channel = channel
        self.fleet: Any = fleet_grpc.FleetServiceStub(channel)
        self.jobs: Any = job_grpc.JobServiceStub(channel)
        self.placement: Any = placement_grpc.PlacementServiceStub(channel)

    async def agent(self, name: str, gpus: int = 2) -> Agent:
        agent = Agent(self.channel, name, gpus)
        await agent.connect()

        async def registered() -> bool:
            nodes = await self.fleet.ListNodes(fleet_pb.ListNodesRequest())
            return any(node.name == agent.name and len(node.gpus) == gpus for node in nodes.nodes)

        await until(registered)
        return agent

    async def create(self, job_id: str, nnodes: int = 1, nproc_per_node: int = 2, **fields: Any) -> job_pb.Job:
        spec = job_pb.JobSpec(
            argv=["train.py", "--lr", "1"],
            working_directory="/work",
            environment={"A": "1"},
            nnodes=nnodes,
            nproc_per_node=nproc_per_node,
        )
        job: job_pb.Job = await self.jobs.CreateJob(
            job_pb.CreateJobRequest(job=job_pb.Job(spec=spec), job_id=job_id, **fields)
        )
        return job

    async def job_in(self, name: str, state: job_pb.Job.State) -> job_pb.Job:
        async def there() -> bool:
            job = await self.jobs.GetJob(job_pb.GetJobRequest(name=name))
            return bool(job.state == state)

        await until(there)
        job: job_pb.Job = await self.jobs.GetJob(job_pb.GetJobRequest(name=name))
        return job

    async def node_in(self, name: str, state: fleet_pb.Node.State) -> fleet_pb.Node:
        async def there() -> bool:
            node = await self.fleet.GetNode(fleet_pb.GetNodeRequest(name=name))
            return bool(node.state == state)

        await until(there)
        node: fleet_pb.Node = await self.fleet.GetNode(fleet_pb.GetNodeRequest(name=name))
        return node


async def until(true: Callable[[], Awaitable[bool]], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not await true():  # noqa: ASYNC110 - what is waited for is on the other side of a connection
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(database: Database, clock: ManualClock, state_dir: Path) -> AsyncIterator[Plane]:
    service = build(database, clock, SchedulerSettings(state_dir, pass_interval_s=0.05))
    server = rpc.Server()
    service.register(server.grpc)
    address = await server.start("127.0.0.1:0", service.service_names)
    task = asyncio.create_task(service.run(Endpoints(address, address, RECOVERY)))
    try:
        async with rpc.channel(address) as channel:
            yield Plane(clock, channel)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await server.stop(0)


@pytest.fixture
async def plane(database: Database, tmp_path: Path) -> AsyncIterator[Plane]:
    async with running(database, ManualClock(), tmp_path) as plane:
        yield plane


async def refused(call: Awaitable[Any]) -> SwitchgearError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return rpc.from_rpc_error(caught.value)


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
        return "waits for 1 node with 2 free GPUs each" in job.message

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


async def test_a_lost_node_is_replaced_and_the_others_keep_their_launchers(plane: Plane) -> None:
    agents = {name: await plane.agent(name) for name in "abc"}
    await plane.create("llama", nnodes=2)
    for name in "ab":
        assert (await agents[name].obey()).start_launcher.placement_epoch == 1
    request = placement_pb.ReplaceNodesRequest(
        job="jobs/llama", placement_epoch=1, exclude_nodes=["nodes/a"], reason="gpu lost", request_id="1"
    )
    job = await plane.placement.ReplaceNodes(request)
    assert [(seat.node, seat.launcher_epoch) for seat in job.placement.nodes] == [("nodes/c", 2), ("nodes/b", 1)]
    assert (await agents["c"].obey()).start_launcher.placement_epoch == 2
    assert (await agents["a"].obey()).stop_launcher == agent_pb.StopLauncher(job="jobs/llama", placement_epoch=1)
    assert len(agents["b"].commands) == 1
    assert await plane.placement.ReplaceNodes(request) == job
    request.request_id = "2"
    error = await refused(plane.placement.ReplaceNodes(request))
    assert (error.code, error.reason) == ("ABORTED", Reason.PLACEMENT_CHANGED)


async def test_without_a_replacement_the_job_waits_until_the_node_is_mended(plane: Plane) -> None:
    agent = await plane.agent("a")
    await plane.create("llama")
    await agent.obey()
    await plane.fleet.CordonNode(fleet_pb.CordonNodeRequest(name="nodes/a", reason="gpu lost", actor="policy:recovery"))
    request = placement_pb.ReplaceNodesRequest(job="jobs/llama", placement_epoch=1, exclude_nodes=["nodes/a"])
    job = await plane.placement.ReplaceNodes(request)
    assert (job.state, list(job.placement.nodes)) == (job_pb.Job.PENDING, [])
    assert (await agent.obey()).HasField("stop_launcher")
    await plane.fleet.UncordonNode(fleet_pb.UncordonNodeRequest(name="nodes/a"))
    assert (await agent.obey()).start_launcher.placement_epoch == 2


async def test_without_a_spare_a_node_that_was_only_out_of_touch_is_taken_again(plane: Plane) -> None:
    agent = await plane.agent("a")
    await plane.create("llama")
    await agent.obey()
    request = placement_pb.ReplaceNodesRequest(job="jobs/llama", placement_epoch=1, exclude_nodes=["nodes/a"])
    assert (await plane.placement.ReplaceNodes(request)).state == job_pb.Job.PENDING
    assert (await agent.obey()).stop_launcher == agent_pb.StopLauncher(job="jobs/llama", placement_epoch=1)
    assert (await agent.obey()).start_launcher.placement_epoch == 2


async def test_uncordoning_a_node_that_is_not_cordoned_gives_it_back_to_jobs_that_excluded_it(plane: Plane) -> None:
    agents = {name: await plane.agent(name) for name in "ab"}
    await plane.fleet.CordonNode(fleet_pb.CordonNodeRequest(name="nodes/b", reason="fan"))
    await plane.create("llama")
    await fail_to_start(plane, agents["a"], epoch=1)
    await plane.job_in("jobs/llama", job_pb.Job.PENDING)
    await plane.fleet.UncordonNode(fleet_pb.UncordonNodeRequest(name="nodes/a"))
    assert (await agents["a"].obey()).start_launcher.placement_epoch == 2


async def test_a_node_that_cannot_start_a_launcher_is_replaced_by_one_that_can(plane: Plane) -> None:
    agents = {name: await plane.agent(name) for name in "ab"}
    await plane.create("llama")
    await fail_to_start(plane, agents["a"], epoch=1)
    assert (await agents["b"].obey()).start_launcher.placement_epoch == 2


async def fail_to_start(plane: Plane, agent: Agent, epoch: int) -> None:
    for _ in range(3):
        assert (await agent.next_command()).start_launcher.placement_epoch == epoch
        await agent.failed("jobs/llama", epoch, "disk is full")
        await asyncio.sleep(0.05)
        plane.clock.advance(3)
        await agent.heartbeat()


async def test_an_agent_that_comes_back_is_told_what_it_missed(plane: Plane) -> None:
    agent = await plane.agent("a")
    await plane.create("llama")
    await agent.obey()
    await agent.disconnect()
    agent.launchers = {("jobs/unheard-of", 3): agent_pb.StartLauncher()}
    await agent.connect()
    assert (await agent.obey()).stop_launcher == agent_pb.StopLauncher(job="jobs/unheard-of", placement_epoch=3)
    assert (await agent.obey()).start_launcher.job == "jobs/llama"


async def test_a_launcher_that_ended_is_started_again_after_a_moment(plane: Plane) -> None:
    agent = await plane.agent("a")
    await plane.create("llama")
    await agent.obey()
    await agent.exited("jobs/llama", 1)
    await agent.heartbeat()
    await asyncio.sleep(0.05)
    plane.clock.advance(0.6)
    await agent.heartbeat()
    assert (await agent.obey()).start_launcher.job == "jobs/llama"


async def test_a_launcher_that_cannot_be_started_fails_the_job_in_the_end(plane: Plane) -> None:
    agent = await plane.agent("a")
    await plane.create("llama")
    for _ in range(3):
        assert (await agent.next_command()).start_launcher.job == "jobs/llama"
        await agent.failed("jobs/llama", 1, "disk is full")
        await asyncio.sleep(0.05)
        plane.clock.advance(9)
        await agent.heartbeat()
    job = await plane.job_in("jobs/llama", job_pb.Job.FAILED)
    assert job.message == "its launcher could not be started on nodes/a: disk is full"


async def test_a_silent_node_is_unreachable_until_it_is_heard_again(plane: Plane) -> None:
    agent = await plane.agent("a")
    plane.clock.advance(9)
    await agent.heartbeat()
    await asyncio.sleep(0.1)
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
