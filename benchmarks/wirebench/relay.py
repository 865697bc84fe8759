"""A gRPC relay between agents and a collector that notes what goes through it, and can be taken away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from switchgear.core import rpc
from switchgear.v1alpha import telemetry_service_pb2 as pb
from switchgear.v1alpha.telemetry_service_pb2_grpc import (
    TelemetryServiceServicer,
    TelemetryServiceStub,
    add_TelemetryServiceServicer_to_server,
)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One block that came. monotonic_s: when. age_s: since its tick. late: behind the live ones, from the agent's disk."""

    monotonic_s: float
    epoch: str
    sequence: int
    age_s: float
    late: bool


@dataclass
class Seen:
    """What agents sent, in order of arrival. lost: blocks that they said they had given up."""

    arrivals: list[Arrival] = field(default_factory=list)
    lost: int = 0


class Relay(TelemetryServiceServicer):
    def __init__(self, target: str, seen: Seen) -> None:
        self._target = target
        self._seen = seen

    async def Stream(  # noqa: N802 - the contract names it
        self, request_iterator: AsyncIterator[pb.AgentMessage], context: Any
    ) -> AsyncIterator[pb.CollectorMessage]:
        del context
        async with rpc.channel(self._target) as channel:
            call: Any = TelemetryServiceStub(channel).Stream(self._noted(request_iterator))
            async for message in call:
                yield message

    async def _noted(self, requests: AsyncIterator[pb.AgentMessage]) -> AsyncIterator[pb.AgentMessage]:
        epoch = ""
        async for message in requests:
            match message.WhichOneof("kind"):
                case "hello":
                    epoch = message.hello.epoch
                case "block":
                    self._note(epoch, message.block, late=False)
                case "blocks":
                    for block in message.blocks.blocks:
                        self._note(epoch, block, late=False)
                case "backlog":
                    self._seen.lost += message.backlog.lost
                    for block in message.backlog.blocks:
                        if block.sequence >= message.backlog.fresh_from:
                            self._note(message.backlog.epoch, block, late=True)
            yield message

    def _note(self, epoch: str, block: pb.Block, *, late: bool) -> None:
        age_s = (time.time_ns() - block.time_unix_ns) / 1e9
        self._seen.arrivals.append(Arrival(time.monotonic(), epoch, block.sequence, age_s, late))


@asynccontextmanager
async def relaying(address: str, target: str, seen: Seen) -> AsyncIterator[None]:
    """Listens at `address` while the block lasts, and forwards to the collector at `target`."""
    server = grpc.aio.server()
    add_TelemetryServiceServicer_to_server(Relay(target, seen), server)
    if not server.add_insecure_port(address):
        raise RuntimeError(f"cannot listen at {address}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)
        await asyncio.sleep(0)
