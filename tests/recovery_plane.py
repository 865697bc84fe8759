"""A control plane under test: real scheduler, collector and recovery on a real database; agents and launchers are played by hand."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from switchgear.collector import main as collector
from switchgear.core import rpc
from switchgear.core.clock import Clock, ManualClock
from switchgear.core.errors import SwitchgearError
from switchgear.core.service import Endpoints, Service
from switchgear.planner.model import Policy
from switchgear.recovery import main as recovery
from switchgear.recovery import store
from switchgear.scheduler import main as scheduler
from switchgear.store.database import Database
from switchgear.store.revisions import current_revision
from switchgear.v1 import fleet_service_pb2 as fleet_pb
from switchgear.v1 import fleet_service_pb2_grpc as fleet_grpc
from switchgear.v1 import job_service_pb2 as job_pb
from switchgear.v1 import job_service_pb2_grpc as job_grpc
from switchgear.v1 import recovery_service_pb2 as pb
from switchgear.v1 import recovery_service_pb2_grpc as pb_grpc
from switchgear.v1alpha import launcher_service_pb2 as wire
from switchgear.v1alpha import launcher_service_pb2_grpc as wire_grpc
from switchgear.v1alpha import node_agent_service_pb2 as agent_pb
from switchgear.v1alpha import node_agent_service_pb2_grpc as agent_grpc
from switchgear.v1alpha import placement_service_pb2 as placement_pb
from switchgear.v1alpha import placement_service_pb2_grpc as placement_grpc
from switchgear.v1alpha import telemetry_service_pb2 as telemetry_pb
from switchgear.v1alpha import telemetry_service_pb2_grpc as telemetry_grpc

WITHIN_S = 10.0
#: Seconds; less than a third of what makes a node silent.
_HEARD_S = 4
#: Nobody listens there.
NOWHERE = "127.0.0.1:9"
#: What a client of the wire finds again at once: channels of its own, without the back-off that channels to one address share.
_ALONE = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]


async def until(true: Callable[[], Awaitable[bool] | bool], within_s: float = WITHIN_S) -> None:
    async with asyncio.timeout(within_s):
        while True:
            found = true()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.01)


async def refusal(call: Awaitable[Any]) -> SwitchgearError:
    """What the server answered the call with."""
    try:
        answer = await asyncio.wait_for(call, WITHIN_S)
    except grpc.aio.AioRpcError as error:
        return rpc.from_rpc_error(error)
    raise AssertionError(f"the call was answered with {answer}")


class Agent:
    """A node with two simulated GPUs that does what the scheduler says and remembers it."""

    def __init__(self, channel: grpc.aio.Channel, name: str) -> None:
        self.node = f"nodes/{name}"
        self._channel = channel
        self._events = 0
        self._stream: Any = None
        self._turn = asyncio.Lock()
        self.started: dict[str, agent_pb.StartLauncher] = {}
        self.stopped: list[agent_pb.StopLauncher] = []

    async def run(self) -> None:
        stub: Any = agent_grpc.NodeAgentServiceStub(self._channel)  # type: ignore[no-untyped-call]
        gpus = [fleet_pb.Gpu(index=index, model="Simulated GPU", simulated=True) for index in range(2)]
        node = fleet_pb.Node(name=self.node, address="127.0.0.1", gpus=gpus, agent_version="test")
        stream = self._stream = stub.Connect()
        await stream.write(agent_pb.NodeAgentReport(hello=agent_pb.NodeAgentHello(node=node)))
        async for command in stream:
            if command.HasField("start_launcher"):
                self.started[command.start_launcher.job] = command.start_launcher
            elif command.HasField("stop_launcher"):
                self.stopped.append(command.stop_launcher)
                self.started.pop(command.stop_launcher.job, None)
            await self.beat()

    async def beat(self) -> None:
        """Tells that it is there, and what runs."""
        running = [
            agent_pb.RunningLauncher(job=s.job, placement_epoch=s.placement_epoch) for s in self.started.values()
        ]
        async with self._turn:
            await self._stream.write(agent_pb.NodeAgentReport(heartbeat=agent_pb.NodeAgentHeartbeat(launchers=running)))

    async def event(self, *, code: int, text: str) -> None:
        """Tells the collector of an XID of GPU 0, and returns when it is stored."""
        self._events += 1
        stub: Any = telemetry_grpc.TelemetryServiceStub(self._channel)  # type: ignore[no-untyped-call]
        stream = stub.Stream()
        hello = telemetry_pb.AgentHello(node=self.node, boot_id=self.node, epoch="1", agent_version="test")
        await stream.write(telemetry_pb.AgentMessage(hello=hello))
        event = telemetry_pb.Event(
            boot_id=self.node, source="kernel_log", sequence=self._events, time_unix_ns=ManualClock().unix_ns(),
            kind="XID", gpu=0, code=code, text=text, simulated=True,
        )  # fmt: skip
        await stream.write(telemetry_pb.AgentMessage(event=event))
        while not (await asyncio.wait_for(stream.read(), WITHIN_S)).HasField("event_ack"):
            pass
        stream.cancel()


class Launcher:
    """A launcher that obeys like a real one, except for the kinds of commands in `held`: those it only remembers."""

    def __init__(self, address: str, start: agent_pb.StartLauncher, node: str) -> None:
        self.address, self.job, self.node, self.epoch = address, start.job, node, start.placement_epoch
        self.nproc = start.spec.nproc_per_node
        self.launcher_id = uuid.uuid4().hex
        self.generation = 0
        self.resume_step = 0
        #: The newest that its ranks have told of in this generation.
        self.told_step: int | None = None
        self.first_rank = 0
        self.alive: dict[int, int] = {}
        self.exits: list[wire.RankExited] = []
        self.checkpoints: list[wire.CheckpointReport] = []
        self.held: set[str] = set()
        self.commands: list[wire.LauncherCommand] = []
        self.connections = 0
        self._beats = 0
        self.finished = ""
        self.forget_reports = False
        self._stream: Any = None
        self._connected = asyncio.Event()
        #: Of the stream: two writes at once end a call, and its reader never hears of that.
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Stays connected until it is told that the job has ended."""
        while not self.finished:
            async with grpc.aio.insecure_channel(self.address, options=_ALONE) as channel:
                stub: Any = wire_grpc.LauncherServiceStub(channel)  # type: ignore[no-untyped-call]
                try:
                    await self._converse(stub.Connect())
                except grpc.aio.AioRpcError:
                    pass
                finally:
                    self._connected.clear()
            await asyncio.sleep(0.02)

    async def _converse(self, stream: Any) -> None:
        await stream.write(self.hello())
        self._stream, self._turn = stream, asyncio.Lock()
        self._connected.set()
        self.connections += 1
        async for command in stream:
            if command.WhichOneof("kind") not in self.held:
                await self.obey(command)
            self.commands.append(command)

    def hello(self) -> wire.LauncherReport:
        hello = wire.LauncherHello(
            job=self.job, node=self.node, placement_epoch=self.epoch, launcher_id=self.launcher_id,
            reserved_port=4000 + self.generation, ready=True, ranks_exited=self.exits, all_gone=not self.alive,
            ranks_alive=[wire.RankStarted(rank=rank, pid=pid, time_unix_ns=1) for rank, pid in self.alive.items()],
        )  # fmt: skip
        return wire.LauncherReport(generation=self.generation, hello=hello)

    async def report(self, **kind: Any) -> None:
        """Tells it once a connection is there that takes it; what was lost on the way is in the next hello."""
        while not self.forget_reports:
            await asyncio.wait_for(self._connected.wait(), WITHIN_S)
            if await self.tell(**kind):
                return
            await asyncio.sleep(0.01)

    async def tell(self, **kind: Any) -> bool:
        """Tells it on the connection that there is; whether that took it."""
        if self.forget_reports or self._stream is None:
            return False
        stream, turn, report = self._stream, self._turn, wire.LauncherReport(**{"generation": self.generation, **kind})
        try:
            async with turn:
                await stream.write(report)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            return False
        return True

    async def obey(self, command: wire.LauncherCommand) -> None:
        """What the connection does not take any more is in the next hello, which could not be said while this waited."""
        match command.WhichOneof("kind"):
            case "verify":
                result = wire.VerifyResult(checkpoints=self.checkpoints)
                await self.tell(generation=command.generation, verify_result=result)
            case "start" if command.generation > self.generation:
                self.generation, self.first_rank = command.generation, command.start.first_rank
                self.resume_step = command.start.resume_step
                self.exits.clear()
                self.told_step = None
                ranks = range(self.first_rank, self.first_rank + self.nproc)
                self.alive = {rank: 100 * command.generation + rank for rank in ranks}
                for rank, pid in self.alive.items():
                    await self.tell(rank_started=wire.RankStarted(rank=rank, pid=pid, time_unix_ns=2))
            case "stop" if command.generation >= self.generation:
                self.generation = command.generation
                for exited in [self._ended(rank, -9, by_us=True) for rank in list(self.alive)]:
                    await self.tell(rank_exited=exited)
                await self.tell(attempt_stopped=self._stopped())
            case "finish":
                self.alive.clear()
                self.finished = command.finish.reason

    async def step(self, step: int) -> None:
        """All ranks here have completed the step, which no attempt before had."""
        await self.report(progress=self.progress(step))

    def progress(self, step: int, *, new: bool = True) -> wire.Progress:
        self.told_step = step
        times = {"time_unix_ns": 4 + step, "first_step_time_unix_ns": 3, "first_new_step_time_unix_ns": 4 * new}
        ranks = [wire.RankStep(rank=rank, step=step, count=step - self.resume_step, **times) for rank in self.alive]
        return wire.Progress(ranks=ranks)

    async def exit(self, rank: int, code: int, *, by_us: bool = False, **fields: Any) -> None:
        await self.report(rank_exited=self._ended(rank, code, by_us=by_us, **fields))
        if not self.alive:
            await self.report(attempt_stopped=self._stopped())

    def _ended(self, rank: int, code: int, *, by_us: bool, **fields: Any) -> wire.RankExited:
        if self.told_step is not None:
            fields.setdefault("step", self.told_step)
        exited = wire.RankExited(
            rank=rank, pid=self.alive.pop(rank), time_unix_ns=5, exit_code=code, stopped_by_us=by_us, **fields
        )
        self.exits.append(exited)
        return exited

    def _stopped(self) -> wire.AttemptStopped:
        return wire.AttemptStopped(time_unix_ns=6, reserved_port=4001 + self.generation)

    async def beat(self) -> None:
        self._beats += 1
        await self.report(heartbeat=wire.Heartbeat(sequence=self._beats))

    async def lease(self) -> int:
        """Sequence of the newest lease, once there is one."""
        await until(lambda: bool(self.told("lease")))
        return next(c.lease.sequence for c in reversed(self.commands) if c.HasField("lease"))

    async def heard(self) -> None:
        """Returns once a heartbeat has been answered: what is said next is not lost with a stream that ends."""
        leases = len(self.told("lease"))

        async def answered() -> bool:
            await self.beat()
            return len(self.told("lease")) > leases

        await until(answered)

    async def connect_once(self) -> wire.LauncherCommand:
        """The first answer to a hello on a stream of its own."""
        async with grpc.aio.insecure_channel(self.address, options=_ALONE) as channel:
            stream = wire_grpc.LauncherServiceStub(channel).Connect()  # type: ignore[no-untyped-call]
            await stream.write(self.hello())
            command: wire.LauncherCommand = await stream.read()
            return command

    def told(self, kind: str) -> list[int]:
        """Generations of the commands of that kind, in the order of their arrival."""
        return [command.generation for command in self.commands if command.WhichOneof("kind") == kind]

    async def has(self, kind: str, generation: int) -> wire.LauncherCommand:
        """Waits until that command has come and, unless it is held, has been carried out."""
        await until(lambda: generation in self.told(kind))
        return next(c for c in self.commands if c.WhichOneof("kind") == kind and c.generation == generation)


