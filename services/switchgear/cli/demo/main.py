"""`switchgear demo`: train on simulated nodes and break it three times, then serve the model under load and break that; prove the result."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from switchgear.cli import exits
from switchgear.cli.client import connect
from switchgear.cli.demo.patience import Patience
from switchgear.cli.demo.postgres import Postgres
from switchgear.cli.demo.report import Report, as_json, as_text
from switchgear.cli.demo.serving import Serving
from switchgear.cli.demo.stage import KILLABLE, Stage
from switchgear.cli.demo.telling import Telling
from switchgear.cli.demo.training import Training
from switchgear.core.errors import FailedPrecondition, Reason

STEPS_DEFAULT = 320


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report as JSON")
    parser.add_argument("--keep", action="store_true", help="leave everything up at the end and print the addresses")
    parser.add_argument(
        "--steps", type=int, default=STEPS_DEFAULT, help="training steps (default: %(default)s, at least 200)"
    )
    parser.add_argument("--plain", action="store_true", help="only lines, no live view")
    parser.add_argument(
        "--apart", action="store_true", help="run each service as a process of its own, on PostgreSQL (needs initdb)"
    )
    parser.add_argument(
        "--kill",
        metavar="NAME",
        action="append",
        default=[],
        choices=KILLABLE,
        help=f"with --apart: SIGKILL this process in each act and start it again; one of {', '.join(KILLABLE)}; may be repeated",
    )
    parser.add_argument(
        "--database-url", default="", help="with --apart: an empty database of a PostgreSQL that runs already"
    )
    # Makes the trainer forget random numbers and optimizer on resume: the proof must notice.
    parser.add_argument("--break-resume", action="store_true", help=argparse.SUPPRESS)
    parser.epilog = "examples:\n  switchgear demo\n  switchgear demo --apart --kill recovery\n  switchgear demo --keep --json report.json"


def main(args: argparse.Namespace) -> int:
    if args.steps < 200:
        raise FailedPrecondition("--steps must be 200 or more: three faults need room", Reason.BAD_FIELD)
    if not args.apart and (args.kill or args.database_url):
        raise FailedPrecondition("--kill and --database-url go with --apart; add it", Reason.BAD_FIELD)
    for module in ("sqlalchemy", "torch"):
        if find_spec(module) is None:
            raise FailedPrecondition(
                f"the demo needs {module}; install it with pip install 'switchgear[server,train]'", Reason.MISSING_EXTRA
            )
    folder = Path(tempfile.mkdtemp(prefix="switchgear-demo-"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends in order, as on Ctrl-C
    held: list[bool] = []
    with ExitStack() as ends:  # the last that is put in ends first
        ends.callback(lambda: _clear(folder, well=any(held)))
        stage = Stage(folder, _database(args, ends))
        ends.callback(stage.close)
        ends.callback(_deafen)
        with Telling(plain=args.plain) as telling:
            report = Demo(stage, telling, args.steps, kill=args.kill, break_resume=args.break_resume).run()
        held.append(report.held)
        print(as_text(report))
        if args.json:
            args.json.write_text(json.dumps(as_json(report), indent=2) + "\n")
        if args.keep:
            _print_kept(stage)
            ends.pop_all()
        return exits.OK if report.held else exits.JOB_FAILED


def _deafen() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it behind


def _clear(folder: Path, *, well: bool) -> None:
    if well:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"logs and state are kept in {folder}", file=sys.stderr)


def _database(args: argparse.Namespace, ends: ExitStack) -> str:
    if not args.apart or args.database_url:
        return str(args.database_url)
    postgres = Postgres()
    ends.callback(postgres.close)
    return postgres.start()


def _print_kept(stage: Stage) -> None:
    where = stage.addresses
    print(f"\nstill up: gRPC {where.grpc}, REST http://{where.http}/v1/jobs, state in {stage.folder}")
    print(
        f"ask the model:  curl -s http://{where.router}/v1/completions -H 'Content-Type: application/json' "
        """-d '{"model": "chat", "prompt": "import ", "max_tokens": 16}'"""
    )
    print(f"look around:    switchgear top --server {where.grpc}")
    print(f"end it with:    kill {' '.join(str(pid) for pid in stage.pids().values())}")


@dataclass
class Demo:
    """One performance on a stage."""

    stage: Stage
    telling: Telling
    steps: int
    kill: list[str]
    break_resume: bool = False
    killed: list[str] = field(default_factory=list)

    def run(self) -> Report:
        start = time.monotonic()
        self.stage.start_control()
        where = self.stage.addresses
        how = "five services apart on PostgreSQL and a router" if self.stage.apart else "one process"
        self.telling.say(f"control plane up ({how}): gRPC {where.grpc}, REST http://{where.http}")
        self.stage.start_agents()
        with connect(where.grpc, Patience(self.stage.check)) as client:
            training = Training(self.stage, client, self.steps, self.telling.say, self._kill, self.break_resume)
            self.telling.show(where.grpc, training.loss)
            trained = training.run()
            # Requests that are in the router die with it, as with any server; clients send them again.
            retries = 5 if "router" in self.kill else 0
            served = Serving(self.stage, client, training.checkpoints, self.telling.say, self._kill, retries).run()
        return Report(trained, served, self.killed, time.monotonic() - start)

    def _kill(self) -> None:
        for name in self.kill:
            self.telling.say(f"SIGKILL of {name}; its command is started again")
            self.stage.kill(name)
            self.killed.append(name)
