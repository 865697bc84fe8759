"""`switchgear inference probe`: what an inference server tells of itself, what is missing, and what that costs."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from urllib.parse import urlsplit

from switchgear.autoscaler.adapters.fetch import Fetcher, FetchFailed
from switchgear.autoscaler.adapters.page import PageUnusable, ServerUnknown
from switchgear.autoscaler.adapters.report import Report, report, whereabouts
from switchgear.autoscaler.adapters.scrape import Reading, read
from switchgear.autoscaler.adapters.table import BY_NAME
from switchgear.cli.output import print_json, print_line, print_table, tell
from switchgear.core.errors import Invalid, Reason

USABLE, NOT_USABLE, NO_METRICS = 0, 1, 2
_WATCH_S = 3.0
_WATCH_S_MAX = 3600.0
_EPILOG = """examples:
  switchgear inference probe http://gpu-01:8000
  switchgear inference probe http://gpu-01:8002/metrics --engine triton --watch 30
  switchgear inference probe https://chat.example/metrics --token-file token --ca ca.crt --json

exit codes:
  0  usable for autoscaling    1  not usable    2  not reachable, or no page of metrics there"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.epilog = _EPILOG
    command.add_argument(
        "url", metavar="URL", help="of the page of metrics; without a path, where such a server has it"
    )
    command.add_argument(
        "--engine", choices=sorted(BY_NAME), metavar="NAME", help=f"one of {', '.join(sorted(BY_NAME))} (default: seen)"
    )
    command.add_argument(
        "--watch",
        type=float,
        metavar="S",
        help=f"seconds between two scrapes (default: {_WATCH_S:g}, or how often such a server has anything new)",
    )
    command.add_argument("--token-file", type=Path, metavar="F", help="its text is sent as a bearer token")
    command.add_argument("--ca", type=Path, metavar="F", help="CA that is believed instead of the system's, in PEM")
    command.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> int:
    """Runs the command; the exit code is one of the three above, or that of an error of ours."""
    url = _url(args.url, args.engine or "")
    if args.watch is not None and not 0 < args.watch <= _WATCH_S_MAX:
        raise Invalid(f"--watch {args.watch:g} must be above 0 and at most {_WATCH_S_MAX:g} seconds", Reason.BAD_FIELD)
    try:
        seen = asyncio.run(_seen(url, args))
    except FetchFailed as error:
        return _failed(args, url, NO_METRICS, f"{error.why}{_hint(error, url)}")
    except ServerUnknown as error:
        return _failed(args, url, NOT_USABLE, str(error))
    except PageUnusable as error:
        return _failed(args, url, NO_METRICS, f"{error}; servers have it at {whereabouts()}")
    if args.json:
        print_json(_as_json(url, seen))
    else:
        _print(url, seen)
    return USABLE if seen.usable else NOT_USABLE


async def _seen(url: str, args: argparse.Namespace) -> Report:
    async with Fetcher(token_file=args.token_file, ca_file=args.ca) as fetcher:
        before = await _reading(fetcher, url, args.engine or "")
        clock = asyncio.get_running_loop().time
        began_s = clock()
        await asyncio.sleep(args.watch or max(_WATCH_S, before.server.period_s))
        after = await _reading(fetcher, url, args.engine or "")
        # A slow page is younger than the pause alone says, and its counters grew meanwhile.
        return report(before, after, clock() - began_s)


async def _reading(fetcher: Fetcher, url: str, engine: str) -> Reading:
    return read(await fetcher.fetch(url), engine)


def _url(given: str, engine: str) -> str:
    parts = urlsplit(given)
    try:
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid:
        raise Invalid(f"{given!r} is no URL of a page; it must be like http://gpu-01:8000/metrics", Reason.BAD_FIELD)
    if parts.path in ("", "/"):
        return parts._replace(path=BY_NAME[engine].path if engine else "/metrics").geturl()
    return given


def _failed(args: argparse.Namespace, url: str, code: int, why: str) -> int:
    if args.json:
        print_json({"url": url, "usable": False, "verdict": why})
    tell(f"switchgear: {url}: {why}")
    return code


def _hint(error: FetchFailed, url: str) -> str:
    if error.status in (401, 403):
        return ": --token-file names the file of a token that it takes"
    if error.status == 404:
        return f": no page is under {urlsplit(url).path} of this port; servers have it at {whereabouts()}; LitServe has none"
    if error.outcome == "unreachable" and "CERTIFICATE_VERIFY_FAILED" in error.why:
        return ": --ca names the file of the CA that signed its certificate"
    if error.outcome in ("unreachable", "refused"):
        return "; check host and port"
    return ""


def _print(url: str, seen: Report) -> None:
    version = f" {seen.version}" if seen.version else ", version not told"
    print_line(f"{url}: {seen.server.title}{version}")
    print_line("")
    rows = [(one.quantity.value, one.series, one.type, one.unit, one.now) for one in seen.told]
    print_table(("QUANTITY", "SERIES", "TYPE", "UNIT", "NOW"), rows, "nothing is told")
    for one in seen.told:
        if one.mismatch:
            print_line(f"mismatch: {one.mismatch}")
    if seen.rejected:
        print_line(f"not taken: {', '.join(seen.rejected)}")
    print_line("")
    for lack in seen.lacks:
        what = f"{' or '.join(lack.series)} is missing" if lack.series else f"{seen.server.title} has no series of it"
        print_line(f"no {lack.quantity.value} ({what}): {lack.cost}{f'; {lack.remedy}' if lack.remedy else ''}")
    print_line(seen.verdict)


def _as_json(url: str, seen: Report) -> dict[str, object]:
    return {
        "url": url,
        "engine": seen.server.name,
        "version": seen.version,
        "usable": seen.usable,
        "verdict": seen.verdict,
        "told": [
            {
                "quantity": one.quantity.value,
                "series": one.series,
                "type": one.type,
                "unit": one.unit,
                "value": one.value,
                "mismatch": one.mismatch,
            }
            for one in seen.told
        ],
        "missing": [
            {"quantity": one.quantity.value, "series": list(one.series), "cost": one.cost, "remedy": one.remedy}
            for one in seen.lacks
        ],
        "rejected": list(seen.rejected),
    }
