"""REST to gRPC and back, for every method of the contract alike."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc.aio
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from switchgear.access.interceptor import PEER_HEADER
from switchgear.core.errors import Invalid, Reason, SwitchgearError
from switchgear.gateway.bindings import Binding
from switchgear.gateway.errors import error_response, rpc_error_response
from switchgear.gateway.forwarding import FORWARDED

#: Far above the largest valid request (a job: 128 KiB of arguments and environment).
BODY_BYTES_MAX = 1024 * 1024
#: No method of ours works longer; a service that hangs must not hang the client.
DEADLINE_S = 30.0

#: Sent by a browser that connects again (https://html.spec.whatwg.org/multipage/server-sent-events.html).
_LAST_EVENT_ID = "last-event-id"
_UNKNOWN_FIELD = re.compile(r'no field named "([^"]*)"')


class TooLarge(Exception):
    """The body has more than BODY_BYTES_MAX bytes."""


async def transcode(binding: Binding, request: Request, channels: Mapping[str, grpc.aio.Channel]) -> Response:
    """Answers an HTTP request by the gRPC method behind it, a stream as server-sent events. channels: by the name of the endpoint."""
    try:
        message = build(binding, request.path_params, request.query_params.multi_items(), await _body(binding, request))
    except TooLarge:
        error = Invalid(
            f"the body is larger than {BODY_BYTES_MAX} bytes; send less",
            Reason.LIMIT_EXCEEDED,
            limit=str(BODY_BYTES_MAX),
        )
        return error_response(error, http_status=413)
    except SwitchgearError as error:
        return error_response(error)
    if binding.method.server_streaming:
        return await _events(binding, request, message, channels[binding.endpoint])
    call = channels[binding.endpoint].unary_unary(
        binding.grpc_path,
        request_serializer=binding.request_type.SerializeToString,
        response_deserializer=binding.response_type.FromString,
    )
    try:
        answer = await call(message, timeout=DEADLINE_S, metadata=_metadata(request))
    except grpc.aio.AioRpcError as error:
        return rpc_error_response(error)
    return Response(json_format.MessageToJson(answer, indent=None), media_type="application/json")


async def _events(binding: Binding, request: Request, message: Message, channel: grpc.aio.Channel) -> Response:
    """The id of each event is its revision, so that a client which connects again goes on behind the last that it got.

    An error before the first message is a response as any other; a later one is the last event, `error`.
    """
    if (last := request.headers.get(_LAST_EVENT_ID)) is not None:
        try:
            json_format.ParseDict({"revision": last}, message)
        except json_format.ParseError as error:
            return error_response(_invalid(f"header Last-Event-ID: {error}", "revision"))
    call = channel.unary_stream(
        binding.grpc_path,
        request_serializer=binding.request_type.SerializeToString,
        response_deserializer=binding.response_type.FromString,
    )(message, metadata=_metadata(request))
    try:
        first: Any = await call.read()
    except grpc.aio.AioRpcError as error:
        return rpc_error_response(error)

    async def events() -> AsyncIterator[str]:
        answer = first
        try:
            while answer is not grpc.aio.EOF:
                yield f"id: {answer.revision}\ndata: {json_format.MessageToJson(answer, indent=None)}\n\n"
                answer = await call.read()
        except grpc.aio.AioRpcError as error:
            yield f"event: error\ndata: {bytes(rpc_error_response(error).body).decode()}\n\n"
        finally:
            call.cancel()

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def _metadata(request: Request) -> list[tuple[str, str]]:
    """Who calls, in which trace, and whence: the service behind decides on the first and records the last."""
    given = [(name, value) for name in FORWARDED if (value := request.headers.get(name)) is not None]
    if request.client is None:
        return given
    host, port = request.client
    return [*given, (PEER_HEADER, f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}")]


def build(binding: Binding, path_params: Mapping[str, str], query: list[tuple[str, str]], body: bytes) -> Message:
    """The request message. What the path says wins over what the body says.

    Raises Invalid (BODY_INVALID) that names the field.
    """
    message = binding.request_type()
    if binding.body:
        _parse(body, message if binding.body == "*" else getattr(message, binding.body))
    known = binding.query_fields
    values: dict[str, object] = {}
    for name, text in query:
        field = known.get(name)
        if field is None:
            names = sorted({field.json_name for field in known.values()})
            raise _invalid(f"there is no query parameter {name[:100]!r}; known: {', '.join(names) or 'none'}", name)
        if field.is_repeated:
            values.setdefault(field.name, [])
            values[field.name] = [*_list(values[field.name]), _scalar(field, text)]
        elif field.name in values:
            raise _invalid(f"query parameter {name!r} is there twice; give it once", name)
        else:
            values[field.name] = _scalar(field, text)
    for name, value in values.items():
        try:
            json_format.ParseDict({name: value}, message)
        except json_format.ParseError as error:
            raise _invalid(f"query parameter {name}: {error}", name) from error
    for name, template in binding.path_fields.items():
        setattr(message, name, template.format_map(path_params))
    return message


async def _body(binding: Binding, request: Request) -> bytes:
    if not binding.body:
        return b""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Also what keeps web pages of others out: a browser asks before it sends JSON elsewhere, and we never allow it.
        raise Invalid("send the header `Content-Type: application/json`", Reason.BODY_INVALID, content_type=kind[:100])
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise TooLarge
    return bytes(body)


def _parse(body: bytes, message: Message) -> None:
    try:
        json_format.Parse(body.decode() or "{}", message)
    except json_format.ParseError as error:
        unknown = _UNKNOWN_FIELD.search(str(error))
        if unknown:
            known = ", ".join(field.json_name for field in message.DESCRIPTOR.fields)
            raise _invalid(
                f"there is no field {unknown[1]!r}; {message.DESCRIPTOR.name} has {known}", unknown[1]
            ) from error
        raise _invalid(f"the body does not fit: {str(error)[:500]}", "") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise _invalid("the body is not JSON in UTF-8 of sane depth", "") from error


def _scalar(field: FieldDescriptor, text: str) -> object:
    if field.type != FieldDescriptor.TYPE_BOOL:
        return text  # JSON's form of numbers and enums may be a string
    if text not in ("true", "false"):
        raise _invalid(f"query parameter {field.name} must be true or false", field.name)
    return text == "true"


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _invalid(message: str, field: str) -> Invalid:
    return Invalid(message, Reason.BODY_INVALID, field=field[:100])
