"""Structured logs: one JSON object a line, or plain text when a person reads them in a terminal."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

from switchgear.core.text import printable

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Time, level, logger and message, the component, the ids of the current span, then every `extra` field of the record."""

    def __init__(self, component: str = "") -> None:
        super().__init__()
        self._component = component

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._component:
            entry["component"] = self._component
        # Without traces nobody has imported it, and a log is no reason to.
        if (tracing := sys.modules.get("opentelemetry.trace")) is not None:
            span = tracing.get_current_span().get_span_context()
            if span.is_valid:
                entry["trace_id"], entry["span_id"] = f"{span.trace_id:032x}", f"{span.span_id:016x}"
        entry.update({key: value for key, value in vars(record).items() if key not in _STANDARD})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class _TerminalFormatter(logging.Formatter):
    """A line for a person, in which the text of others does not steer the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class names it
        record.message = printable(record.message)
        return super().formatMessage(record)


def configure(level: str = "info", stream: TextIO | None = None, *, component: str = "") -> None:
    """Logs of this process go to `stream` (stderr by default, so that stdout stays for results).

    component: what this process is, named in each line of JSON.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    if stream.isatty():
        handler.setFormatter(_TerminalFormatter("%(asctime)s %(levelname)-7s %(name)s  %(message)s", "%H:%M:%S"))
    else:
        handler.setFormatter(JsonFormatter(component))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # It tells each request with its url: thousands a minute, and a webhook's url is a secret.
    logging.getLogger("httpx").setLevel(logging.WARNING)
