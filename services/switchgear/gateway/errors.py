"""Errors as HTTP shows them (https://google.aip.dev/193): the one place where a canonical code becomes a status."""

from __future__ import annotations

import json

import grpc.aio
from starlette.responses import Response

from switchgear.core import rpc
from switchgear.core.errors import DOMAIN, SwitchgearError

_HTTP_STATUS = {
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}


def error_response(error: SwitchgearError, *, code: str = "", http_status: int = 0) -> Response:
    """The error as JSON.

    code: canonical code, when it is not that of the error's class.
    http_status: when HTTP has a more fitting one than that of the code.
    """
    code = code or error.code
    http_status = http_status or _HTTP_STATUS[code]
    body = {
        "error": {
            "code": http_status,
            "status": code,
            "message": error.message,
            "details": [
                {
                    "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                    "reason": error.reason.value,
                    "domain": DOMAIN,
                    "metadata": error.metadata,
                }
            ],
        }
    }
    return Response(json.dumps(body), http_status, media_type="application/json")


def rpc_error_response(error: grpc.aio.AioRpcError) -> Response:
    """What a service answered."""
    return error_response(rpc.from_rpc_error(error), code=error.code().name)
