"""How the kernel log is read: labelled lines of real logs, and the processor time of one line, whatever is in it.

    python benchmarks/kernel_log.py [CASES] [--fuzz 20000] [--seed 1] [--json FILE]

CASES: a file of JSON objects, one a line: `line` (one or several lines), `check` (kind, none, not_kind, kind_optional), `expected_*`,
`not_kind`, perhaps `driver_version`; default `../shared/data/kernel_log_cases.jsonl` beside the repository. Each case is a log of its
own: of a block exactly one line is the event. Then hostile lines, by the seed: pieces of the cases and of the parser's own literals
repeated, cut and mixed with what confuses parsers. Prints JSON; exit code 1 when a case is wrong or a line takes over a millisecond
of processor time (the best of three readings, so that an interrupt is not blamed on the line).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from switchgear.agent.classify import classified
from switchgear.agent.sources.kernel_log import LINE_CHARS_MAX, KernelLogParser
from switchgear.agent.sources.kernel_log.classify import RULES

CPU_MS_MAX = 1.0
_CASES = Path(__file__).resolve().parents[2] / "shared" / "data" / "kernel_log_cases.jsonl"
#: What makes expressions backtrack, and what makes programs stumble.
_CONFUSING = (
    *(
        " ",
        "\t",
        ":",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "<",
        ">",
        ",",
        ".",
        "0",
        "9",
        "a",
        "x",
        "-",
        "_",
        "/",
        "\\x0a",
        "\0",
        "\ud800",
    ),
    *(
        "\u0664",
        "é",
        "\U0001f525",
        "0x",
        ": ",
        ", ",
        "))",
        "0000:00:00.0",
        "[1.0] ",
        "Jan  1 00:00:00 h kernel: ",
        "6,1,1,-;",
        "kernel: ",
    ),
)


def wrong_fields(case: Mapping[str, Any], events: Sequence[Mapping[str, object]]) -> list[str]:
    """What is wrong about the events that were found in a case."""
    kinds = [event["kind"] for event in events]
    match case["check"]:
        case "none":
            return [f"events {kinds}"] if events else []
        case "not_kind":
            return [f"kind {case['not_kind']}"] if case["not_kind"] in kinds else []
        case "kind_optional" if not events:
            return []
    if kinds != [case["expected_kind"]]:
        return [f"events {kinds}"]
    expected = {name.removeprefix("expected_"): value for name, value in case.items() if name.startswith("expected_")}
    return [
        f"{name}: {events[0][name]!r} instead of {value!r}"
        for name, value in expected.items()
        if _comparable(name, events[0][name]) != _comparable(name, value)
    ]


def _comparable(name: str, value: object) -> object:
    """A PCI address counts without prefix and function."""
    return value.removeprefix("PCI:").split(".")[0] if name == "pci" and isinstance(value, str) else value


def hostile(seed: int, count: int, pieces: Sequence[str]) -> Iterator[str]:
    """Lines that nobody would write, up to twice the length that is looked at."""
    rng = random.Random(seed)
    for number in range(count):
        # Each piece alone first, for as long as a line may be: that is where expressions fail.
        parts = [pieces[number]] if number < len(pieces) else rng.choices(pieces, k=rng.randint(1, 6))
        length = rng.choice((64, 512, LINE_CHARS_MAX, 2 * LINE_CHARS_MAX))
        text = ""
        while len(text) < length:
            part = rng.choice(parts)
            cut = part[: rng.randint(1, len(part))] if rng.random() < 0.2 else part
            text += cut * rng.choice((1, 1, 3, 100)) + (rng.choice(_CONFUSING) * rng.choice((0, 1, 50)))
        yield text[:length]


def cpu_ms(line: str) -> float:
    """Processor time that the parser needs for this line, in milliseconds."""
    best_ns = 2**63
    for _ in range(3):
        parser = KernelLogParser()
        start_ns = time.thread_time_ns()
        parser.feed(line, 0.0)
        best_ns = min(best_ns, time.thread_time_ns() - start_ns)
        if best_ns < CPU_MS_MAX * 1e5:
            break
    return best_ns / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="?", type=Path, default=_CASES)
    parser.add_argument("--fuzz", type=int, default=20_000, help="hostile lines (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the hostile lines (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the result there too")
    args = parser.parse_args()

    cases = [json.loads(line) for line in args.cases.read_text().splitlines()]
    right, wrong = Counter[str](), list[dict[str, object]]()
    for case in cases:
        told = classified(case["line"].split("\n"), case.get("driver_version", ""))
        errors = wrong_fields(case, [event for event in told if event["kind"] is not None])
        if errors:
            wrong.append({"check": case["check"], "errors": errors, "line": case["line"][:200]})
        else:
            right[case["check"]] += 1
    lines = [line for case in cases for line in case["line"].split("\n")]
    start_ns = time.thread_time_ns()
    usual = KernelLogParser()
    for line in lines:
        usual.feed(line, 0.0)
    usual_us = (time.thread_time_ns() - start_ns) / 1e3 / len(lines)
    pieces = sorted({rule.literal for rule in RULES} | {line[:200] for line in lines if line.strip()})
    worst_case = max((cpu_ms(line), line) for line in lines)
    worst_hostile = max((cpu_ms(line), line) for line in hostile(args.seed, args.fuzz, [*pieces, *_CONFUSING]))
    result = {
        "cases": len(cases),
        "right": dict(right),
        "wrong": wrong,
        "cpu_us_a_line_mean": round(usual_us, 1),
        "cpu_ms_worst_case": round(worst_case[0], 3),
        "hostile_lines": args.fuzz,
        "cpu_ms_worst_hostile": round(worst_hostile[0], 3),
        "worst_hostile_begins": worst_hostile[1][:120],
        "cpu_ms_max": CPU_MS_MAX,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")
    return 1 if wrong or max(worst_case[0], worst_hostile[0]) > CPU_MS_MAX else 0


if __name__ == "__main__":
    sys.exit(main())
