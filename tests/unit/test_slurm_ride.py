"""What a run inside of a Slurm allocation makes of its environment, its flags and its time."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from switchgear.access.pki import Pki
from switchgear.cli.run_options import Rendezvous as Meeting
from switchgear.cli.slurm import flags
from switchgear.cli.slurm.drain import REASON_LENGTH_MAX, command_of, reason_of
from switchgear.cli.slurm.meeting import certificates, meeting_from
from switchgear.cli.slurm.pace import Pace, stop_reason
from switchgear.cli.slurm.start import fill
from switchgear.cli.slurm.task import Task, is_silent, task_from
from switchgear.core.errors import Invalid
from switchgear.core.modes import Mode
from switchgear.slurm.commands import Commands

#: As seen of Slurm 22.05.8 in a task of `srun`, with what others set beside it.
STEP = {
    "SLURM_JOB_ID": "42",
    "SLURM_JOB_NAME": "Llama 3.sh",
    "SLURM_JOB_NODELIST": "gpu[07-09]",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[07-09]",
    "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
    "SLURM_PROCID": "1",
    "SLURMD_NODENAME": "gpu08",
    "SLURM_GPUS_ON_NODE": "4",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3",
}


def task(**changes: str) -> Task:
    found = task_from({**STEP, **changes}, "login-1")
    assert found is not None
    return found


def without(*names: str) -> dict[str, str]:
    return {name: value for name, value in STEP.items() if name not in names}


def test_a_task_of_srun_knows_its_node_the_others_and_its_gpus() -> None:
    found = task(SLURM_RESTART_COUNT="2", SLURM_JOB_END_TIME="1800000000")
    assert (found.node, found.nodes, found.node_rank) == ("gpu08", ("gpu07", "gpu08", "gpu09"), 1)
    assert (found.gpus, found.restarts, found.end_unix_s, found.job_nodes) == (4, 2, 1.8e9, 3)


def test_the_name_of_a_run_stays_through_requeues_and_its_id_and_port_do_not() -> None:
    first, again, other_step = task(), task(SLURM_RESTART_COUNT="1"), task(SLURM_STEP_ID="1")
    assert (first.name, again.name, other_step.name) == ("llama-3.sh-42", "llama-3.sh-42", "llama-3.sh-42.1")
    assert first.run_id != again.run_id
    assert len({first.port, again.port, other_step.port, task(SLURM_JOB_ID="43").port}) == 4


def test_a_step_on_some_nodes_of_the_job_has_those_alone() -> None:
    found = task(SLURM_STEP_NODELIST="gpu[08-09]", SLURM_STEP_TASKS_PER_NODE="1(x2)")
    assert (found.nodes, found.node_rank, found.job_nodes) == (("gpu08", "gpu09"), 0, 3)


def test_outside_of_an_allocation_there_is_no_task() -> None:
    assert task_from({}, "gpu08") is None


def test_a_process_that_nobody_of_slurm_has_started_is_known_by_its_host() -> None:
    environment = without("SLURMD_NODENAME", "SLURM_STEP_ID")
    found = task_from(environment, "gpu09.cluster.example")
    assert found is not None
    assert (found.node, found.step_id) == ("gpu09", None)
    with pytest.raises(Invalid, match=r"on none of its nodes .* `srun --ntasks-per-node=1 switchgear run"):
        task_from(environment, "login-1")


@pytest.mark.parametrize("tasks", ["8(x3)", "1,2(x2)", "2"])
def test_several_tasks_on_a_node_are_refused_with_what_to_write(tasks: str) -> None:
    with pytest.raises(Invalid, match="srun --ntasks-per-node=1 switchgear run --nproc-per-node K"):
        task(SLURM_STEP_TASKS_PER_NODE=tasks)


def test_what_all_tasks_are_refused_for_is_said_by_the_first_one() -> None:
    assert [is_silent({"SLURM_PROCID": number}) for number in "01"] == [False, True]
    assert not is_silent({})


@pytest.mark.parametrize(
    ("changes", "gpus"),
    [
        ({"SLURM_GPUS_ON_NODE": "2"}, 2),
        ({"SLURM_GPUS_ON_NODE": "", "SLURM_STEP_GPUS": "0,1,2"}, 4),
        ({"SLURM_GPUS_ON_NODE": ""}, 0),  # all that the machine has are visible, and none is the job's
    ],
)
def test_gpus_are_those_that_slurm_has_given(changes: Mapping[str, str], gpus: int) -> None:
    assert task(**changes).gpus == gpus


def arguments(**given: str) -> argparse.Namespace:
    return argparse.Namespace(**{"nnodes": None, "nproc_per_node": None, "name": None, **given})


def test_slurm_says_what_no_flag_says() -> None:
    args = arguments()
    fill(args, task())
    assert (args.nnodes, args.nproc_per_node, args.name) == ("3", "4", "llama-3.sh-42")
    args = arguments(nnodes="2", nproc_per_node="1", name="mine")
    fill(args, task())
    assert (args.nnodes, args.nproc_per_node, args.name) == ("2", "1", "mine")


def test_more_nodes_than_the_step_has_are_refused() -> None:
    with pytest.raises(Invalid, match="has 3 nodes; ask Slurm for more"):
        fill(arguments(nnodes="2:4"), task())


async def test_nodes_meet_at_the_first_one_of_the_step_and_those_beyond_are_spares() -> None:
    """No Slurm is asked where the name of the node can be looked up."""
    nodes = {"SLURM_STEP_NODELIST": "localhost,gpu08,gpu09"}
    first, last = (task(SLURMD_NODENAME=node, **nodes) for node in ("localhost", "gpu09"))
    keeps, waits = [await meeting_from(each, None, 2, Commands()) for each in (first, last)]
    assert (keeps.host, keeps.port, keeps.run_id) == (waits.host, waits.port, waits.run_id)
    assert [(each.node, each.node_rank, each.hosts) for each in (keeps, waits)] == [
        ("localhost", 0, True),
        ("gpu09", None, False),
    ]


def test_the_first_node_makes_certificates_for_this_run_that_the_others_find(tmp_path: Path) -> None:
    keeps = Meeting(host="gpu07", port=20_042, hosts=True)
    made = certificates(keeps, tmp_path / "pki", {})
    assert certificates(replace(keeps, hosts=False), tmp_path / "pki", {}) == made
    assert Pki(tmp_path / "pki").hosts()[0] == "gpu07"
    assert (tmp_path / "pki").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("host", "environment"), [("127.0.0.1", {}), ("gpu07", {"SWITCHGEAR_TLS_CA": "/etc/switchgear/ca.crt"})]
)
def test_no_certificates_are_made_where_none_are_needed(
    tmp_path: Path, host: str, environment: Mapping[str, str]
) -> None:
    assert certificates(Meeting(host=host, port=20_042, hosts=True), tmp_path / "pki", environment) == {}
    assert not (tmp_path / "pki").exists()


def options(environment: Mapping[str, str] | None = None, **given: str) -> flags.RideOptions:
    args = argparse.Namespace(**{"drain": None, "max_requeues": None, "chain": None, **given})
    return flags.options_from(args, environment or {})


def test_a_node_is_not_drained_until_somebody_says_act() -> None:
    variable = {flags.MODE_VARIABLE: "ACT"}
    assert [options().drain, options(variable).drain, options(variable, drain="off").drain] == [
        Mode.ADVISE,
        Mode.ACT,
        Mode.OBSERVE,
    ]


def test_a_chain_may_be_requeued_as_often_as_it_has_runs() -> None:
    assert (options().restarts_max, options().chains) == (5, False)
    assert (options(chain="20").restarts_max, options(chain="20").chains) == (19, True)
    assert options(max_requeues="0").restarts_max == 0


@pytest.mark.parametrize("given", [{"drain": "yes"}, {"chain": "1"}, {"chain": "x"}, {"max_requeues": "-1"}])
def test_flags_that_make_no_sense_are_told_by_name(given: dict[str, str]) -> None:
    with pytest.raises(Invalid, match=f"--{next(iter(given)).replace('_', '-')}"):
        options(None, **given)


def reason(pace: Pace, now_s: float, end_s: float = 1000) -> str:
    return stop_reason(pace, now_s, end_s, grace_s=20)


def test_a_run_stops_after_the_last_checkpoint_that_fits() -> None:
    pace = Pace(0).committed(100).committed(210)  # 110 s, with a tenth more 121 s
    assert reason(pace.committed(320), 320) == ""
    late = pace.committed(860)
    assert "before the next checkpoint" in reason(Pace(860, (110,)), 870, end_s=985)
    assert reason(late, 870, end_s=2000) == ""


def test_a_checkpoint_that_is_late_is_waited_for_until_the_end_is_near() -> None:
    pace = Pace(700, (100,))
    assert reason(pace, 820) == ""
    assert reason(pace, 971) == "the time limit is over in 29 s"


def test_a_run_of_which_no_checkpoint_is_known_goes_on_until_the_end_is_near() -> None:
    assert [bool(reason(Pace(0), now_s)) for now_s in (100, 969, 971, 1200)] == [False, False, True, True]


def test_a_new_attempt_has_the_pace_of_the_one_before() -> None:
    pace = Pace(0).committed(300).began(600)
    assert pace.next_s == pytest.approx(930)
    assert "before the next checkpoint" in reason(pace, 601, end_s=900)


def test_an_announced_end_waits_for_the_next_checkpoint() -> None:
    pace = Pace(100, (50,), noticed_s=120)
    for end_s in (1000, math.inf):
        assert reason(pace, 130, end_s) == ""
        assert "SIGUSR1" in reason(pace.committed(151), 151, end_s)


def test_the_pace_is_that_of_the_slowest_of_the_last_few() -> None:
    pace = Pace(0)
    for at_s in (100, 110, 120, 130, 140, 150):
        pace = pace.committed(at_s)
    assert pace.next_s == pytest.approx(161)


def test_the_reason_of_a_drain_is_one_line_that_a_shell_can_be_given() -> None:
    why = "rank 3's GPU fell off\nthe bus " + "x" * 500
    assert len(reason_of(why)) <= REASON_LENGTH_MAX
    assert reason_of(why).startswith("switchgear: rank 3's GPU fell off")
    assert "\n" not in command_of("n2", why)
    assert (
        command_of("n2", "it's lost")
        == """scontrol update nodename=n2 state=drain reason='switchgear: it'"'"'s lost'"""
    )
