"""docs/goodput.md has the buckets that there are, in their order, and so has the contract."""

from __future__ import annotations

import re
from pathlib import Path

from switchgear.recovery.ledger import COSTS_MAX, SLOW, STEPS_LEARNED_MIN, Bucket

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs/goodput.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)


def test_the_documented_buckets_are_those_of_the_ledger() -> None:
    assert ROW.findall(DOCS) == list(Bucket)


def test_the_contract_lists_the_buckets_in_their_order() -> None:
    contract = (ROOT / "proto/switchgear/v1/recovery_service.proto").read_text()
    assert ", ".join(Bucket) in contract


def test_the_documented_limits_are_those_of_the_ledger() -> None:
    for said in (
        f"more than {SLOW} times the median",
        f"before {STEPS_LEARNED_MIN} steps",
        f"keeps\n  {COSTS_MAX} pairs",
    ):
        assert said in DOCS
