"""`switchgear slurm health`: whether Slurm may start jobs on this node. What `deploy/slurm/health.sh` asks."""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import shlex
import socket
from collections.abc import Sequence

from switchgear.agent.doctor.check import Check
from switchgear.agent.doctor.report import examine
from switchgear.cli import exits
from switchgear.cli.doctor import PROBLEM_FOUND, numbers
from switchgear.cli.output import print_json, print_line
from switchgear.core.errors import Invalid, NotFound, Reason
from switchgear.slurm.commands import Commands
from switchgear.slurm.model import NodeState, SlurmNode

#: Begins the reason of each drain that is made here.
OURS = "switchgear health: "
#: Share of a cluster's nodes that are drained here by themselves, one at least: more at once is rather an error of ours, or
#: something that a person should look at.
DRAINED_SHARE_MAX = 0.1
#: A line of `sinfo -R`.
_REASON_LENGTH_MAX = 200
#: health.sh gives up after 40 s; a call of Slurm's may take 9 s when slurmctld is away.
_SLURM_TIMEOUT_S = 10.0
#: Slurm checks all nodes at once. Whoever drains waits for so long and looks whether others did, so that not all of them stay drained.
_SETTLE_S = 2.0

_EPILOG = """It runs `switchgear doctor` and goes by those of its findings after which no job should start here.

examples:
  switchgear slurm health --gpu
  switchgear slurm health --gpu --drain act
  switchgear slurm health --json | jq -r .reason

exit code: 0 when the node is fit, 1 when it is not"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("--gpu", action="store_true", help="this node should have GPUs: to find none makes it unfit")
    parser.add_argument(
        "--drain", choices=("advise", "act"), default="advise", help="say what to do (default), or drain an unfit node"
    )
    parser.add_argument("--json", action="store_true", help="print JSON: node, fit, reason as a drain has it, text")
    parser.add_argument(
        "--node",
        default=os.environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0],
        help="this node's name in Slurm (default: $SLURMD_NODENAME, or the host's name)",
    )
    parser.add_argument(
        "--deadline-s",
        type=float,
        default=2.0,
        metavar="S",
        help="how long one call of the driver may take before it counts as hanging (default: 2)",
    )


def main(args: argparse.Namespace) -> int:
    if not 0 < args.deadline_s <= 60:
        raise Invalid("deadline_s must be more than 0 and at most 60 seconds", Reason.BAD_FIELD, field="deadline_s")
    unfit = examine(gpus_expected=args.gpu, deadline_s=args.deadline_s).unfit
    reason, text = "", f"{args.node} is fit for jobs"
    if unfit:
        reason = reason_of(unfit)
        text = asyncio.run(_drain(args.node, reason)) if args.drain == "act" else advice(args.node, reason)
    if args.json:
        print_json({"node": args.node, "fit": not unfit, "reason": reason, "text": text})
    else:
        print_line(text)
    return PROBLEM_FOUND if unfit else exits.OK


def reason_of(unfit: Sequence[Check]) -> str:
    """In one line, in the order of the findings."""
    told = "; ".join(f"{numbers(check.gpus)}{check.topic}: {check.text}" for check in unfit)
    text = OURS + " ".join(told.split())
    return text if len(text) <= _REASON_LENGTH_MAX else f"{text[: _REASON_LENGTH_MAX - 1]}…"


def advice(node: str, reason: str) -> str:
    """What a person would type."""
    return f"{node} is not fit for jobs; to keep them off: scontrol update nodename={node} state=drain reason={shlex.quote(reason)}"


def refusal(nodes: Sequence[SlurmNode], node: str) -> str:
    """Why the node is not drained by us, as things stand; "" when it may be. Raises NotFound when Slurm does not know it."""
    found = next((one for one in nodes if one.name == node), None)
    if found is None:
        raise NotFound(f"nodes/{node}", f"Slurm has no node {node}: name this node as Slurm does, with --node")
    if found.is_drained or found.state == NodeState.DOWN:
        state = "drained" if found.is_drained else "down"
        return f"it is {state} already ({found.reason or 'no reason given'})"
    ours = _ours(nodes)
    return _too_many(len(ours), len(nodes)) if len(ours) >= _most(nodes) else ""


def surplus(nodes: Sequence[SlurmNode], node: str) -> str:
    """Why the drain that we have made is to be undone; "" when it stays: others may have been checked at the same moment."""
    ours = _ours(nodes)
    later = node in ours[_most(nodes) :]
    return _too_many(len(ours) - 1, len(nodes)) if later else ""


def _ours(nodes: Sequence[SlurmNode]) -> list[str]:
    """Nodes that health checks have drained, in the order in which they did."""
    drained = sorted((one.reason_s or 0, one.name) for one in nodes if one.is_drained and one.reason.startswith(OURS))
    return [name for _, name in drained]


def _most(nodes: Sequence[SlurmNode]) -> int:
    return max(1, math.floor(DRAINED_SHARE_MAX * len(nodes)))


def _too_many(ours: int, nodes: int) -> str:
    return f"{ours} of {nodes} nodes are drained by health checks already, which is as many as they may drain"


async def _drain(node: str, reason: str) -> str:
    slurm = Commands(timeout_s=_SLURM_TIMEOUT_S)
    if why := refusal(await slurm.nodes(), node):
        return f"{advice(node, reason)}; not done: {why}"
    await slurm.drain(node, reason)
    await asyncio.sleep(_SETTLE_S)
    if why := surplus(await slurm.nodes(), node):
        await slurm.resume(node)
        return f"{advice(node, reason)}; undone: {why}"
    return f"{node} is not fit for jobs and drained: {reason}"
