"""Draws a `Picture` for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from switchgear.cli.picture import JobLine, Picture, ServiceLine
from switchgear.core.text import printable

_COLOURS = {
    "HEALTHY": "green",
    "RUNNING": "green",
    "READY": "green",
    "SUCCEEDED": "green",
    "RESOLVED": "green",
    "STOPPED": "dim",
    "CORDONED": "yellow",
    "STARTING": "yellow",
    "RECOVERING": "yellow",
    "PREEMPTED": "yellow",
    "REQUESTED": "yellow",
    "DRAINING": "yellow",
    "PENDING": "yellow",
    "OPEN": "red",
    "DIAGNOSED": "red",
    "ACTING": "red",
    "VERIFYING": "yellow",
    "UNREACHABLE": "red",
    "FAILED": "red",
    "ESCALATED": "red",
}


def draw(picture: Picture, log: Sequence[str] = (), title: str = "") -> RenderableType:
    """Nodes, jobs, incidents and replicas; below them the newest lines of `log`."""
    parts: list[RenderableType] = [Text(title, style="bold")] if title else []
    parts.append(_nodes(picture))
    parts.append(_jobs(picture.jobs))
    if picture.services:
        parts.append(_services(picture.services))
    if picture.incidents:
        parts.append(_incidents(picture))
    parts += [Text(line, no_wrap=True, overflow="ellipsis") for line in log]
    return Group(*parts)


def _nodes(picture: Picture) -> Table:
    table = _table("NODE", "STATE", "GPUS IN USE", "REASON")
    for node in picture.nodes:
        used = "■" * node.gpus_allocated + "□" * max(0, node.gpus - node.gpus_allocated)
        table.add_row(_plain(node.name), _state(node.state), used or "none", _plain(node.reason))
    return table


def _jobs(lines: Sequence[JobLine]) -> Table:
    table = _table("JOB", "STATE", "RANKS", "ATTEMPT", "STEP", "STEPS/S", "LOSS", "GOODPUT", "MESSAGE")
    for job in lines:
        table.add_row(
            _plain(job.name),
            _state(job.state),
            str(job.ranks),
            str(job.attempt or "-"),
            "-" if job.step is None else str(job.step),
            "-" if job.steps_per_s is None else f"{job.steps_per_s:.1f}",
            "-" if job.loss is None else f"{job.loss:.3f}",
            "-" if job.goodput is None else f"{job.goodput:.0%}",
            _plain(job.message),
        )
    return table


def _services(services: Sequence[ServiceLine]) -> Table:
    table = _table("SERVICE", "READY/WANTED", "REPLICA", "STATE", "NODE", "IN FLIGHT", "DECISION")
    for service in services:
        head = (_plain(service.name), f"{service.ready}/{service.desired}")
        if not service.replicas:
            table.add_row(*head, "-", "-", "-", "-", _plain(service.message))
        for number, replica in enumerate(service.replicas):
            table.add_row(
                *(head if number == 0 else ("", "")),
                _plain(replica.name),
                _state(replica.state),
                _plain(replica.node) or "-",
                "-" if replica.in_flight is None else str(replica.in_flight),
                _plain(service.message) if number == 0 else "",
            )
    return table


def _incidents(picture: Picture) -> Table:
    table = _table("INCIDENT", "STATE", "FAULT", "DECISION", "WHAT HAPPENED")
    for incident in picture.incidents:
        table.add_row(
            _plain(incident.name),
            _state(incident.state),
            _plain(incident.fault),
            _plain(incident.decision),
            _plain(incident.summary),
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, expand=True, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        # The last one tells the story and takes what room there is; the others stay whole.
        table.add_column(column, no_wrap=True, overflow="ellipsis", ratio=1 if number == len(columns) - 1 else None)
    return table


def _plain(text: str) -> str:
    """Text of others, of which neither rich nor the terminal makes anything but text."""
    return escape(printable(text))


def _state(state: str) -> Text:
    return Text(state, style=_COLOURS.get(state, ""))
