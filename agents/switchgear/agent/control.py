"""The agent's line to the scheduler: inventory and launchers up, launchers to start and stop down."""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from typing import Any

import grpc.aio

from switchgear.agent.launchers import LAUNCHERS_MAX, Launchers
from switchgear.agent.ticker import next_beat_s
from switchgear.core import rpc
from switchgear.core.clock import Clock
from switchgear.core.reconnect import keep_connected
from switchgear.core.tls import TlsFiles
from switchgear.v1 import fleet_service_pb2
from switchgear.v1alpha import node_agent_service_pb2 as pb
from switchgear.v1alpha.node_agent_service_pb2_grpc import NodeAgentServiceStub

HEARTBEAT_S = 1.0


class Reports:
    """Exits and failures until they can be sent. The newest of each launcher suffices: the hello lists what is alive."""

    def __init__(self) -> None:
        self._waiting: deque[pb.NodeAgentReport] = deque(maxlen=2 * LAUNCHERS_MAX)
        self.wake = asyncio.Event()

    def put(self, report: pb.NodeAgentReport) -> None:
        self._waiting.append(report)
        self.wake.set()

    def first(self) -> pb.NodeAgentReport | None:
        return self._waiting[0] if self._waiting else None

    def sent(self, report: pb.NodeAgentReport) -> None:
        if self._waiting and self._waiting[0] is report:
            self._waiting.popleft()


class Control:
    """Keeps the connection to the scheduler at `address`. node: name, address, gpus and agent version."""

    def __init__(
        self,
        address: str,
        node: fleet_service_pb2.Node,
        launchers: Launchers,
        reports: Reports,
        clock: Clock,
        *,
        tls: TlsFiles | None = None,
    ) -> None:
        self._address = address
        self._tls = tls
        self._node = node
        self._launchers = launchers
        self._reports = reports
        self._clock = clock
        self._instance_id = uuid.uuid4().hex

    async def run(self) -> None:
        """Connects and reconnects until cancelled."""
        async with rpc.channel(self._address, self._tls) as channel:
            stub = NodeAgentServiceStub(channel)
            await keep_connected("connection to the scheduler", lambda: self._connect(stub), self._clock)

    async def _connect(self, stub: NodeAgentServiceStub) -> None:
        begin: Any = stub.Connect  # the stubs know only the form that is given an iterator
        call: grpc.aio.StreamStreamCall[pb.NodeAgentReport, pb.NodeAgentCommand] = begin()
        try:
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(self._send(call))
                async for command in call:
                    match command.WhichOneof("kind"):
                        case "start_launcher":
                            self._launchers.start(command.start_launcher)
                        case "stop_launcher":
                            self._launchers.stop(command.stop_launcher.job, command.stop_launcher.placement_epoch)
                        case "keep_warm":
                            self._launchers.keep_warm(command.keep_warm)
                sending.cancel()
        finally:
            call.cancel()

    async def _send(self, call: grpc.aio.StreamStreamCall[pb.NodeAgentReport, pb.NodeAgentCommand]) -> None:
        hello = pb.NodeAgentHello(node=self._node, launchers=self._launchers.running(), instance_id=self._instance_id)
        try:
            await call.write(pb.NodeAgentReport(hello=hello))
            loop = asyncio.get_running_loop()
            due_s = loop.time()
            while True:
                self._reports.wake.clear()
                while report := self._reports.first():
                    await call.write(report)
                    self._reports.sent(report)
                try:
                    due_s = next_beat_s(due_s, HEARTBEAT_S, loop.time())
                    async with asyncio.timeout_at(due_s):
                        await self._reports.wake.wait()
                except TimeoutError:
                    heartbeat = pb.NodeAgentHeartbeat(launchers=self._launchers.running())
                    await call.write(pb.NodeAgentReport(heartbeat=heartbeat))
        except asyncio.InvalidStateError:
            pass  # the call has ended: the reader says why
