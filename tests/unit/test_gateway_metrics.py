"""What the gateway counts of REST."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry
from starlette.responses import Response, StreamingResponse
from starlette.types import Message

from switchgear.gateway.metrics import CountRequests, RequestMetrics


@pytest.mark.parametrize(
    ("answer", "timed"),
    [(Response("{}"), 1), (StreamingResponse(iter(["data: 1"]), media_type="text/event-stream"), None)],
    ids=["answer", "stream"],
)
async def test_the_length_of_a_stream_is_no_latency(answer: Response, timed: float | None) -> None:
    registry = CollectorRegistry()

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        pass

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "asgi": {"spec_version": "2.4"}}
    await CountRequests(answer, RequestMetrics(registry))(scope, receive, send)
    labels = {"method": "GET", "route": "other", "code": "200"}
    assert registry.get_sample_value("switchgear_gateway_requests_total", labels) == 1
    assert registry.get_sample_value("switchgear_gateway_request_seconds_count", {"route": "other"}) == timed
