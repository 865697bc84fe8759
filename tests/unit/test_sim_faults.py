"""The words of faults, and what a history of them means."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from switchgear.core.errors import Invalid
from switchgear.sim.faults import FOREVER_S, SYNTAX, FaultKind, History, parse_fault, parse_script


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("gpu 3 xid 79", FaultKind.XID, {"target": 3, "code": 79, "for_s": FOREVER_S}),
        ("gpu 0 xid 149 link 12", FaultKind.XID, {"code": 149, "link": 12}),
        ("gpu 1 ecc-storm rate 400 for 30s", FaultKind.ECC_STORM, {"rate": 400.0, "for_s": 30.0}),
        ("gpu 1 thermal-throttle for 5m", FaultKind.THERMAL_THROTTLE, {"for_s": 300.0}),
        ("gpu 2 nvlink-errors link 4 rate 50", FaultKind.NVLINK_ERRORS, {"link": 4, "rate": 50.0}),
        ("gpu 2 nvlink-errors rate 50 link 4", FaultKind.NVLINK_ERRORS, {"link": 4, "rate": 50.0}),
        ("gpu 5 slow clock 600 for 1h", FaultKind.SLOW, {"clock_mhz": 600, "for_s": 3600.0}),
        ("gpu 6 hang for 1.5s", FaultKind.HANG, {"for_s": 1.5}),
        ("  gpu 7   vanish ", FaultKind.VANISH, {"target": 7}),
        ("gpu 7 mend", FaultKind.MEND, {"target": 7}),
        ("nic 0 link-flap times 3", FaultKind.LINK_FLAP, {"times": 3, "for_s": 2.0}),
        ("nic 1 link-flap times 2 for 500ms", FaultKind.LINK_FLAP, {"times": 2, "for_s": 0.5}),
        ("nvswitch 1 sxid 20034 fatal link 12", FaultKind.SXID, {"code": 20034, "fatal": True, "link": 12}),
    ],
)
def test_each_fault_has_words(text: str, kind: FaultKind, expected: dict[str, object]) -> None:
    fault = parse_fault(text)
    assert fault.kind is kind
    assert {name: getattr(fault, name) for name in expected} == expected


def test_the_help_shows_every_fault() -> None:
    assert [kind for kind in FaultKind if f" {kind.value}" not in SYNTAX] == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "begins with gpu, nic, nvswitch, not with nothing: gpu 3 xid 79"),
        ("vanish", "not with vanish"),
        ("gpu", "not a number"),
        ("gpu 3", "nothing is no fault"),
        ("gpu 3 explode", "explode is no fault; use one of xid, "),
        ("gpu x xid 79", "index x is not a number from 0"),
        ("gpu -1 xid 79", "index -1"),
        ("gpu 3 xid", "XID nothing is not a number from 1"),
        ("gpu 3 xid 0", "1 to 9999"),
        ("gpu 3 xid 79 for 3s", "`for` does not belong behind xid"),
        ("gpu 3 ecc-storm", "needs `rate VALUE`"),
        ("gpu 3 ecc-storm rate", "rate nothing"),
        ("gpu 3 ecc-storm rate 3 rate 4", "`rate` does not belong"),
        ("gpu 3 hang for 3", "3 is not a time"),
        ("gpu 3 hang for 99999999999999999999999h", "not a time"),
        ("nic 3 xid 79", "a fault of a gpu"),
        ("gpu 3 link-flap times 3", "a fault of a nic"),
        ("gpu ٣ xid 79", "not a number"),
        ("gpu 3 xid " + "9" * 100_000, "not a number"),
    ],
)
def test_what_is_no_fault_is_refused_with_the_remedy(text: str, complaint: str) -> None:
    with pytest.raises(Invalid, match=complaint):
        parse_fault(text)


def test_a_script_is_in_order_of_time_and_tells_the_line_that_is_wrong() -> None:
    planned = parse_script("# begin\n\nat 1m gpu 0 xid 13\nat 500ms gpu 1 vanish # gone\n")
    assert [(item.at_s, item.fault.kind) for item in planned] == [(0.5, FaultKind.VANISH), (60.0, FaultKind.XID)]
    with pytest.raises(Invalid, match="line 2: a line is `at TIME FAULT`"):
        parse_script("at 1s gpu 0 vanish\ngpu 0 vanish\n")
    with pytest.raises(Invalid, match="line 1: 1 is not a time"):
        parse_script("at 1 gpu 0 vanish")
    with pytest.raises(Invalid, match="more than the 10000"):
        parse_script("at 1s gpu 0 vanish\n" * 10_001)


def history(*lines: str) -> History:
    return History(parse_script("\n".join(lines)))


def test_a_fault_holds_from_its_begin_to_its_end() -> None:
    faults = history("at 10s gpu 0 hang for 5s")
    assert [faults.hangs(at_s) for at_s in (9.9, 10, 14.9, 15)] == [False, True, True, False]


def test_mending_ends_what_began_before_it_and_nothing_that_comes_later() -> None:
    faults = history("at 1s gpu 0 xid 79", "at 10s gpu 0 mend", "at 20s gpu 0 vanish")
    assert [faults.lost(at_s) for at_s in (5, 15, 25)] == [True, False, True]


def test_events_are_counted_by_rate_time_and_link() -> None:
    faults = history("at 0s gpu 0 nvlink-errors link 1 rate 10 for 5s", "at 0s gpu 0 nvlink-errors link 2 rate 1")
    assert faults.count(FaultKind.NVLINK_ERRORS, 20) == 70
    assert faults.count(FaultKind.NVLINK_ERRORS, 20, link=2) == 20
    assert faults.count(FaultKind.ECC_STORM, 20) == 0


def test_the_script_in_the_documentation_is_one_and_shows_every_fault() -> None:
    text = (Path(__file__).parents[2] / "docs/simulation.md").read_text()
    (script,) = re.findall(r"```\n(# faults.txt.*?)```", text, re.DOTALL)
    assert {item.fault.kind for item in parse_script(script)} == set(FaultKind)
    assert [kind for kind in FaultKind if kind is not FaultKind.MEND and f"| `{kind.value}` |" not in text] == []


@given(st.text())
@example("gpu 1 xid \x00")
@example("nic 1 link-flap for for")
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    for parse in (parse_fault, parse_script):
        with contextlib.suppress(Invalid):
            parse(text)
