"""`Query` as callers see it: defaults, bounds, and no harm to the streams beside it."""

from __future__ import annotations

import asyncio

from google.protobuf.timestamp_pb2 import Timestamp

from switchgear.collector import selector
from switchgear.collector.query import Found, Grid, Reduction, select
from switchgear.collector.windows import Windows
from switchgear.core.clock import Clock
from switchgear.core.errors import Invalid, Reason, ResourceExhausted
from switchgear.core.rpc import MESSAGE_BYTES_MAX
from switchgear.v1alpha import telemetry_service_pb2 as pb

#: Two hours by the second, and more than a screen has columns.
STEPS_MAX = 10_000
STEP_S_MIN = 0.01
STEP_S_MAX = 86_400.0
#: Queries that wait while one is answered.
WAITING_MAX = 16
_RANGE_NS = 120_000_000_000
_SECOND_NS = 1_000_000_000
_MINUTE_S = 60.0
#: So long blocks may wait for a query before they have their turn.
_SLICE_S = 0.002
#: What gRPC and the other fields of the response take.
_BYTES_MAX = MESSAGE_BYTES_MAX - 4096
#: Year 2200: what is later is a mistake.
_TIME_S_MAX = 7_258_118_400

_REDUCTIONS = {
    pb.QueryRequest.REDUCTION_UNSPECIFIED: Reduction.LAST,
    pb.QueryRequest.LAST: Reduction.LAST,
    pb.QueryRequest.MIN: Reduction.MIN,
    pb.QueryRequest.MAX: Reduction.MAX,
    pb.QueryRequest.MEAN: Reduction.MEAN,
}


class Queries:
    """Answers one query at a time, in slices of milliseconds."""

    def __init__(self, windows: Windows, clock: Clock) -> None:
        self._windows = windows
        self._clock = clock
        self._turn = asyncio.Lock()
        self._waiting = 0

    def pinned(self, request: pb.QueryRequest) -> pb.QueryRequest:
        """The same with its times said, so that it means the same to another clock. Raises as `answer` does."""
        grid = grid_of(request, self._clock.unix_ns())
        pinned = pb.QueryRequest(
            selector=request.selector,
            step_seconds=grid.step_ns / _SECOND_NS,
            reduction=request.reduction,
            only_here=request.only_here,
        )
        pinned.start_time.FromNanoseconds(grid.start_ns)
        pinned.end_time.FromNanoseconds(grid.start_ns + (grid.steps - 1) * grid.step_ns)
        return pinned

    async def answer(self, request: pb.QueryRequest) -> pb.QueryResponse:
        """Raises Invalid for what is no query or has too large an answer, ResourceExhausted when too many wait."""
        meant = selector.parse(request.selector)
        grid = grid_of(request, self._clock.unix_ns())
        if request.reduction not in _REDUCTIONS:
            raise _invalid("reduction must be LAST, MIN, MAX or MEAN", "reduction")
        if self._waiting >= WAITING_MAX:
            raise ResourceExhausted(
                f"{WAITING_MAX} queries wait already; ask less often or for less", Reason.LIMIT_EXCEEDED
            )
        self._waiting += 1
        try:
            async with self._turn:
                return await self._answer(meant, grid, _REDUCTIONS[request.reduction])
        finally:
            self._waiting -= 1

    async def _answer(self, meant: selector.Selector, grid: Grid, reduction: Reduction) -> pb.QueryResponse:
        response = pb.QueryResponse(step_seconds=grid.step_ns / _SECOND_NS)
        response.start_time.FromNanoseconds(grid.start_ns)
        size = 0
        loop = asyncio.get_running_loop()
        slice_ends = loop.time() + _SLICE_S
        windows = sorted(self._windows.all(), key=lambda window: (window.node, window.source))
        for window in windows:
            for found in select([window], meant, grid, reduction):
                series = _to_proto(found)
                size += sum(one.ByteSize() + 8 for one in series)
                if size > _BYTES_MAX:
                    raise Invalid(
                        f"the answer has more than {MESSAGE_BYTES_MAX} bytes; "
                        "name fewer series, a shorter time or a longer step",
                        Reason.LIMIT_EXCEEDED,
                        steps=str(grid.steps),
                    )
                response.series.extend(series)
                if loop.time() > slice_ends:
                    await asyncio.sleep(0)
                    slice_ends = loop.time() + _SLICE_S
            if loop.time() > slice_ends:
                await asyncio.sleep(0)
                slice_ends = loop.time() + _SLICE_S
        return response


def grid_of(request: pb.QueryRequest, now_ns: int) -> Grid:
    """The steps that a request asks for. Raises Invalid (BAD_FIELD) when there are too many or none."""
    end_ns = _time_ns(request.end_time, "end_time") if request.HasField("end_time") else now_ns
    if not 0 <= request.range_seconds <= _TIME_S_MAX:
        raise _invalid(f"range_seconds must be 0 to {_TIME_S_MAX}", "range_seconds")
    if not request.HasField("start_time"):
        start_ns = max(0, end_ns - (round(request.range_seconds * _SECOND_NS) or _RANGE_NS))
    elif request.range_seconds:
        raise _invalid("range_seconds stands instead of start_time; give one of them", "range_seconds")
    else:
        start_ns = _time_ns(request.start_time, "start_time")
    if start_ns > end_ns:
        raise _invalid("start_time is after end_time", "start_time")
    step_s = request.step_seconds or (1.0 if start_ns >= now_ns - _RANGE_NS else _MINUTE_S)
    if not STEP_S_MIN <= step_s <= STEP_S_MAX:
        raise _invalid(f"step_seconds must be {STEP_S_MIN} to {STEP_S_MAX:.0f}", "step_seconds")
    grid = Grid.covering(start_ns, end_ns, round(step_s * _SECOND_NS))
    if grid.steps > STEPS_MAX:
        raise _invalid(f"{grid.steps} steps are more than {STEPS_MAX}; take a longer step", "step_seconds")
    return grid


def _to_proto(found: Found) -> list[pb.QueriedSeries]:
    return [
        pb.QueriedSeries(
            node=found.window.node,
            source=found.window.source,
            metric=key.metric,
            unit=key.unit,
            labels=dict(key.labels),
            values=values,
        )
        for key, values in zip(found.series, found.values.T.tolist(), strict=True)
    ]


def _time_ns(time: Timestamp, field: str) -> int:
    if not 0 <= time.seconds <= _TIME_S_MAX:
        raise _invalid(f"{field} must be between the years 1970 and 2200", field)
    return time.ToNanoseconds()


def _invalid(message: str, field: str) -> Invalid:
    return Invalid(message, Reason.BAD_FIELD, field=field)
