"""`switchgear tokens | join-token | audit`: who may do what, and who did."""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Sequence
from datetime import UTC

from google.protobuf.timestamp_pb2 import Timestamp

from switchgear.cli import exits
from switchgear.cli.client import connect, whole_list
from switchgear.cli.output import last, print_json, print_line, print_table
from switchgear.cli.show import qualified
from switchgear.v1 import access_service_pb2 as pb

ROLES = ("viewer", "operator", "admin")


def add_tokens(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action", nargs="?", choices=("create", "revoke"), help="make one, or refuse one from now on; else list all"
    )
    parser.add_argument(
        "whose", nargs="?", default="", help="create: the user's name; revoke: the token's, as the list shows it"
    )
    parser.add_argument("--role", choices=ROLES, default="viewer", help="of a new one (default: %(default)s)")
    parser.add_argument("--days", type=int, default=0, help="how long a new one is good: 1 to 366 (default: 90)")


def tokens(args: argparse.Namespace) -> int:
    """Lists the tokens, makes one or revokes one."""
    with connect(args.server) as client:
        match args.action:
            case "create":
                made = client.access.CreateToken(
                    pb.CreateTokenRequest(
                        user=args.whose,
                        role=args.role.upper(),
                        valid_days=args.days,
                        request_id=uuid.uuid4().hex,
                    )
                )
                if args.json:
                    print_json(made)
                else:
                    print_line(made.secret)
            case "revoke":
                request = pb.RevokeTokenRequest(name=qualified(args.whose, "tokens"), request_id=uuid.uuid4().hex)
                revoked = client.access.RevokeToken(request)
                if args.json:
                    print_json(revoked)
                else:
                    print_line(f"{revoked.name} of {revoked.user} is refused from now on")
            case _:
                found: list[pb.Token] = whole_list(client.access.ListTokens, pb.ListTokensRequest(), "tokens")
                if args.json:
                    print_json(found)
                else:
                    _print_tokens(found)
    return exits.OK


def add_join_token(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--node", default="", help="the one node that may use it (default: any that has not joined yet)"
    )
    parser.add_argument("--valid", type=int, default=0, metavar="SECONDS", help="at most 7 days (default: 1 hour)")


def join_token(args: argparse.Namespace) -> int:
    """Prints what `switchgear agent --join` takes."""
    with connect(args.server) as client:
        made = client.access.CreateJoinToken(
            pb.CreateJoinTokenRequest(
                node=qualified(args.node, "nodes") if args.node else "",
                valid_seconds=args.valid,
                request_id=uuid.uuid4().hex,
            )
        )
    if args.json:
        print_json(made)
    else:
        print_line(made.join_token)
    return exits.OK


def add_audit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limit", type=int, default=50, help="newest entries that are shown, 1 to 1000 (default: %(default)s)"
    )


def audit(args: argparse.Namespace) -> int:
    """Shows the newest changes and refusals, oldest first as they happened."""
    with connect(args.server) as client:
        response = client.access.ListAuditEntries(pb.ListAuditEntriesRequest(page_size=args.limit))
    entries = list(reversed(response.entries))
    if args.json:
        print_json(entries)
        return exits.OK
    print_audit(entries)
    return exits.OK


def print_audit(entries: Sequence[pb.AuditEntry]) -> None:
    """A line for each entry, in that order."""
    print_table(
        ("TIME", "ACTOR", "OUTCOME", "COUNT", "METHOD", "RESOURCE", "FROM", "MESSAGE"),
        [
            (
                _day_and_time(entry.time),
                entry.actor or "-",
                entry.outcome,
                entry.count,
                _method(entry.method),
                entry.resource or "-",
                entry.peer or "-",
                entry.message,
            )
            for entry in entries
        ],
        "nothing was changed and nobody refused yet",
    )


def _print_tokens(found: list[pb.Token]) -> None:
    rows = [
        (
            last(token.name),
            token.user,
            pb.Role.Name(token.role),
            _day_and_time(token.expire_time),
            f"revoked {_day_and_time(token.revoke_time)}" if token.HasField("revoke_time") else "",
        )
        for token in found
    ]
    print_table(("TOKEN", "USER", "ROLE", "EXPIRES", ""), rows, "there are no tokens: run `switchgear init`")


def _method(full: str) -> str:
    """Without its package; what REST refused is told by its path."""
    return (full if " " in full else full.rpartition(".")[2]) or "-"


def _day_and_time(stamp: Timestamp) -> str:
    return stamp.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