class World:
    """Everything that runs. `recovery` has an address of its own and may be stopped and started again."""

    def __init__(self, database: Database, state_dir: Path, start_s: float, policy: Policy | None = None) -> None:
        self._policy = policy or Policy()
        self._agents: list[Agent] = []
        self.database, self.state_dir = database, state_dir
        #: Of recovery alone: the nodes' agents stay known to the scheduler however far it is moved.
        self.clock = ManualClock()
        self._scheduler_clock = ManualClock()
        self._scheduler_clock.advance(start_s)
        self.recovery_address = "127.0.0.1:0"
        self.plane_address = ""
        self.build: Callable[[Database, Clock], recovery.RecoveryService] = recovery.build
        self.service: recovery.RecoveryService
        self._tasks: list[asyncio.Task[None]] = []
        self._recovery: list[asyncio.Task[None]] = []
        self._recovery_server: rpc.Server | None = None
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        clock = self._scheduler_clock
        settings = scheduler.SchedulerSettings(self.state_dir, pass_interval_s=0.05, policy=self._policy)
        services: list[Service] = [
            collector.build(self.database, clock),
            scheduler.build(self.database, clock, settings),
        ]
        server = rpc.Server()
        for service in services:
            service.register(server.grpc)
        self._stack.push_async_callback(server.stop, 0)
        self.plane_address = await server.start(
            "127.0.0.1:0", [n for service in services for n in service.service_names]
        )
        await self.start_recovery()
        self._stack.push_async_callback(self.stop_recovery)
        endpoints = Endpoints(self.plane_address, self.plane_address, self.recovery_address, "", "")
        self._tasks += [asyncio.create_task(service.run(endpoints)) for service in services]
        channel = await self._stack.enter_async_context(rpc.channel(self.plane_address))
        self.channel = channel
        self.jobs: Any = job_grpc.JobServiceStub(channel)  # type: ignore[no-untyped-call]
        self.fleet: Any = fleet_grpc.FleetServiceStub(channel)  # type: ignore[no-untyped-call]

    async def start_recovery(self, *, scheduler: str = "", collector: str = "") -> None:
        """A new recovery on the old address; it comes with nothing but the database."""
        self.service = self.build(self.database, self.clock)
        server = self._recovery_server = rpc.Server()
        self.service.register(server.grpc)
        self.recovery_address = await server.start(self.recovery_address, self.service.service_names)
        endpoints = Endpoints(
            collector or self.plane_address, scheduler or self.plane_address, self.recovery_address, "", ""
        )
        self._recovery = [asyncio.create_task(self.service.run(endpoints))]

    async def stop_recovery(self) -> None:
        """As abruptly as one process allows."""
        await ended(self._recovery)
        if self._recovery_server:
            await self._recovery_server.stop(0)

    async def restart_recovery(self, **endpoints: str) -> None:
        await self.stop_recovery()
        await self.start_recovery(**endpoints)

    async def run_again(self) -> None:
        """Cancels `run` and starts it again: the server and its streams stay."""
        await ended(self._recovery)
        endpoints = Endpoints(self.plane_address, self.plane_address, self.recovery_address, "", "")
        self._recovery = [asyncio.create_task(self.service.run(endpoints))]

    @property
    def recovery_runs(self) -> bool:
        return not self._recovery[0].done()

    async def stop(self) -> None:
        await ended(self._tasks)
        await self._stack.aclose()

    async def call(self, method: str, request: Any) -> Any:
        """A unary call of RecoveryService."""
        async with grpc.aio.insecure_channel(self.recovery_address, options=_ALONE) as channel:
            stub = pb_grpc.RecoveryServiceStub(channel)  # type: ignore[no-untyped-call]
            return await getattr(stub, method)(request, timeout=WITHIN_S)

    async def agent(self, name: str) -> Agent:
        agent = Agent(self.channel, name)
        self._tasks.append(asyncio.create_task(agent.run()))

        async def registered() -> bool:
            nodes = await self.fleet.ListNodes(fleet_pb.ListNodesRequest())
            return agent.node in [node.name for node in nodes.nodes]

        await until(registered)
        self._agents.append(agent)
        return agent

    async def later(self, seconds: int) -> int:
        """Lets time pass in the scheduler, agents being heard meanwhile; its wall time then."""
        for _ in range(0, seconds, _HEARD_S):
            self._scheduler_clock.advance(_HEARD_S)
            for agent in self._agents:
                await agent.beat()
            await asyncio.sleep(0.02)
        return self._scheduler_clock.unix_ns()

    async def create(self, job_id: str, *, nnodes: int = 1, checkpoints: bool = False, account: str = "") -> None:
        spec = job_pb.JobSpec(
            argv=["train.py"], working_directory="/w", nnodes=nnodes, nproc_per_node=2, max_restarts=3,
            checkpoint_directory="/w/checkpoints" if checkpoints else "", account=account,
        )  # fmt: skip
        await self.jobs.CreateJob(job_pb.CreateJobRequest(job=job_pb.Job(spec=spec), job_id=job_id))

    async def launcher(self, agent: Agent, job: str, *, hold: Iterable[str] = ()) -> Launcher:
        """The launcher that the agent was told to start for that job."""
        await until(lambda: job in agent.started)
        launcher = Launcher(self.recovery_address, agent.started[job], agent.node)
        launcher.held |= set(hold)
        self._tasks.append(asyncio.create_task(launcher.run()))
        return launcher

    async def job(self, name: str, state: job_pb.Job.State) -> job_pb.Job:
        """The job, once it is in that state."""

        async def there() -> bool:
            return bool((await self.jobs.GetJob(job_pb.GetJobRequest(name=name))).state == state)

        await until(there)
        found: job_pb.Job = await self.jobs.GetJob(job_pb.GetJobRequest(name=name))
        return found

    async def node(self, name: str, state: fleet_pb.Node.State) -> fleet_pb.Node:
        """The node, once it is in that state."""

        async def there() -> bool:
            return bool((await self.fleet.GetNode(fleet_pb.GetNodeRequest(name=name))).state == state)

        await until(there)
        found: fleet_pb.Node = await self.fleet.GetNode(fleet_pb.GetNodeRequest(name=name))
        return found

    async def replace(self, job: str, *, epoch: int, without: str) -> None:
        """What a person or another replica may have asked for: a placement that this recovery has not asked for."""
        stub: Any = placement_grpc.PlacementServiceStub(self.channel)  # type: ignore[no-untyped-call]
        await stub.ReplaceNodes(
            placement_pb.ReplaceNodesRequest(job=job, placement_epoch=epoch, exclude_nodes=[without])
        )

    async def signals_read(self) -> bool:
        """Whether recovery has dealt with all signals that there are."""
        async with self.database.read() as session:
            return await store.signal_cursor(session) == await current_revision(session, "collector")

    async def ticked(self) -> bool:
        """Lets recovery look at the time twice."""
        await asyncio.sleep(2 * recovery.TICK_S + 0.1)
        return True

    async def incidents(self, job: str = "", **request: Any) -> list[pb.Incident]:
        return list((await self.call("ListIncidents", pb.ListIncidentsRequest(job=job, **request))).incidents)

    async def incident(self, job: str, state: pb.Incident.State) -> pb.Incident:
        """The one incident of the job, once it is in that state."""

        async def there() -> bool:
            return [incident.state for incident in await self.incidents(job)] == [state]

        await until(there)
        return (await self.incidents(job))[0]

    async def attempts(self, job: str) -> list[tuple[int, pb.Attempt.State]]:
        found = (await self.call("ListAttempts", pb.ListAttemptsRequest(parent=job))).attempts
        return [(attempt.generation, attempt.state) for attempt in found]


async def ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def running(
    database: Database, state_dir: Path, *, start_s: float = 0, policy: Policy | None = None
) -> AsyncIterator[World]:
    """start_s: how much later than other worlds on the same database this one begins. policy: of the planner."""
    world = World(database, state_dir, start_s, policy)
    try:
        await world.start()
        yield world
    finally:
        await world.stop()
