"""KEDA's external scaler: `proto/switchgear/keda/external_scaler.proto` says what each method means."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from switchgear.autoscaler.external.board import Board
from switchgear.core.errors import Invalid, Reason, Unavailable
from switchgear.keda import external_scaler_pb2 as pb
from switchgear.keda import external_scaler_pb2_grpc

SERVICE = "externalscaler.ExternalScaler"
#: The HorizontalPodAutoscaler divides by it (`AverageValue`: ceil(value / target)): the value is the number of replicas.
TARGET = 1


class ExternalScaler(external_scaler_pb2_grpc.ExternalScalerServicer):
    """Answers from the board. The trigger's metadata names the service: `service: chat`."""

    def __init__(self, board: Board) -> None:
        self._board = board

    async def IsActive(self, request: pb.ScaledObjectRef, context: Any) -> pb.IsActiveResponse:
        service = _service(request)
        published = self._board.of(service)
        if published.active is None:
            raise Unavailable(f"{service} is not seen: {published.blind}", Reason.METRICS_UNSEEN)
        return pb.IsActiveResponse(result=published.active)

    async def StreamIsActive(self, request: pb.ScaledObjectRef, context: Any) -> AsyncIterator[pb.IsActiveResponse]:
        async for active in self._board.activity(_service(request)):
            yield pb.IsActiveResponse(result=active)

    async def GetMetricSpec(self, request: pb.ScaledObjectRef, context: Any) -> pb.GetMetricSpecResponse:
        service = _service(request)
        self._board.require(service)  # nothing may be decided yet when a ScaledObject is made
        spec = pb.MetricSpec(metric_name=_metric(service), target_size=TARGET, target_size_float=TARGET)
        return pb.GetMetricSpecResponse(metric_specs=[spec])

    async def GetMetrics(self, request: pb.GetMetricsRequest, context: Any) -> pb.GetMetricsResponse:
        service = _service(request.scaled_object_ref)
        desired = self._board.desired(service)
        value = pb.MetricValue(metric_name=_metric(service), metric_value=desired, metric_value_float=desired)
        return pb.GetMetricsResponse(metric_values=[value])


def _metric(service: str) -> str:
    return f"switchgear-desired-replicas-{service}"


def _service(scaled: pb.ScaledObjectRef) -> str:
    if not (service := scaled.scaler_metadata.get("service", "")):
        raise Invalid(
            f"the trigger of {scaled.namespace}/{scaled.name} does not say which service it means; write `service: NAME` into its metadata",
            Reason.BAD_FIELD,
            field="service",
        )
    return service
