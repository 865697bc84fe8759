"""The forms of the kernel log, as a text: `kernel_log_lines.txt` beside this file. And whatever else may stand in a log."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from switchgear.agent.classify import classified
from switchgear.agent.sources.kernel_log import KernelLogParser, classify
from switchgear.agent.sources.kernel_log.classify import RULES
from switchgear.core.catalog import KINDS

FILE = Path(__file__).with_name("kernel_log_lines.txt")
_FIELD = re.compile(r"(\w+)=(.*?)(?= \w+=|$)")


def cases() -> Iterator[tuple[str, list[str]]]:
    """What is expected, and the lines."""
    expected, lines = "", list[str]()
    for line in [*FILE.read_text().splitlines(), ""]:
        if line.startswith("> "):
            lines.append(line[2:])
            continue
        if lines:
            yield expected, lines
            lines = []
        if line and not line.startswith("#"):
            expected = line


def events(lines: list[str]) -> list[dict[str, object]]:
    return [told for told in classified(lines) if told["kind"] is not None]


@pytest.mark.parametrize(
    ("expected", "lines"), list(cases()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_each_block_of_the_file_is_the_event_that_it_says(expected: str, lines: list[str]) -> None:
    kind, _, fields = expected.partition(" ")
    found = events(lines)
    assert [event["kind"] for event in found] == ([] if kind == "-" else [kind])
    for name, value in _FIELD.findall(fields):
        told = found[0][name]
        assert (told if isinstance(told, str) else json.dumps(told)) == value, name


def test_the_file_has_every_kind_of_the_catalog() -> None:
    told = {expected.split()[0].upper() for expected, _ in cases()} - {"-"}
    assert told == set(KINDS)


def test_a_log_of_all_blocks_one_after_the_other_tells_the_same_events() -> None:
    """What ends one block is the next: a blank line, another fault, or another moment."""
    lines = [line for _, block in cases() for line in [*block, ""]]
    assert [event["kind"] for event in events(lines)] == [
        expected.split()[0] for expected, _ in cases() if expected != "-"
    ]


def test_each_line_has_one_object_in_its_order() -> None:
    lines = [line for _, block in cases() for line in block]
    assert [told["line"] for told in classified(lines)] == lines


def test_equal_lines_are_events_of_their_own_in_a_file() -> None:
    line = "NVRM: Xid (PCI:0000:5e:00): 31, pid=1, name=x, MMU Fault"
    assert len(events([line] * 5)) == 5


def test_victims_of_memory_are_told_apart() -> None:
    assert len(events(["Killed process 1 (a) total-vm:1kB", "Killed process 2 (b) total-vm:1kB"])) == 2


def test_the_head_of_a_hardware_error_begins_a_new_one() -> None:
    head = "{1}[Hardware Error]: Hardware error from APEI Generic Hardware Error Source: 1"
    assert len(events([head, "{1}[Hardware Error]: event severity: info", head])) == 2


OOPS = "BUG: unable to handle page fault for address: ffffb0000badf00d"


@pytest.mark.parametrize(
    "heads",
    [
        ["Oops: 0000 [#1] SMP", "general protection fault: 0000 [#2] SMP"],
        ["[1.0] Oops: 0000 [#1] SMP", "[1.1] Oops: 0002 [#2] SMP"],
        ["BUG: Bad page state in process trainer  pfn:77", OOPS],
        ["kernel BUG at mm/rmap.c:1200!", "divide error: 0000 [#1] SMP"],
        [OOPS, "kernel BUG at mm/rmap.c:1200!"],
        ["[1.0] Kernel panic - not syncing: one", "[1.0] Kernel panic - not syncing: another"],
        [OOPS, "eth0: no word of it", "Kernel panic - not syncing: of something else"],
        ["trainer invoked oom-killer: gfp_mask=0x0, order=0", "eth0: no word of it", "Killed process 5 (loader)"],
        ["mce: [Hardware Error]: Machine check events logged", "mce: [Hardware Error]: Machine check events logged"],
        ["[Hardware Error]: Uncorrected error, CPU 3", "mce: [Hardware Error]: CPU 4: Machine Check: 0 Bank 5: be00"],
        ["[1.0] Kernel panic - not syncing: one", " nfs_wb_all+0x2c/0x1a0 [nfs]"],
    ],
)
def test_heads_of_two_reports_are_two_events(heads: list[str]) -> None:
    told = [event["line"] for event in events(heads)]
    assert told == [head for head in heads if "no word" not in head]


def test_the_driver_version_decides_which_unit_speaks() -> None:
    line = "NVRM: Xid (PCI:0009:01:00): 145, RLW_REMAP Nonfatal XC1 i0 Link 02 (0x00000004 0x00000040)"
    action = {driver: found.verdict.action for driver in ("570.1", "580.1", "") if (found := classify(line, driver))}
    # Before R575 this number is another unit's: nothing is known but what the line says.
    assert action == {"570.1": "WORKFLOW_NVLINK5_ERR", "580.1": "RESET_GPU", "": "RESET_GPU"}


LITERALS = st.sampled_from(sorted({rule.literal for rule in RULES}))


@settings(max_examples=300)
@given(
    st.lists(
        st.one_of(st.text(max_size=40), LITERALS, st.sampled_from(["[1.0] ", "NVRM: ", "\0", "\ud800", "0000:5e:00.0"]))
    )
)
def test_no_text_makes_the_parser_stumble(parts: list[str]) -> None:
    parser = KernelLogParser()
    for line in ("".join(parts), *parts):
        for finding in (*parser.feed(line, 1.0), *parser.due(99.0)):
            assert finding.kind in KINDS
            finding.text.encode()
