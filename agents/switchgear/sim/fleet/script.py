"""Faults of a simulated fleet: lines `at TIME node NAME FAULT`. Pure.

FAULT is one of simulated hardware (`switchgear.sim.faults`: gpu 3 xid 79, …), or one of the node itself:

    silent [for T]            the agent is gone: no connection, no samples
    partition [for T]         the connection stands and carries nothing; what is sampled meanwhile comes later
    clock-skew T [for T]      the node's clock is ahead by so much
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from switchgear.core.errors import Invalid, Reason
from switchgear.sim.faults import FAULTS_MAX, FOREVER_S, Fault, parse_fault, seconds_of


class NodeFaultKind(Enum):
    SILENT = "silent"
    PARTITION = "partition"
    CLOCK_SKEW = "clock-skew"


@dataclass(frozen=True, slots=True)
class NodeFault:
    """skew_s: how far the clock is ahead."""

    kind: NodeFaultKind
    for_s: float = FOREVER_S
    skew_s: float = 0.0


@dataclass(frozen=True, slots=True)
class FleetFault:
    """at_s: seconds after the fleet's start. node: its id, as `sim-0007`."""

    at_s: float
    node: str
    fault: Fault | NodeFault


def parse_fleet_script(text: str, nodes: Collection[str], gpus: int) -> list[FleetFault]:
    """The faults of a script, in order of time; `#` begins a comment. nodes: ids that there are. gpus: of each node.

    Raises Invalid with the number of the line.
    """
    found = list[FleetFault]()
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split(maxsplit=4)
        if not words:
            continue
        try:
            found.append(_fault(words, nodes, gpus))
        except Invalid as error:
            raise _invalid(f"line {number}: {error}") from None
        if len(found) > FAULTS_MAX:
            raise _invalid(f"more than {FAULTS_MAX} faults are more than a simulation keeps; write fewer")
    return sorted(found, key=lambda fault: fault.at_s)


def _fault(words: list[str], nodes: Collection[str], gpus: int) -> FleetFault:
    if len(words) < 5 or (words[0], words[2]) != ("at", "node"):
        raise _invalid("a line is `at TIME node NAME FAULT`, for example: at 12s node sim-0007 gpu 3 xid 79")
    at_s, node, rest = seconds_of(words[1]), words[3], words[4]
    if node not in nodes:
        first, last = (of(nodes, key=lambda name: (len(name), name)) for of in (min, max))
        raise _invalid(f"there is no node {node[:40]}; they are {first} to {last}")
    if rest.split()[0] in {kind.value for kind in NodeFaultKind}:
        return FleetFault(at_s, node, _node_fault(rest.split()))
    fault = parse_fault(rest)
    if rest.startswith("gpu") and fault.target >= gpus:
        raise _invalid(f"{node} has the GPUs 0 to {gpus - 1}")
    return FleetFault(at_s, node, fault)


def _node_fault(words: list[str]) -> NodeFault:
    kind, rest = NodeFaultKind(words[0]), words[1:]
    skew_s = 0.0
    if kind is NodeFaultKind.CLOCK_SKEW:
        skew_s, rest = seconds_of(rest[0] if rest else ""), rest[1:]
    if not rest:
        return NodeFault(kind, skew_s=skew_s)
    if rest[0] != "for" or len(rest) != 2:
        raise _invalid(f"`{' '.join(rest)[:40]}` does not belong behind {kind.value}; write `for T`, as in for 60s")
    return NodeFault(kind, seconds_of(rest[1]), skew_s)


def _invalid(message: str) -> Invalid:
    return Invalid(message, Reason.BAD_FIELD, field="faults")
