"""Why a job is where it is, in a sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from switchgear.planner.fleet import Fleet
from switchgear.planner.model import Job, Node, Seat

#: Nodes that are named.
_NAMED_MAX = 3


def why_here(fleet: Fleet, job: Job, seats: Sequence[Seat]) -> str:
    """What speaks for the seats: how near together they are, the GPU model, what is known against their nodes. Only of nodes that are there.

    `on 4 nodes with H100, all in leaf l3, measured speed 1.3`.
    """
    rows = sorted({fleet.at[seat.node] for seat in seats if seat.node in fleet.at})
    nodes = [fleet.nodes[row] for row in rows]
    parts = [_on(nodes), _together(fleet, rows)]
    if len(seats) < job.tasks:
        parts.append(f"{len(seats)} of {job.tasks} tasks: no more fit")
    if job.kept:
        parts.append(f"{len(job.kept)} of its seats are those that it had")
    speeds = [job.speeds[node.gpu_model] for node in nodes if node.gpu_model in job.speeds]
    if speeds:
        parts.append(f"measured speed {min(speeds):g}")
    parts.append(_doubts([node for node, row in zip(nodes, rows, strict=True) if fleet.trust[row] < 1]))
    if nodes and 0 < job.task.gpu_share < min(node.gpus for node in nodes):
        parts.append("where it leaves least that is of no use to others")
    return ", ".join(part for part in parts if part)


def _on(nodes: Sequence[Node]) -> str:
    models = " and ".join(sorted({node.gpu_model for node in nodes if node.gpu_model and node.gpus}))
    names = ", ".join(node.name for node in nodes) if len(nodes) <= _NAMED_MAX else f"{len(nodes)} nodes"
    return f"on {names}" + (f" with {models}" if models else "")


def _together(fleet: Fleet, rows: Sequence[int]) -> str:
    """The narrowest level that holds all, and over how many domains of the level below that they are."""
    if len(rows) < 2:
        return ""
    apart = ""
    for level in range(len(fleet.levels) - 1, -1, -1):
        domains = Counter(fleet.domains[level][rows].tolist())
        if -1 in domains:
            continue
        if len(domains) == 1:
            return f"all in {fleet.levels[level]} {fleet.nodes[rows[0]].topology[level]}{apart and f' ({apart})'}"
        apart = f"{len(domains)} domains of {fleet.levels[level]}"
    return f"over {apart}" if apart else ""


def _doubts(nodes: Sequence[Node]) -> str:
    """What is known against nodes that were taken all the same."""
    if not nodes:
        return ""
    known = []
    if any(node.incident for node in nodes):
        known.append("an open incident")
    if any(node.health is not None and node.health < 1 for node in nodes):
        known.append("a low health score")
    if any(node.straggling for node in nodes):
        known.append("jobs that they held up")
    return f"{len(nodes)} of them doubtful ({' and '.join(known)}) as nothing faster holds it"
