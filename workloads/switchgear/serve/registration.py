"""A replica's line to the autoscaler: who it is and how loaded, up; when to drain, down."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from switchgear.core import rpc
from switchgear.core.clock import Clock
from switchgear.core.reconnect import keep_connected
from switchgear.core.tls import TlsFiles
from switchgear.v1alpha import serving_service_pb2 as pb
from switchgear.v1alpha.serving_service_pb2_grpc import ServingServiceStub

log = logging.getLogger(__name__)

REPORT_INTERVAL_S = 1.0
#: The autoscaler does not know this replica, or has ended it: nobody will send it requests.
_ENDED = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND)


class Registration:
    """Keeps one replica registered at the autoscaler, which may be away for any time: serving goes on meanwhile.

    load: makes the report that is sent once a second, and at once when `changed` is set.
    """

    def __init__(
        self,
        autoscaler: str,
        tls: TlsFiles | None,
        *,
        replica: str,
        address: str,
        load: Callable[[], pb.ReplicaLoad],
        clock: Clock,
    ) -> None:
        self._autoscaler = autoscaler
        self._tls = tls
        self._hello = pb.ReplicaHello(replica=replica, address=address, instance_id=uuid.uuid4().hex)
        self._load = load
        self._clock = clock
        self.changed = asyncio.Event()

    async def run(self) -> None:
        """Connects and reconnects; returns when the autoscaler says that this replica has ended."""
        async with rpc.channel(self._autoscaler, self._tls) as channel:
            stub = ServingServiceStub(channel)
            try:
                await keep_connected("connection to the autoscaler", lambda: self._connect(stub), self._clock)
            except _EndedError as ended:
                log.warning("the autoscaler has no use for this replica any more: %s", ended)

    async def _connect(self, stub: ServingServiceStub) -> None:
        begin: Any = stub.ConnectReplica  # the stubs know only the form that is given an iterator
        call: grpc.aio.StreamStreamCall[pb.ReplicaReport, pb.ReplicaCommand] = begin()
        try:
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(self._send(call))
                async for command in call:
                    if command.drain:
                        log.info("draining: no new requests are sent here, what is in flight is finished")
                sending.cancel()
        except* grpc.aio.AioRpcError as group:
            error = group.exceptions[0]
            if isinstance(error, grpc.aio.AioRpcError) and error.code() in _ENDED:
                raise _EndedError(error.details()) from error
            raise
        finally:
            call.cancel()

    async def _send(self, call: grpc.aio.StreamStreamCall[pb.ReplicaReport, pb.ReplicaCommand]) -> None:
        try:
            await call.write(pb.ReplicaReport(hello=self._hello))
            while True:
                self.changed.clear()
                await call.write(pb.ReplicaReport(load=self._load()))
                try:
                    async with asyncio.timeout(REPORT_INTERVAL_S):
                        await self.changed.wait()
                except TimeoutError:
                    pass
        except asyncio.InvalidStateError:
            pass  # the call has ended: the reader says why


class _EndedError(Exception):
    """Not a lost connection: there is nothing to come back to."""
