"""How a simulated node reaches the collector, and what it says first."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from switchgear.agent.stream import FEATURES
from switchgear.core.rpc import split_address
from switchgear.core.tls import TlsFiles
from switchgear.sim.fleet.http2 import GrpcCall, varint
from switchgear.v1alpha import telemetry_service_pb2 as pb

_PATH = "/switchgear.v1alpha.TelemetryService/Stream"


@dataclass(frozen=True, slots=True)
class Collector:
    """The one that nodes dial first, HOST:PORT. tls: None for one on loopback without."""

    address: str
    tls: ssl.SSLContext | None = None

    @classmethod
    def at(cls, address: str, tls: TlsFiles | None) -> Collector:
        """Raises Invalid when the address is none, FailedPrecondition when a file of `tls` cannot be read."""
        split_address(address)
        return cls(address, tls.client_context() if tls is not None else None)

    async def call(
        self, address: str, on_message: Callable[[bytes], None], on_end: Callable[[str, str], None]
    ) -> GrpcCall:
        """A telemetry stream on a connection of its own, to the collector at `address`. Raises OSError when there is no connection to be had."""
        call = GrpcCall(address, _PATH, secure=self.tls is not None, on_message=on_message, on_end=on_end)
        host, port = split_address(address)
        await asyncio.get_running_loop().create_connection(lambda: call, host.strip("[]"), port, ssl=self.tls)
        return call


def hello(node: str, run_id: str) -> bytes:
    """The first message. run_id: names boot and epoch."""
    return agent_message(
        1,
        pb.AgentHello(
            node=f"nodes/{node}", boot_id=run_id, epoch=run_id, agent_version="simulated", features=FEATURES
        ).SerializeToString(),
    )


def agent_message(field: int, payload: bytes) -> bytes:
    """A serialized `AgentMessage` of which `payload` is the serialized content. field: number of its kind."""
    return b"%c%b%b" % (field << 3 | 2, varint(len(payload)), payload)


def dated(block: bytes, time_unix_ns: int, sequence: int) -> bytes:
    """The serialized block with its time and number: in protobuf fields may come in any order."""
    return b"%b\x08%b\x10%b" % (block, varint(time_unix_ns), varint(sequence))
