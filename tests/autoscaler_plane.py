"""An autoscaler and a scheduler over real gRPC on a real database; nodes, replicas and routers are played by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from prometheus_client import CollectorRegistry
from scheduler_plane import Agent, until

from switchgear.autoscaler.main import build
from switchgear.core import rpc
from switchgear.core.clock import ManualClock
from switchgear.core.modes import Mode
from switchgear.core.service import Endpoints, Service
from switchgear.scheduler import main as scheduler
from switchgear.store.database import Database
from switchgear.v1 import autoscaler_service_pb2 as pb
from switchgear.v1 import autoscaler_service_pb2_grpc as pb_grpc
from switchgear.v1 import fleet_service_pb2 as fleet_pb
from switchgear.v1 import fleet_service_pb2_grpc as fleet_grpc
from switchgear.v1 import job_service_pb2 as job_pb
from switchgear.v1 import job_service_pb2_grpc as job_grpc
from switchgear.v1alpha import placement_service_pb2 as placement_pb
from switchgear.v1alpha import placement_service_pb2_grpc as placement_grpc
from switchgear.v1alpha import serving_service_pb2 as wire
from switchgear.v1alpha import serving_service_pb2_grpc as wire_grpc

#: Channels of their own, without the back-off that channels to one address share.
_ALONE = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
SERVICE = "inferenceServices/chat"


class Replica:
    """A replica's side of its stream; it connects again by itself, as a real one does."""

    def __init__(self, plane: Plane, number: int) -> None:
        self.name = f"{SERVICE}/replicas/{number}"
        self.address = f"127.0.0.1:{9000 + number}"
        self.draining = asyncio.Event()
        #: What the autoscaler ended the stream with, when it was for good.
        self.sent_away: rpc.SwitchgearError | None = None
        self._plane, self._load = plane, wire.ReplicaLoad()
        self._stream: Any = None
        self._task = plane.spawn(self._run())

    async def _run(self) -> None:
        while self.sent_away is None:
            async with grpc.aio.insecure_channel(self._plane.address, options=_ALONE) as channel:
                stream = wire_grpc.ServingServiceStub(channel).ConnectReplica()  # type: ignore[no-untyped-call]
                try:
                    hello = wire.ReplicaHello(replica=self.name, address=self.address, instance_id=self.name)
                    await stream.write(wire.ReplicaReport(hello=hello))
                    await stream.write(wire.ReplicaReport(load=self._load))
                    self._stream = stream
                    async for command in stream:
                        if command.drain:
                            self.draining.set()
                except grpc.aio.AioRpcError as error:
                    if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                        self.sent_away = rpc.from_rpc_error(error)
            await asyncio.sleep(0.02)

    async def load(self, **load: Any) -> None:
        """Reports; what is lost with a connection is said again by the next one."""
        self._load = wire.ReplicaLoad(ready=True, **load)
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            if self._stream is not None:
                await self._stream.write(wire.ReplicaReport(load=self._load))

    def die(self) -> None:
        self._task.cancel()


class Router:
    """A router's side of its stream. It acknowledges nothing by itself."""

    def __init__(self, plane: Plane, name: str) -> None:
        self.name = name
        self.table: wire.RoutingTable | None = None
        self.versions: list[int] = []
        self._plane, self._report = plane, wire.RouterReport(instance_id=name)
        self._stream: Any = None
        self._task = plane.spawn(self._run())

    async def _run(self) -> None:
        while True:
            async with grpc.aio.insecure_channel(self._plane.address, options=_ALONE) as channel:
                stream = wire_grpc.ServingServiceStub(channel).ConnectRouter()  # type: ignore[no-untyped-call]
                with suppress(grpc.aio.AioRpcError):
                    await stream.write(self._report)
                    self._stream = stream
                    async for table in stream:
                        self.table = table
                        self.versions.append(table.version)
            await asyncio.sleep(0.02)

    async def report(self, *, acknowledge: bool = True, replicas: dict[str, int] | None = None, **demand: int) -> None:
        """Demand of the one service; replicas: requests in flight, of 10 tokens each."""
        table = self.table.version if self.table and acknowledge else self._report.table_version
        in_flight = [
            wire.ReplicaDemand(replica=name, in_flight_requests=count, in_flight_tokens=10 * count)
            for name, count in (replicas or {}).items()
        ]
        service = wire.ServiceDemand(service=SERVICE, replicas=in_flight, **demand)  # type: ignore[arg-type]
        self._report = wire.RouterReport(instance_id=self.name, table_version=table, services=[service])
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            if self._stream is not None:
                await self._stream.write(self._report)

    def cut_off(self) -> None:
        """It does not come back."""
        self._task.cancel()

    async def routes(self, *numbers: int, draining: Iterable[int] = ()) -> None:
        """Waits until the table has exactly these replicas of the service, and those that drain."""
        want = {(f"{SERVICE}/replicas/{n}", False) for n in numbers} | {
            (f"{SERVICE}/replicas/{n}", True) for n in draining
        }

        async def there() -> bool:
            services = {one.service: one for one in self.table.services} if self.table else {}
            route = services.get(SERVICE)
            return route is not None and {(one.replica, one.draining) for one in route.replicas} == want

        await until(there)


