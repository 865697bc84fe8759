"""A scheduler over real gRPC, with node agents that a test plays by hand."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from switchgear.core import rpc
from switchgear.core.clock import ManualClock
from switchgear.core.errors import SwitchgearError
from switchgear.core.service import Endpoints
from switchgear.scheduler.main import SchedulerSettings, build
from switchgear.store.database import Database
from switchgear.v1 import fleet_service_pb2 as fleet_pb
from switchgear.v1 import fleet_service_pb2_grpc as fleet_grpc
from switchgear.v1 import job_service_pb2 as job_pb
from switchgear.v1 import job_service_pb2_grpc as job_grpc
from switchgear.v1alpha import node_agent_service_pb2 as agent_pb
from switchgear.v1alpha import node_agent_service_pb2_grpc as agent_grpc
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
        self.instance_id = uuid.uuid4().hex
        self.launchers: dict[tuple[str, int], agent_pb.StartLauncher] = {}
        self.commands: list[agent_pb.NodeAgentCommand] = []
        #: What it was told last to keep warm.
        self.warm: list[agent_pb.Warm] | None = None
        self._stub: Any = agent_grpc.NodeAgentServiceStub(channel)
        self._stream: Any = None

    async def connect(self) -> None:
        self._stream = self._stub.Connect()
        await self._stream.write(
            agent_pb.NodeAgentReport(
                hello=agent_pb.NodeAgentHello(node=self.node, launchers=self._running(), instance_id=self.instance_id)
            )
        )

    async def disconnect(self) -> None:
        self._stream.cancel()

    async def heartbeat(self) -> None:
        await self._stream.write(
            agent_pb.NodeAgentReport(heartbeat=agent_pb.NodeAgentHeartbeat(launchers=self._running()))
        )

    async def exited(self, job: str, epoch: int, exit_code: int = 1) -> None:
        del self.launchers[job, epoch]
        report = agent_pb.LauncherExited(job=job, placement_epoch=epoch, exit_code=exit_code)
        await self._stream.write(agent_pb.NodeAgentReport(launcher_exited=report))

    async def failed(self, job: str, epoch: int, message: str) -> None:
        report = agent_pb.LauncherFailed(job=job, placement_epoch=epoch, message=message)
        await self._stream.write(agent_pb.NodeAgentReport(launcher_failed=report))

    async def next_command(self) -> agent_pb.NodeAgentCommand:
        command: agent_pb.NodeAgentCommand = await asyncio.wait_for(self._stream.read(), 10)
        if command.HasField("keep_warm"):
            self.warm = list(command.keep_warm.kinds)
            return await self.next_command()
        self.commands.append(command)
        return command

    async def listen(self) -> None:
        """Takes commands until cancelled, and does nothing about them."""
        while True:
            await self.next_command()

    async def told_to_start(self, epoch: int) -> agent_pb.StartLauncher:
        """That command. What comes before it is passed over: until a report has been taken, commands are repeated."""
        while (start := (await self.next_command()).start_launcher).placement_epoch != epoch:
            pass
        return start

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

    def __init__(self, clock: ManualClock, channel: grpc.aio.Channel, address: str) -> None:
        self.clock = clock
        self.address = address
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
    task = asyncio.create_task(service.run(Endpoints(address, address, RECOVERY, "", "")))
    try:
        async with rpc.channel(address) as channel:
            yield Plane(clock, channel, address)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await server.stop(0)


async def refused(call: Awaitable[Any]) -> SwitchgearError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return rpc.from_rpc_error(caught.value)
