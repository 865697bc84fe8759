"""The catalogs of faults: whole, consistent, and told in the documentation as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from switchgear.core.catalog import (
    AGENT_KINDS,
    COLLECTOR_KINDS,
    DRIVER_KINDS,
    KINDS,
    NODE_KINDS,
    NVLINK5,
    Severity,
    Verdict,
    decode_nvlink5,
    judge_xid,
    kind,
    overrides,
    recovery_action,
    sxid,
    xid,
)
from switchgear.core.catalog.table import rows

DOCS = Path(__file__).parents[2] / "docs" / "kernel-log.md"


def test_the_documentation_lists_each_kind_as_it_is() -> None:
    told = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    kinds = [found for name in KINDS if (found := kind(name))]
    assert told == [
        f"| `{known.name}` | {known.severity.value} | {known.action or 'by the code'} | {known.meaning} |"
        for known in kinds
    ]


def test_the_documentation_lists_each_override_with_its_reason() -> None:
    text = DOCS.read_text()
    for override in overrides():
        verdict = override.verdict
        assert f"| {override.code} | {verdict.action} | {verdict.severity.value} | {override.why} |\n" in text


def test_a_kind_is_in_one_table_only() -> None:
    names = [name for table in (KINDS, NODE_KINDS, DRIVER_KINDS, AGENT_KINDS, COLLECTOR_KINDS) for name in table]
    assert len(names) == len(set(names))


def test_the_tables_are_whole() -> None:
    assert [int(row["code"]) for row in rows("xid")] == list(range(1, 173))
    assert len(rows("nvlink5")) == 95
    assert len(rows("sxid")) == 93
    assert {int(row["code"]) for row in rows("nvlink5")} == set(NVLINK5)


def test_every_code_has_a_verdict_and_none_is_dropped() -> None:
    for code in (0, *range(1, 200), 4711, 2**31 - 1):
        assert judge_xid(code).action
    assert judge_xid(4711) == Verdict("CONTACT_SUPPORT", Severity.WARNING)
    assert xid(4711) is None


def test_an_override_says_why() -> None:
    assert all(len(override.why.split()) > 5 for override in overrides())


@pytest.mark.parametrize("number", range(8))
def test_recovery_actions_are_those_of_nvml(number: int) -> None:
    asked = recovery_action(number)
    assert asked is not None
    assert asked == judge_xid(154, f"GPU recovery action changed from 0x0 (None) to {number:#x} (words)")


def test_a_recovery_action_that_is_not_known_is_none() -> None:
    assert recovery_action(8) is None
    assert recovery_action(-1) is None


@pytest.mark.parametrize(
    ("code", "unit", "intrinfo", "status", "driver", "action"),
    [
        # The layout of R570 and before: unit in bits 9 to 5.
        (144, "SAW_MVB", 0b0000100001, 0x2, "570.86", "RESET_GPU"),
        (144, "SAW_MVB", 0b0000100001, 0x4, "570.86", "IGNORE"),
        # From R575 on: in bits 6 to 0.
        (145, "RLW_REMAP", 4, 0x40, "575.10", "RESET_GPU"),
        # A link that went down: the subtype in bits 25 to 20 says why.
        (149, "NETIR_LINK_EVT", (0b000010 << 20) | 0b0111000110, 0, "", "RESET_GPU"),
        (149, "NETIR_LINK_EVT", (0b100110 << 20) | 0b0111000110, 0, "", "IGNORE"),
        # Bit 10, or from R575 on bit 7, makes it worse.
        (145, "RLW_RXPIPE", 0b00011000010, 0x1, "560.1", "IGNORE"),
        (145, "RLW_RXPIPE", 0b10011000010, 0x1, "560.1", "RESET_GPU"),
        (145, "RLW_RXPIPE", 0b00000110, 0x1, "580.1", "IGNORE"),
        (145, "RLW_RXPIPE", 0b10000110, 0x1, "580.1", "RESET_GPU"),
        # Several errors at once: the worst counts.
        (145, "RLW_TAGSTATE", 0b0100000010, 0x3, "", "RESET_GPU"),
        (150, "MSE_WATCHDOG", 0, 0, "", "RESET_GPU"),
    ],
)
def test_nvlink5_is_decoded(code: int, unit: str, intrinfo: int, status: int, driver: str, action: str) -> None:
    decoded = decode_nvlink5(code, unit, intrinfo, status, driver)
    assert decoded is not None
    assert decoded.action == action


def test_what_the_sheet_does_not_have_is_not_guessed() -> None:
    assert decode_nvlink5(145, "RLW_REMAP", 4, 0x40, "570.1") is None  # another unit's number there
    assert decode_nvlink5(145, "NEW_UNIT", 4, 0x40) is None
    assert decode_nvlink5(145, "RLW_REMAP", 0x82, 0x400) is None
    assert decode_nvlink5(13, "RLW_REMAP", 4, 0x40) is None


def test_an_sxid_is_fatal_never_always_or_as_the_line_says() -> None:
    assert [sxid(code).fatal for code in (11012, 23001, 12001, 4711)] == [False, True, None, None]
    assert sxid(4711).action == "CONTACT_SUPPORT"


def test_nothing_is_read_before_it_is_asked_for() -> None:
    """The agent and all commands import the catalog."""
    check = "import sys, switchgear.core.catalog.xids as x; sys.exit(x._xids.cache_info().currsize)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