class Modes:
    """Modes that a test sets."""

    def __init__(self) -> None:
        self.mode = Mode.ACT

    async def of(self, policy: str) -> Mode:
        assert policy == "autoscaler.scale"
        return self.mode


class Plane:
    """Everything that runs. The autoscaler has an address of its own and may be stopped and started again."""

    def __init__(self, database: Database, state_dir: Path) -> None:
        self.database, self.state_dir = database, state_dir
        #: Of the autoscaler alone: nodes stay known to the scheduler however far it is moved.
        self.clock = ManualClock()
        self.modes = Modes()
        self.registry = CollectorRegistry()
        self.address = "127.0.0.1:0"
        self.scheduler_address = ""
        self.service: Service
        self._tasks: list[asyncio.Task[None]] = []
        self._autoscaler: asyncio.Task[None] | None = None
        self._server: rpc.Server | None = None

    def spawn(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.append(task)
        return task

    async def start_autoscaler(self) -> None:
        """A new autoscaler on the old address; it comes with nothing but the database."""
        self._autoscaler = None
        self.registry = CollectorRegistry()
        self.service = build(
            self.database,
            self.clock,
            modes=self.modes,
            registry=self.registry,
            pass_interval_s=0.05,
            log_dir=self.state_dir / "autoscaler",
        )
        self._server = rpc.Server()
        self.service.register(self._server.grpc)
        self.address = await self._server.start(self.address, self.service.service_names)
        self.run_again()

    def run_again(self) -> None:
        """Cancels `run`, in whatever it is, and starts it again: the server and its streams stay."""
        before = self._autoscaler
        if before:
            before.cancel()
        at = Endpoints(self.scheduler_address, self.scheduler_address, "127.0.0.1:7", self.address, "")

        async def run() -> None:
            if before:
                await asyncio.wait([before])
            await self.service.run(at)

        self._autoscaler = asyncio.create_task(run())

    async def stop_autoscaler(self) -> None:
        if self._autoscaler:
            await ended([self._autoscaler])
        if self._server:
            await self._server.stop(0)
            self._server = None

    async def restart_autoscaler(self) -> None:
        await self.stop_autoscaler()
        await self.start_autoscaler()

    async def stop(self) -> None:
        await ended(self._tasks)
        await self.stop_autoscaler()

    async def call(self, method: str, request: Any) -> Any:
        """A unary call of AutoscalerService."""
        async with grpc.aio.insecure_channel(self.address, options=_ALONE) as channel:
            return await getattr(pb_grpc.AutoscalerServiceStub(channel), method)(request, timeout=10)  # type: ignore[no-untyped-call]

    async def agent(self, name: str, gpus: int = 4) -> Agent:
        agent = Agent(self.channel, name, gpus)
        await agent.connect()

        async def obeys() -> None:
            while True:
                with suppress(TimeoutError):
                    await agent.obey()

        async def ends_launchers() -> None:
            """A launcher whose job has ended is told so by recovery, and goes."""
            async for change in self.jobs.WatchJobs(job_pb.WatchJobsRequest()):
                if change.HasField("job") and change.job.state >= job_pb.Job.SUCCEEDED:
                    for job, epoch in [key for key in agent.launchers if key[0] == change.job.name]:
                        await agent.exited(job, epoch)

        async def registered() -> bool:
            nodes = await self.fleet.ListNodes(fleet_pb.ListNodesRequest())
            return any(node.name == agent.name for node in nodes.nodes)

        await until(registered)
        self.spawn(obeys())
        self.spawn(ends_launchers())
        return agent

    async def create(self, low: int = 0, high: int = 2, **spec: float | str) -> pb.InferenceService:
        service = pb.InferenceService(
            spec=pb.InferenceServiceSpec(
                argv=["serve.py", "--batch", "4"],
                working_directory="/w",
                environment={"A": "1"},
                min_replicas=low,
                max_replicas=high,
                **spec,  # type: ignore[arg-type]
            )
        )
        request = pb.CreateInferenceServiceRequest(inference_service=service, service_id="chat")
        created: pb.InferenceService = await self.call("CreateInferenceService", request)
        return created

    async def get(self) -> pb.InferenceService:
        found: pb.InferenceService = await self.call("GetInferenceService", pb.GetInferenceServiceRequest(name=SERVICE))
        return found

    async def scale(self, low: int, high: int, **fields: str) -> pb.InferenceService:
        request = pb.ScaleInferenceServiceRequest(name=SERVICE, min_replicas=low, max_replicas=high, **fields)
        scaled: pb.InferenceService = await self.call("ScaleInferenceService", request)
        return scaled

    async def replicas(self) -> dict[int, pb.Replica]:
        """By number."""
        listed = await self.call("ListReplicas", pb.ListReplicasRequest(parent=SERVICE))
        return {int(one.name.rsplit("/", 1)[1]): one for one in listed.replicas}

    async def replica_in(self, number: int, state: pb.Replica.State) -> pb.Replica:
        """The replica, once it is in that state."""

        async def there() -> bool:
            found = (await self.replicas()).get(number)
            return found is not None and found.state == state

        await until(there)
        return (await self.replicas())[number]

    async def says(self, text: str) -> pb.InferenceService:
        """The service, once its message has the text."""

        async def there() -> bool:
            return text in (await self.get()).message

        await until(there)
        return await self.get()

    async def ready(self, number: int) -> Replica:
        """A replica that has connected, is ready and known to be."""
        await self.replica_in(number, pb.Replica.STARTING)
        replica = Replica(self, number)
        await replica.load()
        await self.replica_in(number, pb.Replica.READY)
        return replica

    async def job(self, number: int) -> job_pb.Job:
        found: job_pb.Job = await self.jobs.GetJob(job_pb.GetJobRequest(name=f"jobs/chat-r{number}"))
        return found

    async def end_job(self, number: int, state: job_pb.Job.State, message: str = "") -> None:
        """What recovery would report."""
        await self.placement.UpdateJobState(
            placement_pb.UpdateJobStateRequest(job=f"jobs/chat-r{number}", state=state, message=message)
        )

    async def job_states(self) -> dict[str, str]:
        listed = await self.jobs.ListJobs(job_pb.ListJobsRequest())
        return {job.name.removeprefix("jobs/"): job_pb.Job.State.Name(job.state) for job in listed.jobs}

    async def passes(self) -> None:
        """Lets the autoscaler look a few times: what it does not do now it does not do at all."""
        await asyncio.sleep(0.3)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"switchgear_inference_{name}", {"service": "chat", **labels})


async def ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def running(database: Database, state_dir: Path) -> AsyncIterator[Plane]:
    plane = Plane(database, state_dir)
    settings = scheduler.SchedulerSettings(state_dir, pass_interval_s=0.05)
    service = scheduler.build(database, ManualClock(), settings)
    server = rpc.Server()
    service.register(server.grpc)
    plane.scheduler_address = at = await server.start("127.0.0.1:0", service.service_names)
    plane.spawn(service.run(Endpoints(at, at, "127.0.0.1:7", "", "")))
    try:
        async with rpc.channel(at) as channel:
            plane.channel: grpc.aio.Channel = channel
            plane.fleet: Any = fleet_grpc.FleetServiceStub(channel)  # type: ignore[no-untyped-call]
            plane.jobs: Any = job_grpc.JobServiceStub(channel)  # type: ignore[no-untyped-call]
            plane.placement: Any = placement_grpc.PlacementServiceStub(channel)  # type: ignore[no-untyped-call]
            await plane.start_autoscaler()
            try:
                yield plane
            finally:
                await plane.stop()
    finally:
        await server.stop(0)
