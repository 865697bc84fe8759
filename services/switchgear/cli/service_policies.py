"""`switchgear services decisions`, `replay` and `shadow`: what a policy decided, decides again, and what another one would."""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp

from switchgear.autoscaler import replay
from switchgear.autoscaler.decision_log import Head, Record, read
from switchgear.autoscaler.policies import scaler
from switchgear.cli import exits
from switchgear.cli.client import connect
from switchgear.cli.output import last, local_time, print_json, print_line
from switchgear.cli.show import qualified
from switchgear.core.errors import Invalid, Reason
from switchgear.v1 import autoscaler_service_pb2 as pb

COLLECTION = "inferenceServices"
NEWEST = 20


def add_decisions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the service")
    parser.add_argument(
        "--follow", action="store_true", default=False, help="go on with those that come, until interrupted"
    )
    parser.add_argument("--newest", type=int, default=NEWEST, metavar="N", help="how many (default: %(default)s)")


def decisions(args: argparse.Namespace) -> int:
    """Show what the policy saw and decided; with --json all that is kept, as lines for `services replay`."""
    if args.newest < 1:
        raise Invalid("--newest must be at least 1", Reason.BAD_FIELD, field="newest")
    request = pb.WatchDecisionsRequest(
        name=qualified(args.name, COLLECTION), newest=0 if args.json else args.newest, follow=args.follow
    )
    with connect(args.server) as client:
        for response in client.autoscaler.WatchDecisions(request):
            if args.json:
                print_line(response.line)
            elif not response.line.startswith('{"log":'):
                print_line(_told(json.loads(response.line)))
            if args.follow:
                sys.stdout.flush()
    return exits.OK


def _told(record: dict[str, dict[str, float | str]]) -> str:
    seen, decision, shadow = record["seen"], record["decision"], record.get("shadow")
    at = local_time(Timestamp(seconds=int(float(seen.get("unix_s", 0.0)))))
    beside = f"  [shadow: {shadow['replicas']}]" if shadow else ""
    return f"{at}  {seen['desired']} -> {decision['replicas']}  {decision['cause']:<8} {decision['text']}{beside}"


def add_replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="a decision log: what `services decisions NAME --json` printed")
    parser.add_argument(
        "--policy",
        default="",
        metavar="NAME[:TARGET]",
        help="what another policy would have wanted on the same observations",
    )


def replayed(args: argparse.Namespace) -> int:
    """Decide a log again: the same decisions, or the first that differs (exit 1)."""
    entries = _entries(args.file)
    outcome = replay.instead(entries, scaler(args.policy)) if args.policy else replay.again(entries)
    if args.json:
        print_json(_as_json(outcome, args.policy))
    else:
        for line in _lines(outcome, args.policy):
            print_line(line)
    return 1 if outcome.difference else exits.OK


def _entries(path: Path) -> Iterator[Head | Record]:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        # All files of a log but the newest are compressed.
        with (gzip.open if packed else open)(path, "rt", encoding="utf-8", errors="replace") as lines:
            yield from read(lines, str(path))
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise Invalid(
            f"cannot read {path} ({why}); name one file of a decision log, as `switchgear services decisions NAME --json` writes it",
            Reason.BAD_FIELD,
            field="file",
        ) from error


def _lines(outcome: replay.Outcome, policy: str) -> list[str]:
    lines = []
    if policy:
        lines += [f"{at_s:10.1f} s  {one.replicas:>4}  {one.text}" for at_s, one in outcome.changes]
        lines.append(
            f"{policy} would have wanted {outcome.wanted_replica_s / 3600:.3f} replica-hours, "
            f"the log wanted {outcome.logged_replica_s / 3600:.3f}, in {outcome.span_s / 3600:.2f} h"
        )
    elif found := outcome.difference:
        lines += [
            f"decision {found.number} differs (at {found.now_s:.1f} s)",
            f"  log:   {found.logged.replicas} {found.logged.cause}: {found.logged.text}",
            f"  again: {found.again.replicas} {found.again.cause}: {found.again.text}",
            *(f"  {name}: {before} in the log, {now} again" for name, before, now in found.figures),
        ]
    else:
        lines.append(f"{outcome.decisions} decisions, all the same")
    return lines


def _as_json(outcome: replay.Outcome, policy: str) -> dict[str, object]:
    found = outcome.difference
    return {
        "policy": policy,
        "decisions": outcome.decisions,
        "same": found is None,
        "first_difference": None
        if found is None
        else {"number": found.number, "logged": found.logged.text, "again": found.again.text},
        "wanted_replica_s": round(outcome.wanted_replica_s, 3),
        "logged_replica_s": round(outcome.logged_replica_s, 3),
        "span_s": round(outcome.span_s, 3),
        "kept_requests": outcome.kept,
        "broken_requests": outcome.broken,
        "changes": [{"now_s": at_s, "replicas": one.replicas, "text": one.text} for at_s, one in outcome.changes],
    }


def add_shadow(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the service")
    parser.add_argument(
        "policy", nargs="?", default="", metavar="POLICY", help="hpa, kpa, keda, …; none ends the shadow"
    )
    parser.add_argument("--target", type=float, default=None, metavar="X", help="of the policy (default: its own)")


def shadow(args: argparse.Namespace) -> int:
    """Let another policy decide beside the live one, without effect: `services NAME` shows what it would cost."""
    if args.target is not None and not args.policy:
        raise Invalid(
            "--target is of a policy: name one, as in `services shadow NAME hpa --target 8`",
            Reason.BAD_FIELD,
            field="target",
        )
    policy = args.policy if args.target is None else f"{args.policy}:{args.target:.15g}"
    request = pb.SetShadowPolicyRequest(
        name=qualified(args.name, COLLECTION), policy=policy, request_id=uuid.uuid4().hex
    )
    with connect(args.server) as client:
        service = client.autoscaler.SetShadowPolicy(request)
    if args.json:
        print_json(service)
    else:
        print_line(f"{last(service.name)}: {f'{policy} decides beside' if policy else 'no shadow'}")
    return exits.OK
