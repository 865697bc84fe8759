"""A client that waits for a control plane which was killed and comes back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import grpc

#: Longer than any of our processes needs to start on a busy machine.
PATIENCE_S = 30.0
RETRY_S = 0.2


class Patience(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc,unused-ignore]
    """Calls again while the answer is UNAVAILABLE. Mutations carry a request id, so twice is once.

    check: raises when waiting is in vain.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            answer = continuation(client_call_details, request)
            if answer.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline_s:
                return answer
            self._check()
            time.sleep(RETRY_S)
