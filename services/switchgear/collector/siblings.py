"""The other collectors of a ring: what a caller asks of one collector is answered for the nodes of all."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Self

import grpc
import grpc.aio

from switchgear.collector.sharding import Sharding
from switchgear.core import rpc
from switchgear.core.errors import Invalid, Reason, Unavailable
from switchgear.core.tls import TlsFiles
from switchgear.v1alpha import telemetry_service_pb2 as pb
from switchgear.v1alpha.telemetry_service_pb2_grpc import TelemetryServiceStub

if TYPE_CHECKING:
    from switchgear.v1alpha.telemetry_service_pb2_grpc import TelemetryServiceAsyncStub

log = logging.getLogger(__name__)

#: A collector that does not answer within this time is left out.
ANSWER_S_MAX = 5.0
#: What an answer has beside its series: times, and the addresses of those that did not answer.
_HEAD_BYTES_MAX = 32 * 1024


class Siblings:
    """Calls the others. Channels are made when they are first needed, one for each."""

    def __init__(self, sharding: Sharding) -> None:
        self._sharding = sharding
        self._channels: dict[str, grpc.aio.Channel] = {}
        #: Of this process, for its channels; set before the first call.
        self.tls: TlsFiles | None = None

    async def node_telemetry(self, request: pb.GetNodeTelemetryRequest, node: str) -> pb.NodeTelemetry | None:
        """What the collector of `nodes/{node}` knows; None when that is this one.

        Raises what it raised, Unavailable when it does not answer.
        """
        address = "" if request.only_here else self._sharding.elsewhere(node)
        if not address:
            return None
        asked = pb.GetNodeTelemetryRequest(name=request.name, only_here=True)
        try:
            return await self._stub(address).GetNodeTelemetry(asked, timeout=ANSWER_S_MAX)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise Unavailable(
                    f"{node} is taken in by the collector {address}, which does not answer; see that it runs",
                    Reason.SERVER_UNREACHABLE,
                    address=address,
                ) from error
            raise rpc.from_rpc_error(error) from error

    async def query(self, request: pb.QueryRequest, here: pb.QueryResponse) -> pb.QueryResponse:
        """`here`, which this collector found, with what the others find; its times must be said in the request, for clocks differ.

        Raises Invalid (LIMIT_EXCEEDED) when all of it does not fit into one answer. Who does not answer is named in the response.
        """
        sharding = self._sharding
        others = [] if request.only_here else [one for one in sharding.collectors if one != sharding.own]
        if not others:
            return here
        asked = pb.QueryRequest()
        asked.CopyFrom(request)
        asked.only_here = True
        answers = await asyncio.gather(*(self._query(address, asked) for address in others))
        found = [here, *(answer for answer in answers if answer is not None)]
        # Before anything is copied: the answers of a large ring may be hundreds of megabytes.
        if sum(answer.ByteSize() for answer in found) > rpc.MESSAGE_BYTES_MAX - _HEAD_BYTES_MAX:
            raise Invalid(
                f"the answer of {len(found)} collectors has more than {rpc.MESSAGE_BYTES_MAX} bytes; "
                "name fewer series, a shorter time or a longer step",
                Reason.LIMIT_EXCEEDED,
            )
        series: list[pb.QueriedSeries] = [one for answer in found for one in answer.series]
        series.sort(key=lambda one: one.node)
        return pb.QueryResponse(
            start_time=here.start_time,
            step_seconds=here.step_seconds,
            series=series,
            unanswered=[address for address, answer in zip(others, answers, strict=True) if answer is None],
        )

    async def _query(self, address: str, asked: pb.QueryRequest) -> pb.QueryResponse | None:
        try:
            return await self._stub(address).Query(asked, timeout=ANSWER_S_MAX)
        except grpc.aio.AioRpcError as error:
            # What it refuses is refused for all; only one that is away is left out.
            told = rpc.from_rpc_error(error)
            if not isinstance(told, Unavailable) and error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise told from error
            log.warning("collector %s did not answer a query: %s", address, error.details())
            return None

    def _stub(self, address: str) -> TelemetryServiceAsyncStub:
        if address not in self._channels:
            self._channels[address] = rpc.channel(address, self.tls)
        stub: TelemetryServiceAsyncStub = TelemetryServiceStub(self._channels[address])  # type: ignore[assignment]
        return stub

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()
