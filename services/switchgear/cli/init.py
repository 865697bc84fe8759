"""`switchgear init`: the CA, the services' certificate and the first admin's token of one installation."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import os
import socket
import time
from pathlib import Path

from switchgear.access import pki, secret, store
from switchgear.access.model import Token
from switchgear.cli import exits
from switchgear.cli.output import print_json
from switchgear.cli.state import DATABASE_URL_VARIABLE, TOKEN_FILE, default_state_dir
from switchgear.core import names
from switchgear.core.errors import AlreadyExists, Reason
from switchgear.core.identity import Role
from switchgear.core.tls import write_private
from switchgear.store.database import Database, sqlite_url

#: The first token, like those that `switchgear tokens create` makes for the longest time.
TOKEN_DAYS = 366

ADVICE = """start the control plane again, so that it uses them: switchgear up (from now on without a node agent in its process)
people: switchgear tokens create NAME --role viewer|operator|admin, and a copy of {ca}
nodes:  switchgear join-token --node NAME, then on the node: switchgear agent --join TOKEN --state-dir DIR
mind that jobs run as the user who runs the agent, and may do on the node what that user may: give operator tokens to people whom
you trust with that, and run agents as a user of their own"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state-dir",
        type=Path,
        help="where all state lives (default: $SWITCHGEAR_STATE_DIR or ~/.local/state/switchgear)",
    )
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name or address at which nodes and people reach this machine; may be given several times "
        "(this machine's host name and loopback are always there)",
    )
    parser.add_argument(
        "--router-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name or address of a machine with a `switchgear router` of its own, at which clients reach it; may be given several times",
    )
    parser.add_argument(
        "--database-url",
        default=os.environ.get(DATABASE_URL_VARIABLE, ""),
        metavar="URL",
        help=f"postgresql+asyncpg://… instead of SQLite in the state directory (or ${DATABASE_URL_VARIABLE})",
    )
    parser.add_argument("--json", action="store_true", help="print what was made as JSON")


def main(args: argparse.Namespace) -> int:
    """Makes what is missing. Raises AlreadyExists when nothing is."""
    state_dir: Path = (args.state_dir or default_state_dir()).absolute()
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = state_dir / "pki"
    now_unix_ns = time.time_ns()
    made = pki.create(folder, [*args.host, socket.gethostname()], now_unix_ns, router_hosts=args.router_host)
    token = ""
    if not (state_dir / TOKEN_FILE).exists():
        token = asyncio.run(_first_token(args.database_url or sqlite_url(state_dir / "switchgear.db"), now_unix_ns))
        write_private(state_dir / TOKEN_FILE, f"{token}\n")
        made.append("token")
    if not made:
        raise AlreadyExists(
            f"{state_dir} has a CA, certificates and a token already. For other host names remove {folder}/service.crt or router.crt and run "
            f"init again; for a new CA remove {folder}, and have every node join again; more tokens: switchgear tokens create",
            Reason.ALREADY_EXISTS,
            state_dir=str(state_dir),
        )
    found = pki.Pki(folder)
    if args.json:
        print_json({"made": made, "stateDir": str(state_dir), "hosts": found.hosts(), "token": token})
        return exits.OK
    print(f"made in {state_dir}: {', '.join(made)}; good for {', '.join(found.hosts())}")
    if token:
        print(f"admin token of {_user()}, shown once and kept in {state_dir / TOKEN_FILE}:\n{token}")
    print(ADVICE.format(ca=found.ca))
    return exits.OK


async def _first_token(database_url: str, now_unix_ns: int) -> str:
    database = Database(database_url)
    try:
        await database.migrate()
        text, token_id, digest = secret.create(secret.BEARER)
        expire = now_unix_ns + TOKEN_DAYS * 86400 * 1_000_000_000
        async with database.write() as session:
            await store.add_token(session, Token(token_id, digest, _user(), Role.ADMIN, now_unix_ns, expire))
        return text
    finally:
        await database.close()


def _user() -> str:
    return names.to_id(getpass.getuser(), "admin")
