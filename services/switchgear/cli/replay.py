"""`switchgear replay`: what today's detectors make of what a collector recorded."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from switchgear.cli import exits
from switchgear.cli.output import print_line, tell
from switchgear.collector.recording.record import require_arrow
from switchgear.core.errors import Invalid, Reason

if TYPE_CHECKING:
    from switchgear.collector.model import Signal
    from switchgear.collector.replay import Difference, Outcome

EXAMPLES = """examples:
  switchgear replay /var/lib/switchgear/recording
  switchgear replay recording --node gpu-07 --from 2026-11-22T10:00:00Z
  switchgear replay recording --compare                      # after a change of the catalog: what is judged otherwise
  switchgear replay recording --compare --silence-s 30       # what another threshold would have told

Same files, same output. Exit code 1 with --compare: something differs.
"""
#: Exit code of --compare, as diff has it.
DIFFERS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="files of a recording, or its folder")
    parser.add_argument("--node", default="", help="only of this node")
    parser.add_argument(
        "--from", dest="begin", type=_unix_ns, metavar="TIME", help="only from then on: 2026-11-22T10:00:00Z"
    )
    parser.add_argument("--to", dest="end", type=_unix_ns, metavar="TIME", help="only before then")
    parser.add_argument(
        "--speed",
        type=_speed,
        default=0.0,
        metavar="N",
        help="so many times as fast as it was (default: 0, as fast as it goes)",
    )
    parser.add_argument(
        "--silence-s", type=_seconds, metavar="S", help="a node is silent after so long (default: as then)"
    )
    parser.add_argument("--compare", action="store_true", help="print only where signals differ from those of then")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each")


def main(args: argparse.Namespace) -> int:
    require_arrow()
    from switchgear.collector.recording.happenings import read
    from switchgear.collector.replay import Comparison, Replay

    paths = event_files(args.files)
    node = args.node if not args.node or args.node.startswith("nodes/") else f"nodes/{args.node}"
    outcomes = Replay(args.silence_s).run(happening for path in paths for happening in read(path))
    shown = (
        outcome
        for outcome in outcomes
        if (not node or outcome.node == node)
        and (args.begin is None or outcome.time_unix_ns >= args.begin)
        and (args.end is None or outcome.time_unix_ns < args.end)
    )
    if not args.compare:
        for outcome in _paced(shown, args.speed):
            _print(_of_outcome(outcome), args.json)
        return exits.OK
    comparison = Comparison()
    for outcome in shown:
        comparison.take(outcome)
    differences = comparison.differences()
    for difference in differences:
        _print(_of_difference(difference), args.json)
    tell(f"{len(comparison.then)} signals then, {len(comparison.today)} today, {len(differences)} differences")
    return DIFFERS if differences else exits.OK


def event_files(given: Sequence[Path]) -> list[Path]:
    """The files with events among those given and in folders that are given, oldest first; each once, although it is just being ended.

    Raises Invalid when there is none.
    """
    found = dict[str, Path]()
    for path in given:
        # Ended files come first, and what a journal has is in them.
        listed = [*path.glob("events-*.parquet"), *path.glob("events-*.arrows")] if path.is_dir() else [path]
        for one in listed:
            if one.name.startswith("events-"):
                found.setdefault(one.stem, one)
    if not found:
        raise Invalid(
            "there is no events-* file of a recording; give the folder that [recording] names", Reason.BAD_FIELD
        )
    return [path for _, path in sorted(found.items())]


def _paced(outcomes: Iterator[Outcome], speed: float) -> Iterator[Outcome]:
    begin: tuple[int, float] | None = None
    for outcome in outcomes:
        if speed:
            begin = begin or (outcome.time_unix_ns, time.monotonic())
            due_s = begin[1] + (outcome.time_unix_ns - begin[0]) / 1e9 / speed
            time.sleep(max(0.0, due_s - time.monotonic()))
        yield outcome


def _print(told: dict[str, Any] | None, as_json: bool) -> None:
    if told is None:
        return
    if as_json:
        print_line(json.dumps(told))
    else:
        print_line("  ".join(str(value) for value in told.values() if value not in ("", None)))


def _of_outcome(outcome: Outcome) -> dict[str, Any] | None:
    """None for what was raised then."""
    if (change := outcome.verdict) is not None:
        return {
            "time": _time(outcome.time_unix_ns),
            "what": "verdict",
            "node": change.node,
            "verdict": f"{change.before} -> {change.after}",
            "why": change.why,
        }
    return _of_signal("signal", outcome.raised) if outcome.raised is not None else None


def _of_difference(difference: Difference) -> dict[str, Any]:
    then, today = difference.then, difference.today
    if then is None or today is None:
        return _of_signal("added" if then is None else "missing", today or then)
    changed = {name: f"{getattr(then, name)} -> {getattr(today, name)}" for name in difference.changed}
    return _of_signal("changed", today) | {"changed": ", ".join(f"{name} {text}" for name, text in changed.items())}


def _of_signal(what: str, signal: Signal | None) -> dict[str, Any]:
    values = asdict(signal) if signal is not None else {}
    time_unix_ns = values.pop("time_unix_ns", 0)
    gpu = values.pop("gpu", None)
    return {
        "time": _time(time_unix_ns),
        "what": what,
        "node": values.get("node", ""),
        "gpu": None if gpu is None else f"gpu {gpu}",
        "kind": values.get("kind", ""),
        "severity": str(values.get("severity", "")),
        "action": values.get("action", ""),
        "evidence": values.get("evidence", ""),
        "signal_id": values.get("signal_id", ""),
    }


def _time(unix_ns: int) -> str:
    seconds, ns = divmod(unix_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{ns:09}Z"


def _unix_ns(text: str) -> int:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 2026-11-22T10:00:00Z") from None
    return round((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1e9)


def _seconds(text: str) -> float:
    value = _number(text)
    if not value:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def _speed(text: str) -> float:
    return _number(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return value
