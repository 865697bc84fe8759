"""A control plane for launchers that a test plays by hand, over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio
from launcher_world import until

from switchgear.core import rpc
from switchgear.v1alpha import launcher_service_pb2 as pb
from switchgear.v1alpha import launcher_service_pb2_grpc as pb_grpc


class ControlPlane(pb_grpc.LauncherServiceServicer):
    """Serves one launcher: keeps what it says, grants leases of `lease_s` while that is above zero."""

    def __init__(self) -> None:
        self.address = "127.0.0.1:0"
        self.lease_s = 30.0
        self.reports: list[pb.LauncherReport] = []
        self._commands: asyncio.Queue[pb.LauncherCommand] = asyncio.Queue()
        self._server: rpc.Server | None = None

    async def up(self) -> None:
        self._server = rpc.Server()
        pb_grpc.add_LauncherServiceServicer_to_server(self, self._server.grpc)
        self.address = await self._server.start(self.address, ["switchgear.v1alpha.LauncherService"])

    async def down(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
        self._server = None
        self._commands = asyncio.Queue()
        self.reports = []

    async def Connect(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.LauncherReport], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.LauncherCommand]:
        reader = asyncio.create_task(self._read(request_iterator))
        try:
            while not reader.done():  # a launcher that has said all waits for the end of the stream
                command = asyncio.create_task(self._commands.get())
                try:
                    await asyncio.wait((command, reader), return_when=asyncio.FIRST_COMPLETED)
                    if command.done():
                        yield command.result()
                finally:
                    command.cancel()
        finally:
            reader.cancel()

    async def _read(self, reports: AsyncIterator[pb.LauncherReport]) -> None:
        async for report in reports:
            self.reports.append(report)
            if report.WhichOneof("kind") == "heartbeat" and self.lease_s > 0:
                grant = pb.LeaseGrant(sequence=report.heartbeat.sequence, duration_seconds=self.lease_s)
                self.send(report.generation, lease=grant)

    def send(self, generation: int, **kind: Any) -> None:
        self._commands.put_nowait(pb.LauncherCommand(generation=generation, **kind))

    def start(self, generation: int) -> None:
        self.send(generation, start=pb.StartAttempt(world_size=2, nnodes=1, master_address="127.0.0.1"))

    async def wait(self, kind: str, count: int = 1, where: Callable[[Any], bool] = lambda _: True) -> list[Any]:
        def found() -> list[Any]:
            return [body for r in self.reports if r.WhichOneof("kind") == kind and where(body := getattr(r, kind))]

        await until(lambda: len(found()) >= count, timeout_s=15)
        return found()

    async def ready(self) -> pb.LauncherHello:
        hello: pb.LauncherHello = (await self.wait("hello", where=lambda hello: hello.ready))[0]
        return hello
