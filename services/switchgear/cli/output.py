"""Tables, lines and JSON for a terminal. What is printed here may be the text of others, so none of it steers the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from switchgear.core.text import printable


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Aligned columns; the last one is not cut. `empty` is the sentence for no rows."""
    table = [[printable(str(cell)) for cell in row] for row in rows]
    if not table:
        print(empty)
        return
    widths = [max(len(line[i]) for line in [list(header), *table]) for i in range(len(header))]
    for line in [list(header), *table]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_line(text: str) -> None:
    """One line on stdout."""
    print(printable(text))


def tell(text: str) -> None:
    """One line on stderr: what is not the answer itself."""
    print(printable(text), file=sys.stderr)


def to_dict(message: Message) -> dict[str, Any]:
    """Canonical proto3 JSON as Python values."""
    return MessageToDict(message, preserving_proto_field_name=False)


def print_json(value: Message | Sequence[Message] | dict[str, Any]) -> None:
    if isinstance(value, Message):
        print(json.dumps(to_dict(value), indent=2))
    elif isinstance(value, dict):
        print(json.dumps(value, indent=2))
    else:
        print(json.dumps([to_dict(message) for message in value], indent=2))


def local_time(stamp: Timestamp) -> str:
    """A time of the record in this machine's time zone, with its day when that is not today; a dash when there is none."""
    if not stamp.seconds:
        return "-"
    moment = stamp.ToDatetime(UTC).astimezone()
    is_today = moment.date() == datetime.now(UTC).astimezone().date()
    return moment.strftime("%H:%M:%S" if is_today else "%Y-%m-%dT%H:%M:%S")


def last(name: str) -> str:
    """The id at the end of a resource name."""
    return name.rsplit("/", 1)[-1]
