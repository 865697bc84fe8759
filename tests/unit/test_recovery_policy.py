"""The decision table, row by row, and that the documentation shows the same one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from switchgear.recovery import model as m
from switchgear.recovery.hang import BUSY_S_MIN, BUSY_STEPS, HANG_S_MIN, HANG_STEPS, PATIENCE
from switchgear.recovery.policy import FAILURES_MAX, REFILL_NS, Case, decide, restarts_refilled
from switchgear.recovery.table import (
    EVERY,
    INFRASTRUCTURE,
    LEMON_FAULTS,
    LEMON_S,
    NO_SPARE,
    OFTEN_MAX,
    OFTEN_S,
    OWN,
    TABLE,
    When,
)

DOCS = Path(__file__).parents[2] / "docs" / "recovery.md"
SPEC = m.Spec(nnodes=2, nproc_per_node=2, max_restarts=3, checkpoint_directory="")
KILLED = m.Failure(m.Fault.RANK_KILLED, "SIGKILL", 10, progressed=True, made_steps=True, node="nodes/a", rank=0)
RAISED = replace(KILLED, fault=m.Fault.RANK_EXCEPTION, signature="ValueError: bad")


def decision(*failures: m.Failure, spec: m.Spec = SPEC, **case: Any) -> m.Decision:
    return decide(Case(spec, failures, **case))[0]


def each_s(seconds: float, failure: m.Failure, count: int) -> list[m.Failure]:
    return [replace(failure, time_ns=round(number * seconds * 1e9)) for number in range(count)]


@pytest.mark.parametrize("fault", m.Fault)
def test_every_fault_has_a_row_for_all_other_cases(fault: m.Fault) -> None:
    assert decision(replace(KILLED, fault=fault, signature=fault)) is m.Decision.RESTART_IN_PLACE
    assert [row.when for row in TABLE if fault in row.faults][-1] is When.ALWAYS


def test_faults_of_machines_do_not_use_the_budget_of_the_job() -> None:
    assert decision(KILLED, restarts_used=3) is m.Decision.RESTART_IN_PLACE
    assert decision(RAISED, restarts_used=2) is m.Decision.RESTART_IN_PLACE
    assert decision(RAISED, restarts_used=3) is m.Decision.STOP
    assert INFRASTRUCTURE | OWN == EVERY


def test_restarts_switched_off_hold_for_every_fault() -> None:
    assert decision(KILLED, spec=replace(SPEC, max_restarts=0)) is m.Decision.STOP


def test_the_same_error_twice_stops_and_another_error_or_a_new_step_in_between_does_not() -> None:
    again = replace(RAISED, progressed=False)
    assert decision(RAISED, again) is m.Decision.STOP
    assert decision(RAISED, RAISED) is m.Decision.RESTART_IN_PLACE
    assert decision(RAISED, replace(again, step=11)) is m.Decision.RESTART_IN_PLACE
    assert decision(RAISED, replace(again, signature="KeyError: 'x'")) is m.Decision.RESTART_IN_PLACE


def test_an_error_at_a_step_without_a_number_is_the_same_only_after_as_many_steps_of_the_attempt() -> None:
    again = replace(RAISED, progressed=False, step=None, count=4)
    assert decision(again, again) is m.Decision.STOP
    assert decision(replace(again, count=5), again) is m.Decision.RESTART_IN_PLACE
    assert decision(replace(again, signature="KeyError: 'x'"), again) is m.Decision.RESTART_IN_PLACE
    unknown = replace(again, count=0)
    assert decision(unknown, unknown) is m.Decision.RESTART_IN_PLACE
    never = replace(unknown, made_steps=False)
    assert decision(never, never) is m.Decision.STOP
    hung = replace(again, fault=m.Fault.RANK_HUNG)
    assert decision(hung, hung) is m.Decision.REPLACE_NODE
    assert decision(replace(hung, count=5), hung) is m.Decision.RESTART_IN_PLACE


@pytest.mark.parametrize("fault", m.Fault)
def test_three_attempts_without_a_new_step_stop_whatever_the_cause(fault: m.Fault) -> None:
    stuck = [replace(KILLED, fault=fault, signature=str(n), step=n, rank=n, progressed=False) for n in range(3)]
    assert decision(*stuck[1:]) is m.Decision.RESTART_IN_PLACE
    assert decision(*stuck) is m.Decision.STOP
    assert decision(KILLED, *stuck[1:]) is m.Decision.RESTART_IN_PLACE


@pytest.mark.parametrize("fault", [m.Fault.RANK_CRASHED, m.Fault.RANK_HUNG])
def test_a_checkpoint_that_two_attempts_did_not_survive_is_walked_past_when_an_older_one_is_known(
    fault: m.Fault,
) -> None:
    crash = m.Failure(fault, "SIGSEGV", None, progressed=False, resume_path="/c/20.pt")
    back = [crash, crash]
    assert decision(*back, older_checkpoint=True) is m.Decision.ROLL_BACK
    assert decision(*back) is not m.Decision.ROLL_BACK
    assert decision(crash, older_checkpoint=True) is m.Decision.RESTART_IN_PLACE
    for other in (
        replace(crash, resume_path="/c/10.pt"),
        replace(crash, made_steps=True),
        replace(crash, resume_path=""),
    ):
        assert decision(other, crash, older_checkpoint=True) is not m.Decision.ROLL_BACK


def test_a_roll_back_for_the_jobs_own_crash_is_a_restart_of_its_budget_and_an_exception_is_never_rolled_back() -> None:
    crash = m.Failure(m.Fault.RANK_CRASHED, "SIGSEGV", None, progressed=False, resume_path="/c/20.pt")
    assert decision(crash, crash, older_checkpoint=True, restarts_used=3) is m.Decision.STOP
    raised = replace(crash, fault=m.Fault.RANK_EXCEPTION, signature="ValueError: NaN")
    assert decision(raised, raised, older_checkpoint=True) is m.Decision.STOP


def test_a_job_with_a_fault_each_six_seconds_is_given_up_and_one_with_eight_a_minute_is_not() -> None:
    spec = replace(SPEC, nnodes=1)
    at_random = each_s(OFTEN_S / OFTEN_MAX - 0.1, KILLED, OFTEN_MAX)
    assert decision(*at_random[:-1], spec=spec) is m.Decision.RESTART_IN_PLACE
    assert decision(*at_random, spec=spec) is m.Decision.STOP
    assert decision(*each_s(60 / 8, KILLED, OFTEN_MAX), spec=spec) is m.Decision.RESTART_IN_PLACE
    assert FAILURES_MAX >= OFTEN_MAX


def test_a_node_with_fatal_evidence_is_replaced_or_ends_a_job_that_can_have_no_other() -> None:
    assert decision(KILLED, bad_nodes=["nodes/b"]) is m.Decision.REPLACE_NODE
    assert decision(KILLED, bad_nodes=["nodes/b"], spec=replace(SPEC, replaceable=False)) is m.Decision.STOP


def test_a_hang_of_the_same_rank_at_the_same_step_leaves_the_node_and_any_other_stays() -> None:
    hung = replace(KILLED, fault=m.Fault.RANK_HUNG, signature="hung: 0", rank=0)
    again = replace(hung, progressed=False)
    assert decision(hung, again) is m.Decision.REPLACE_NODE
    assert decision(hung, again, spec=replace(SPEC, replaceable=False)) is m.Decision.RESTART_IN_PLACE
    for other in (replace(again, rank=1), replace(again, step=11), replace(again, node="nodes/b")):
        assert decision(hung, other) is m.Decision.RESTART_IN_PLACE
    doubted = replace(again, doubted_s=60)  # no longer than the last time
    assert decision(replace(hung, doubted_s=60), doubted) is m.Decision.RESTART_IN_PLACE
    assert decision(replace(hung, doubted_s=6), doubted) is m.Decision.REPLACE_NODE
    nobody = replace(hung, rank=None, node="")
    assert decision(nobody, nobody) is m.Decision.RESTART_IN_PLACE


def test_hangs_alone_end_a_job_only_once_no_longer_limit_is_left() -> None:
    hung = m.Failure(m.Fault.RANK_HUNG, "hung: all", 10, progressed=False, made_steps=True)
    doubted = [replace(hung, doubted_s=limit_s) for limit_s in (3, 30, 300, 3000)]
    assert decision(*doubted) is m.Decision.RESTART_IN_PLACE
    assert decision(*doubted, hung) is m.Decision.STOP
    assert decision(replace(KILLED, progressed=False), *doubted[:2]) is m.Decision.STOP


def test_a_node_that_alone_has_the_same_fault_five_times_in_an_hour_is_replaced() -> None:
    alike = each_s(LEMON_S / LEMON_FAULTS - 1, KILLED, LEMON_FAULTS)
    assert decision(*alike[:-1]) is m.Decision.RESTART_IN_PLACE
    assert decision(*alike) is m.Decision.REPLACE_NODE
    assert decision(*each_s(LEMON_S / (LEMON_FAULTS - 1), KILLED, LEMON_FAULTS)) is m.Decision.RESTART_IN_PLACE
    elsewhere = [replace(alike[0], node="nodes/b"), *alike[1:], alike[-1]]
    assert decision(*elsewhere) is m.Decision.RESTART_IN_PLACE
    for spec in (replace(SPEC, nnodes=1), replace(SPEC, replaceable=False)):
        assert decision(*alike, spec=spec) is m.Decision.RESTART_IN_PLACE


def test_restarts_come_back_with_each_hour_of_progress_and_are_not_saved_up() -> None:
    assert restarts_refilled(2, 0, REFILL_NS - 1) == (2, 0)
    assert restarts_refilled(2, 0, REFILL_NS + 5) == (1, REFILL_NS)
    assert restarts_refilled(2, 0, 5 * REFILL_NS) == (0, 5 * REFILL_NS)
    assert restarts_refilled(0, 0, 9 * REFILL_NS) == (0, 9 * REFILL_NS)
    assert restarts_refilled(1, 9 * REFILL_NS, 9 * REFILL_NS) == (1, 9 * REFILL_NS)


def _faults(faults: frozenset[m.Fault]) -> str:
    named = {EVERY: "any", OWN: "the job's own", INFRASTRUCTURE: "of the machines"}
    return named.get(faults) or ", ".join(f"`{fault}`" for fault in sorted(faults))


def test_the_documentation_shows_this_table() -> None:
    rows = [
        f"| {_faults(row.faults)} | {row.scope} | {row.when} | {row.decision.replace('_', ' ').lower()} | {row.source} |"
        for row in (*TABLE, NO_SPARE)
    ]
    shown = [line for line in DOCS.read_text().splitlines() if line.startswith("|")]
    assert [line for line in shown if line in rows] == rows, "docs/recovery.md should have:\n" + "\n".join(rows)


def _told(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def test_the_documentation_shows_how_long_phases_are_waited_for() -> None:
    steps = ((HANG_S_MIN, HANG_STEPS), (BUSY_S_MIN, BUSY_STEPS))
    rows = [f"| `{p.activity}` | {_told(p.seconds)} | {p.why} |" for p in PATIENCE]
    text = DOCS.read_text()
    assert all(f"max({least_s:.0f} s, {count:.0f} learned step times)" in text for least_s, count in steps)
    missing = [row for row in rows if row not in text.splitlines()]
    assert not missing, "docs/recovery.md should have:\n" + "\n".join(missing)
