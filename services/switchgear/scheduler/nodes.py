"""The life cycle of a node. Every function answers with the node as it is after the event."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from switchgear.scheduler.model import Inventory, NodeRecord, NodeState, NodeStatus

#: Ten missed heartbeats of 1 s: a network that drops for a moment or an agent that restarts is no lost node.
SILENCE_LIMIT_S = 10.0
#: Every pass of the scheduler looks at all nodes; with so many and a full queue `decide` takes less than a second of one core
#: (measured by `tests/unit/test_scheduler_decide.py`).
NODES_MAX = 10_000
#: A machine that is away for longer has another name or no more life; one that does come back registers anew.
FORGET_S = 7 * 24 * 3600.0
ACTOR_AGENT = "agent"
ACTOR_POLICY = "policy:scheduler"
#: Before the name of whoever keeps a node out of service by the means of an engine that is not ours alone.
ACTOR_ENGINE = "engine:"


def heard(node: NodeRecord | None, name: str, inventory: Inventory, now_unix_ns: int) -> NodeRecord:
    """A report arrived. A new node is HEALTHY; one that was UNREACHABLE has its old standing again."""
    if node is None:
        return NodeRecord(name, inventory, now_unix_ns, actor=ACTOR_AGENT)
    if node.reachable and node.inventory == inventory:
        return node
    return replace(node, inventory=inventory, reachable=True, last_seen_unix_ns=now_unix_ns)


def lost(node: NodeRecord) -> NodeRecord:
    """No report for longer than `SILENCE_LIMIT_S`."""
    return replace(node, reachable=False)


def forgotten(nodes: Sequence[NodeRecord], in_use: Collection[str], now_unix_ns: int) -> frozenset[str]:
    """Names of the nodes to forget: unreachable for longer than `FORGET_S`, or as many as there are beyond `NODES_MAX`,
    those first that have been silent the longest.

    Never one that somebody cordoned, whose story a person may still want, nor one of `in_use`, the nodes of placements.
    """
    gone = sorted(
        (n for n in nodes if not n.reachable and n.standing is NodeState.HEALTHY and n.name not in in_use),
        key=lambda node: (node.last_seen_unix_ns, node.name),
    )
    beyond = len(nodes) - NODES_MAX
    return frozenset(
        node.name
        for position, node in enumerate(gone)
        if position < beyond or now_unix_ns - node.last_seen_unix_ns > FORGET_S * 1e9
    )


def cordon(node: NodeRecord, reason: str, actor: str) -> NodeRecord:
    """Takes the node out of placement; of an unreachable node it is remembered."""
    return replace(node, standing=NodeState.CORDONED, reason=reason, actor=actor)


def uncordon(node: NodeRecord, actor: str) -> NodeRecord:
    """Puts the node back into placement, once it is reachable.

    It counts as HEALTHY anew even when it was not cordoned (`Transaction.put_node`): jobs that excluded it may have it again.
    """
    return replace(node, standing=NodeState.HEALTHY, reason="", actor=actor)


def kept_out(node: NodeRecord, status: NodeStatus) -> NodeRecord:
    """As its engine's own people keep it. What we have decided about it ourselves stays, until they open what we have closed."""
    closed = status.closed
    if kept_out_by_us(node):
        return uncordon(node, ACTOR_ENGINE) if status.opened else node
    if closed is None and node.standing is NodeState.HEALTHY:
        return node
    if closed is None:
        return uncordon(node, node.actor)
    actor = f"{ACTOR_ENGINE}{closed.actor}"
    return node if (node.reason, node.actor) == (closed.reason, actor) else cordon(node, closed.reason, actor)


def kept_out_by_us(node: NodeRecord) -> str:
    """Why we keep it out of service; empty when we do not, or its engine's own people do."""
    return "" if node.standing is NodeState.HEALTHY or node.actor.startswith(ACTOR_ENGINE) else node.reason


def reason(node: NodeRecord) -> str:
    """Why the node is in its state, for a person; empty when HEALTHY."""
    if node.reachable:
        return node.reason
    silence = f"no heartbeat for more than {SILENCE_LIMIT_S:.0f} s"
    return silence if node.standing is NodeState.HEALTHY else f"{silence}; {node.standing.lower()}: {node.reason}"
