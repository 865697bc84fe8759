"""What a Prometheus server knows of a service's replicas, where their pages are scraped already."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from switchgear.autoscaler.external.settings import Prometheus

#: So long after its newest sample a replica counts as one that does not answer, in intervals.
STALE_INTERVALS = 2
#: So much is asked for: enough that a sample is in it, and old ones to tell a replica that has gone silent from one that is gone.
WINDOW_INTERVALS = 4

_UP = "up"


class AnswerUnusable(Exception):
    """The server's answer is none; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Told:
    """One replica's newest scrape: when (Unix seconds), and its samples as the text of a page.

    up: whether that scrape had a page; None: the selector does not match the series `up`, so nobody tells.
    """

    unix_s: float
    page: str
    up: bool | None


class _Series(BaseModel):
    metric: dict[str, str]
    values: list[tuple[float, str]] = Field(min_length=1)


class _Data(BaseModel):
    result_type: str = Field(alias="resultType")
    result: list[_Series]


class _Answer(BaseModel):
    status: str
    data: _Data | None = None
    error: str = ""


_ANSWER = TypeAdapter(_Answer)


def query_url(prometheus: Prometheus, names: Collection[str], interval_s: float) -> str:
    """Of an instant query that gives the raw samples of `names` with their times, as no query of the newest values does."""
    matcher = "|".join(sorted({_UP, *names}))
    selector = f'{{__name__=~"{matcher}",{prometheus.selector[1:]}'
    window_s = max(1, round(WINDOW_INTERVALS * interval_s))
    return f"{prometheus.url.rstrip('/')}/api/v1/query?{urlencode({'query': f'{selector}[{window_s}s]'})}"


def told(text: str, replica_label: str) -> dict[str, Told]:
    """By replica. Of each only its newest scrape counts: a series that is not in it has vanished. Raises AnswerUnusable."""
    try:
        answer = _ANSWER.validate_python(json.loads(text))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise AnswerUnusable(f"it is no answer of Prometheus ({where}: {first['msg']})") from error
    except ValueError as error:
        raise AnswerUnusable(f"it is no JSON ({error})") from error
    if answer.status != "success" or answer.data is None:
        raise AnswerUnusable(f"Prometheus refuses the query: {answer.error[:300]}")
    if answer.data.result_type != "matrix":
        raise AnswerUnusable(f"it is a {answer.data.result_type[:40]}, not a matrix")
    return _by_replica(answer.data.result, replica_label)


def _by_replica(series: list[_Series], label: str) -> dict[str, Told]:
    newest: dict[str, float] = {}
    for one in series:
        replica = one.metric.get(label)
        if replica is None:
            raise AnswerUnusable(
                f"{one.metric.get('__name__', 'a series')} has no label {label!r}, which would tell replicas apart; name another as replica_label"
            )
        newest[replica] = max(newest.get(replica, 0.0), one.values[-1][0])
    lines: dict[str, list[str]] = {replica: [] for replica in newest}
    up: dict[str, bool] = {}
    for one in series:
        replica = one.metric[label]
        at_s, value = one.values[-1]
        if one.metric.get("__name__") == _UP:
            up[replica] = float(value) > 0
        elif at_s == newest[replica]:
            lines[replica].append(_line(one.metric, value, at_s))
    return {replica: Told(at_s, "".join(lines[replica]), up.get(replica)) for replica, at_s in newest.items()}


def _line(metric: Mapping[str, str], value: str, at_s: float) -> str:
    labels = ",".join(f'{name}="{_escaped(text)}"' for name, text in metric.items() if name != "__name__")
    return f"{metric.get('__name__', '')}{{{labels}}} {value} {round(at_s * 1000)}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
