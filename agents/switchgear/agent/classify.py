"""`switchgear agent classify-log`: what each line of a log says, as JSON, without an agent."""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

from switchgear.agent.sources.kernel_log import LINE_CHARS_MAX, Blocks, Classified, classify_message, split
from switchgear.core.errors import Invalid, Reason

EXAMPLES = """examples:
  journalctl -k -o short-iso | switchgear agent classify-log
  switchgear agent classify-log /var/log/kern.log --driver 580.82.09 | jq 'select(.kind)'

One JSON object for each line. Lines of one event count once: its first line has the kind, the others null."""

_FIELDS = (
    *("code", "pci", "mig_gpu_instance", "pid", "process", "unit", "severity", "link", "intrinfo", "error_status"),
    *("action", "fatal", "caused_by"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `switchgear agent classify-log`."""
    parser.epilog = EXAMPLES
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="a log, in any form (default: stdin)")
    parser.add_argument(
        "--driver",
        default="",
        metavar="VERSION",
        help="version of the NVIDIA driver that wrote it; XIDs 144 to 150 are read by it (default: by what fits)",
    )


def main(args: argparse.Namespace) -> int:
    """Prints one JSON object for each line. Raises Invalid when the file cannot be read."""
    with _open(args.file) if args.file else nullcontext(sys.stdin.buffer) as log:
        lines = (line.decode(errors="replace") for line in log)
        for told in classified(lines, args.driver):
            print(json.dumps(told), flush=args.file is None)  # noqa: T201 - a command's output
    return 0


def _open(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise Invalid(
            f"{file}: {error.strerror}; give a log that you may read, or none to read standard input",
            Reason.BAD_FIELD,
            field="FILE",
        ) from None


def classified(lines: Iterable[str], driver: str = "") -> Iterator[dict[str, object]]:
    """What is known of each line, in their order. A line waits for the lines of its block, no longer."""
    blocks = Blocks[int]()
    waiting = deque[tuple[int, str]]()
    events = dict[int, Classified]()
    for number, line in enumerate(lines):
        text = line.rstrip("\r\n")
        message = split(text[:LINE_CHARS_MAX])
        waiting.append((number, text))
        events.update(blocks.add(number, message, classify_message(message, driver)))
        held = blocks.held
        while waiting and (held is None or waiting[0][0] < held):
            first, told = waiting.popleft()
            yield _object(told, events.pop(first, None))
    events.update(blocks.close())
    for number, text in waiting:
        yield _object(text, events.pop(number, None))


def _object(line: str, found: Classified | None) -> dict[str, object]:
    fields = dict[str, object].fromkeys(_FIELDS)
    if found is not None:
        fields |= {name: value for name in _FIELDS if (value := getattr(found, name, None)) not in ("", None)}
        fields["action"] = found.verdict.action or None
    return {"line": line, "kind": found.kind.lower() if found is not None else None, **fields}
