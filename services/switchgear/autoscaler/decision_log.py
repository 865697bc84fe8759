"""The decision log as text: what a policy saw and what it answered, one JSON object a line, so that it can be decided again. Pure.

A file begins with a `Head`: whose log it is, and what the policy remembered when the file began. Each further line is a `Record`.
Fields at their default are left out; a reader ignores fields that it does not know.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import JsonValue, TypeAdapter, ValidationError

from switchgear.autoscaler.observation import Decision, Observation
from switchgear.core.errors import Invalid, Reason

T = TypeVar("T")

VERSION = 1
#: A line of a thousand replicas has some 200 KiB.
LINE_LENGTH_MAX = 4 << 20


@dataclass(frozen=True, slots=True)
class Head:
    """The first line of a file.

    service: `inferenceServices/{service}`, or whatever is scaled. policy, shadow: as `--policy` has them; no shadow: empty.
    memory: from which the policy goes on; None: it begins without any.
    """

    service: str
    policy: str
    memory: dict[str, JsonValue] | None = None
    shadow: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """One decision. now_s: as the policy was given it. mode: what was made of the decision; shadow: what the shadow answered."""

    now_s: float
    seen: Observation
    decision: Decision
    mode: str = "ACT"
    shadow: Decision | None = None


_HEAD, _RECORD = TypeAdapter(Head), TypeAdapter(Record)


def head_line(head: Head) -> str:
    """Without the end of the line. Raises ValueError when the memory is no JSON."""
    return _line({"log": VERSION, **_HEAD.dump_python(head, mode="json", exclude_defaults=True)})


def record_line(record: Record) -> str:
    """Without the end of the line. Raises ValueError for a number that is none."""
    return _line(_RECORD.dump_python(record, mode="json", exclude_defaults=True))


def read(lines: Iterable[str], source: str) -> Iterator[Head | Record]:
    """One file, or several behind each other: a head, then its records, as they are asked for. source: what errors call it.

    Raises Invalid that names the line.
    """
    begun = False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        fields = _fields(line, source, number)
        version = fields.pop("log", None)
        if version == VERSION:
            yield _validated(_HEAD, fields, source, number)
        elif version is not None:
            raise _invalid(
                source,
                number,
                f"it is of version {version!r:.20} of decision logs, and version {VERSION} is read here; use the switchgear that wrote it",
            )
        elif not begun:
            raise _invalid(source, number, f'it does not begin with {{"log": {VERSION}, …}}: this is no decision log')
        else:
            yield _validated(_RECORD, fields, source, number)
        begun = True
    if not begun:
        raise _invalid(source, 1, "it is empty")


def _line(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, separators=(",", ":"), allow_nan=False)


def _fields(line: str, source: str, number: int) -> dict[str, Any]:
    if len(line) > LINE_LENGTH_MAX:
        raise _invalid(source, number, f"the line has more than {LINE_LENGTH_MAX} characters")
    try:
        fields = json.loads(line, parse_constant=_number, parse_float=_number)
    except (ValueError, RecursionError) as error:
        raise _invalid(source, number, f"the line is no JSON ({error})") from error
    if not isinstance(fields, dict):
        raise _invalid(source, number, "the line is no JSON object")
    return fields


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number")
    return number


def _validated(adapter: TypeAdapter[T], fields: dict[str, Any], source: str, number: int) -> T:
    try:
        return adapter.validate_python(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _invalid(source, number, f"{where}: {first['msg']}") from error


def _invalid(source: str, number: int, why: str) -> Invalid:
    message = f"{source}, line {number}: {why}; name a file as `switchgear services decisions NAME --json` writes it"
    return Invalid(message, Reason.BAD_FIELD, field="file", line=str(number))
