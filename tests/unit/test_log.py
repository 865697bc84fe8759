"""What is in a log, and what is not."""

from __future__ import annotations

import io
import logging

from switchgear.core import log


def test_urls_of_requests_are_in_no_log() -> None:
    stream, root = io.StringIO(), logging.getLogger()
    before = root.handlers[:], root.level
    try:
        log.configure("debug", stream)
        logging.getLogger("httpx").info("HTTP Request: POST https://pager.example/secret")
        logging.getLogger("test").info("something else")
    finally:
        root.handlers[:], root.level = before
    assert "something else" in stream.getvalue()
    assert "secret" not in stream.getvalue()
