"""A node that looks free and that Slurm gives to others: who gives back what, and when the node is tried again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from slurm_looks import KEY, LAUNCHER, NOW_S, REF, SETTINGS, ended_job, slurm_job, slurm_node

from switchgear.scheduler.engines.slurm.fate import Kind, fate
from switchgear.scheduler.engines.slurm.holds import HOLD_S, Hold, holds
from switchgear.scheduler.engines.slurm.look import Look, look
from switchgear.scheduler.engines.slurm.plan import fates_of, plan
from switchgear.scheduler.engines.slurm.settings import PATIENCE_S
from switchgear.scheduler.engines.slurm.sight import observation
from switchgear.scheduler.model import Wanted
from switchgear.slurm.model import JobState, NodeFlag, NodeState, SlurmJob

OTHER = replace(KEY, node="nodes/n2")
WANTED = {"nodes/n1": Wanted((LAUNCHER,)), "nodes/n2": Wanted((LAUNCHER,))}
LONG_AGO_S = NOW_S - int(PATIENCE_S) - 1


def _waits(reason: str = "Resources", submit_s: int = LONG_AGO_S, **fields: Any) -> SlurmJob:
    """A launcher on n2 that is not started."""
    return slurm_job(2, JobState.PENDING, key=OTHER, reason=reason, submit_s=submit_s, **fields)


def _theirs(number: int, state: str = JobState.RUNNING, **fields: Any) -> SlurmJob:
    nodes = ("n2",) if state == JobState.RUNNING else ()
    return slurm_job(number, state, comment="", user="ann", nodes=nodes, **{"required_nodes": (), **fields})


RUNS = slurm_job(1)


def _look(*jobs: SlurmJob) -> Look:
    return look((slurm_node("n1"), slurm_node("n2")), jobs, SETTINGS)


def _kind(*jobs: SlurmJob) -> Kind:
    return fates_of(_look(*jobs), WANTED, {}, NOW_S)[OTHER].kind


def _held(*jobs: SlurmJob, before: dict[str, Hold] | None = None, now_s: float = NOW_S) -> dict[str, Hold]:
    seen = _look(*jobs)
    return holds(before or {}, seen, fates_of(seen, WANTED, {}, now_s), now_s)


@pytest.mark.parametrize("reason", ["Resources", "Priority", "None", "", "ReqNodeNotAvail"])
def test_a_node_that_others_got_first_is_waited_for_a_minute_while_others_of_the_job_hold_theirs(reason: str) -> None:
    assert _kind(RUNS, _waits(reason, LONG_AGO_S + 1)) is Kind.ALIVE
    assert _kind(RUNS, _waits(reason)) is Kind.WITHHELD
    # Nobody here cancels it before the scheduler has said that it is not wanted any more.
    assert plan(_look(RUNS, _waits(reason)), WANTED, {}, "c1", NOW_S).cancel == ()


def test_what_only_waits_for_its_own_end_or_start_is_not_withheld() -> None:
    for reason in ("Dependency", "BeginTime", "Cleaning", "Prolog"):
        assert _kind(RUNS, _waits(reason)) is Kind.ALIVE


def test_the_reason_is_told_in_slurms_word() -> None:
    def told(**waits: Any) -> str:
        seen = _look(RUNS, _waits(**waits))
        observed = observation(seen, fates_of(seen, WANTED, {}, NOW_S), {}, "c1", away="")
        ((ref, why),) = dict(observed.nodes)["nodes/n2"].withheld
        assert ref == REF
        return why

    assert told() == "Slurm holds it for another job (Resources)"
    # As Slurm 22.05.8 says of a node that a foreign job has.
    busy = told(reason="ReqNodeNotAvail", reason_detail="ReqNodeNotAvail, UnavailableNodes:n2")
    assert busy == "Slurm holds it for another job (ReqNodeNotAvail)"
    detail = "ReqNodeNotAvail, Reserved for maintenance"
    assert told(reason="ReqNodeNotAvail", reason_detail=detail) == f"Slurm does not give it now ({detail})"


def test_a_launcher_that_has_run_there_is_lost_instead_since_what_is_left_of_it_must_be_ended() -> None:
    ran = ended_job(1, JobState.TIMEOUT, key=OTHER)
    assert fate([ran, _waits()], slurm_node("n2"), NOW_S).kind is Kind.LOST
    double = ended_job(1, JobState.CANCELLED, key=OTHER, nodes=())
    refused = ended_job(1, JobState.CANCELLED, key=OTHER, exit_code=0)
    for before in (double, refused):
        assert fate([before, _waits()], slurm_node("n2"), NOW_S).kind is Kind.WITHHELD


def test_a_job_that_holds_nothing_keeps_its_place_in_the_queue_of_slurm_while_others_queue_too() -> None:
    """Whoever goes back loses the place, and comes behind all of them the next time."""
    first = slurm_job(1, JobState.PENDING, reason="Priority", submit_s=LONG_AGO_S)
    rival = _theirs(7, JobState.PENDING, reason="Priority")
    assert _kind(first, _waits(), rival) is Kind.ALIVE
    assert _kind(first, _waits()) is Kind.WITHHELD
    assert _kind(RUNS, _waits(), rival) is Kind.WITHHELD
    assert _kind(first, _waits("ReqNodeNotAvail"), rival) is Kind.ALIVE
    reserved = _waits("ReqNodeNotAvail", reason_detail="ReqNodeNotAvail, Reserved for maintenance")
    assert _kind(first, reserved, rival) is Kind.WITHHELD
    drained = look(
        (slurm_node("n1"), slurm_node("n2", NodeState.IDLE, NodeFlag.DRAIN)), (first, _waits(), rival), SETTINGS
    )
    assert fates_of(drained, WANTED, {}, NOW_S)[OTHER].kind is Kind.WITHHELD


@pytest.mark.parametrize(
    "other",
    [
        {"partition": "cpu"},
        {"excluded_nodes": ("n2",)},
        {"required_nodes": ("n1",)},
        {"reason": "JobHeldUser"},
    ],
    ids=["another partition", "not that node", "another node", "held"],
)
def test_only_who_may_get_the_node_is_a_rival_for_it(other: dict[str, Any]) -> None:
    first = slurm_job(1, JobState.PENDING, submit_s=LONG_AGO_S)
    assert _kind(first, _waits(), _theirs(7, JobState.PENDING, **{"reason": "Priority", **other})) is Kind.WITHHELD


def test_a_withheld_node_takes_nothing_until_what_it_was_for_is_gone() -> None:
    held = _held(RUNS, _waits(), _theirs(7))
    assert held == {"nodes/n2": Hold("Slurm holds it for another job (Resources)", NOW_S, frozenset({7}))}
    observed = observation(_look(_theirs(7)), {}, {}, "c1", away="", held=held)
    assert dict(observed.nodes)["nodes/n2"].obstacle == "withheld: Slurm holds it for another job (Resources)"
    assert dict(observed.nodes)["nodes/n1"].obstacle == ""
    assert _held(_theirs(7), before=held) == held
    assert _held(before=held) == {}
    # Its place is taken by the next of them.
    assert _held(_theirs(8), before=held) == {}
    assert _held(_theirs(8, JobState.PENDING, reason="Resources"), before=held) == held


def test_a_withheld_node_is_tried_again_after_a_while_whatever_is_seen() -> None:
    held = _held(RUNS, _waits(), _theirs(7))
    assert _held(_theirs(7), before=held, now_s=NOW_S + HOLD_S - 1) == held
    assert _held(_theirs(7), before=held, now_s=NOW_S + HOLD_S) == {}
    # Also where jobs of others are not for us to see, or the node is reserved from tomorrow on.
    unseen = _held(RUNS, _waits("Priority"))
    assert _held(before=unseen, now_s=NOW_S + HOLD_S - 1) == unseen
    assert _held(before=unseen, now_s=NOW_S + HOLD_S) == {}
