"""`switchgear logs`: what the ranks of a job wrote, of an attempt that has ended or as it comes."""

from __future__ import annotations

import argparse
import glob
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from switchgear.cli import exits
from switchgear.cli.client import connect
from switchgear.cli.output import last
from switchgear.cli.show import qualified
from switchgear.cli.standalone import SPEC_FILE
from switchgear.cli.state import default_state_dir
from switchgear.core.errors import NotFound, Unavailable
from switchgear.launcher.logs import Echo
from switchgear.launcher.state import is_held
from switchgear.v1 import job_service_pb2 as jobs

POLL_S = 0.2
#: Files are looked at more often than the control plane is asked whether the job has ended.
POLLS_PER_QUESTION = 5
_LOG = re.compile(r"rank-(\d+)\.(stdout|stderr)\.log")
_FINAL = {jobs.Job.SUCCEEDED, jobs.Job.FAILED, jobs.Job.CANCELLED}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", help="the job, also one of `run --standalone`")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on with what comes, through restarts, until the job ends"
    )
    parser.add_argument("--rank", type=int, help="only this rank")
    parser.add_argument(
        "--attempt", type=int, help="only this attempt (default: the newest, with --follow all from the newest on)"
    )


def main(args: argparse.Namespace) -> int:
    folder, ended = _find(args.server, args.job)
    attempts = _attempts(folder)
    start = args.attempt or (attempts[-1] if attempts else 1)
    if args.attempt and args.attempt not in attempts:
        raise NotFound(
            args.job, f"{args.job} has no logs of attempt {args.attempt}; it has those of {attempts or 'none yet'}"
        )
    if not attempts and not args.follow:
        raise NotFound(args.job, f"{args.job} has no logs yet; wait for them with --follow")
    show = Shown(folder, start, args.attempt or sys.maxsize, lambda rank, _: args.rank in (None, rank))
    while args.follow and not ended():
        for _ in range(POLLS_PER_QUESTION):
            show.poll()
            time.sleep(POLL_S)
    show.poll(end=True)
    return exits.OK


class Shown:
    """The logs of the attempts `first` to `final`, each rank's lines with its number in front.

    wanted: of a rank and `stdout` or `stderr`, whether it is shown.
    """

    def __init__(self, folder: Path, first: int, final: int, wanted: Callable[[int, str], bool]) -> None:
        self._folder, self._first, self._final, self._wanted = folder, first, final, wanted
        self._echoes: dict[Path, Echo] = {}
        self._told: set[int] = set()

    def poll(self, *, end: bool = False) -> None:
        for attempt in _attempts(self._folder):
            if not self._first <= attempt <= self._final:
                continue
            if attempt not in self._told:
                self._told.add(attempt)
                print(f"--- attempt {attempt} ---", file=sys.stderr)
            for path in sorted((self._folder / str(attempt)).iterdir()):
                match = _LOG.fullmatch(path.name)
                if match and self._wanted(int(match[1]), match[2]):
                    out = sys.stdout if match[2] == "stdout" else sys.stderr
                    echo = self._echoes.setdefault(path, Echo(path, int(match[1]), out))
                    echo.drain() if end else echo.poll()


def _attempts(folder: Path) -> list[int]:
    try:
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    except OSError:
        return []


def _find(server: str | None, job: str) -> tuple[Path, Callable[[], bool]]:
    """The log folder of a job, and whether the job has ended."""
    alone = default_state_dir() / "standalone"
    # Of a job of several machines, what this one has of it.
    places = (alone / last(job), *sorted(alone.glob(f"{glob.escape(last(job))}@*")))
    if standalone := next((place for place in places if place.is_dir()), None):
        return _standalone_logs(standalone), lambda: not is_held(standalone)
    name = qualified(job, "jobs")
    with connect(server) as client:
        found = client.jobs.GetJob(jobs.GetJobRequest(name=name))

    def ended() -> bool:
        try:
            with connect(server) as again:
                return again.jobs.GetJob(jobs.GetJobRequest(name=name)).state in _FINAL
        except Unavailable:
            return False  # the job outlives its control plane, and so do its logs

    return Path(found.spec.log_directory), ended


def _standalone_logs(folder: Path) -> Path:
    try:
        return Path(json.loads((folder / SPEC_FILE).read_text())["logDirectory"])
    except (OSError, ValueError, KeyError):
        return folder / "logs"
