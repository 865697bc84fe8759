"""`switchgear health`: what is wrong with nodes now."""

from __future__ import annotations

import argparse
import getpass
import json
import time
import uuid
from collections.abc import Iterable, Iterator

from switchgear.cli import exits
from switchgear.cli.client import connect, whole_list
from switchgear.cli.output import last, local_time, print_json, print_line, print_table, tell, to_dict
from switchgear.cli.show import qualified
from switchgear.core.errors import OutOfRange, Unavailable
from switchgear.v1alpha import health_service_pb2 as pb

EXAMPLES = """examples:
  switchgear health
  switchgear health --verdict failed --verdict silent
  switchgear health gpu-01
  switchgear health --watch
  switchgear health clear gpu-01 --gpu 3 --reason "GPU replaced"
"""
_RETRY_S = 1.0
_VERDICTS = ("healthy", "degraded", "failed", "silent")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("node", nargs="?", help="one node, with what is open on it")
    parser.add_argument(
        "--verdict", action="append", choices=_VERDICTS, default=[], help="only such nodes; may be given several times"
    )
    parser.add_argument("--watch", action="store_true", help="go on with each change, until interrupted")


def main(args: argparse.Namespace) -> int:
    verdicts = [verdict.upper() for verdict in args.verdict]
    if args.watch:
        return _watch(args.server, qualified(args.node, "nodes") if args.node else "", verdicts, as_json=args.json)
    with connect(args.server) as client:
        if args.node:
            found = client.health.GetNodeHealth(pb.GetNodeHealthRequest(name=_name(args.node)))
            return _show(found, as_json=args.json)
        listed = whole_list(client.health.ListNodeHealth, pb.ListNodeHealthRequest(verdicts=verdicts), "nodes")
    if args.json:
        print_json(listed)
        return exits.OK
    print_table(
        ("NODE", "VERDICT", "SINCE", "OPEN", "WORST"),
        (
            (last_node(one), _verdict(one), local_time(one.since_time), len(one.conditions), worst(one))
            for one in listed
        ),
        "no such nodes: a node is listed once its agent, or an exporter, has told of it",
    )
    return exits.OK


def add_clear(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("node", help="the node that somebody has looked at")
    parser.add_argument("--gpu", type=int, metavar="N", help="only what is open on this GPU")
    parser.add_argument("--reason", required=True, help="shown with the node")


def clear(args: argparse.Namespace) -> int:
    with connect(args.server) as client:
        request = pb.ClearNodeHealthRequest(
            name=_name(args.node),
            gpu=args.gpu,
            reason=args.reason,
            actor=f"user:{getpass.getuser()}",
            request_id=uuid.uuid4().hex,
        )
        found = client.health.ClearNodeHealth(request)
    return _show(found, as_json=args.json)


def last_node(health: pb.NodeHealth) -> str:
    """The id of its node."""
    return last(health.name.removesuffix("/health"))


def worst(health: pb.NodeHealth) -> str:
    """What is worst on a node, in a few words."""
    return _what(health.conditions[0]) if health.conditions else "-"


def _name(node: str) -> str:
    return f"{qualified(node, 'nodes')}/health"


def _show(health: pb.NodeHealth, *, as_json: bool) -> int:
    if as_json:
        print_json(health)
        return exits.OK
    print_line(f"{health.name.removesuffix('/health')}  {_verdict(health)} since {local_time(health.since_time)}")
    if health.change:
        print_line(f"newest change: {health.change}")
    print_table(
        ("SEVERITY", "WHAT", "ACTION", "BEGAN", "NEWEST", "TIMES", "SIMULATED", "EVIDENCE"),
        (
            (
                pb.Condition.Severity.Name(one.severity),
                _what(one),
                one.action or "-",
                local_time(one.start_time),
                local_time(one.newest_time),
                one.count,
                "yes" if one.simulated else "no",
                one.evidence,
            )
            for one in health.conditions
        ),
        "nothing is open",
    )
    for one in health.conditions:
        print_line(f"{_what(one)} ends by {one.ends}")
    return exits.OK


def _watch(server: str | None, node: str, verdicts: Iterable[str], *, as_json: bool) -> int:
    """From all nodes as they are now on; a node that is no longer of the wanted verdicts is shown once more."""
    wanted, shown = frozenset(verdicts), set[str]()
    for told in _told(server):
        one = told.health
        if not told.HasField("health") or (node and one.name != f"{node}/health"):
            continue
        is_wanted = not wanted or _verdict(one) in wanted
        if not is_wanted and one.name not in shown:
            continue
        (shown.add if is_wanted else shown.discard)(one.name)
        if as_json:
            print(json.dumps(to_dict(one)), flush=True)
        else:
            print_line(f"{local_time(one.since_time)}  {last_node(one)}  {_verdict(one)}  {one.change}".rstrip())
    return exits.OK


def _told(server: str | None) -> Iterator[pb.WatchNodeHealthResponse]:
    """Goes on where it was when the control plane comes back. Raises Unavailable when it was not there to begin with."""
    revision, is_away = 0, False
    while True:
        try:
            with connect(server) as client:
                for told in client.health.WatchNodeHealth(pb.WatchNodeHealthRequest(revision=revision)):
                    revision, is_away = told.revision, False
                    yield told
        except (Unavailable, OutOfRange) as error:
            if not revision:
                raise
            if isinstance(error, OutOfRange):
                revision = 0  # all nodes again
                continue
            if not is_away:
                tell(f"{error.message}; trying again")
            is_away = True
            time.sleep(_RETRY_S)


def _verdict(health: pb.NodeHealth) -> str:
    return pb.NodeHealth.Verdict.Name(health.verdict)


def _what(one: pb.Condition) -> str:
    kind = f"{one.kind} {one.code}" if one.code else one.kind
    return " ".join(filter(None, (kind, f"GPU {last(one.gpu)}" if one.gpu else "", one.subject)))
