"""`switchgear top`: the cluster on one screen, drawn anew each second."""

from __future__ import annotations

import argparse
import time

import grpc
from rich.console import Console
from rich.live import Live

from switchgear.cli import exits
from switchgear.cli.client import connect
from switchgear.cli.picture import Picture, take
from switchgear.cli.view import draw
from switchgear.core.errors import Invalid, Reason


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="SECONDS", help="between two pictures (default: %(default)s)"
    )
    parser.add_argument("--once", action="store_true", help="print one picture and end")


def main(args: argparse.Namespace) -> int:
    """Draws until Ctrl-C. A control plane that stops answering keeps its last picture on the screen."""
    if not 0.1 <= args.interval <= 3600:
        raise Invalid("--interval must be 0.1 to 3600 seconds", Reason.BAD_FIELD)
    console = Console()
    with connect(args.server) as client:
        picture = take(client, None)
        if args.once or not console.is_terminal:
            console.print(draw(picture))
            return exits.OK
        with Live(console=console, screen=True, auto_refresh=False) as live:
            _refresh(live, picture, "")
            while True:
                time.sleep(args.interval)
                try:
                    picture = take(client, picture)
                    _refresh(live, picture, "")
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    _refresh(live, picture, "the control plane does not answer; trying again")


def _refresh(live: Live, picture: Picture, trouble: str) -> None:
    title = f"switchgear top  {time.strftime('%H:%M:%S')}  {trouble}   Ctrl-C ends"
    live.update(draw(picture, title=title), refresh=True)
