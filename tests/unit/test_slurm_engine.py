"""What the engine makes of one look at Slurm: pure, one moment at a time."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from slurm_looks import KEY, LAUNCHER, NOW_S, REF, SETTINGS, SPEC, WANTED
from slurm_looks import ended_job as _ended
from slurm_looks import slurm_job as _job
from slurm_looks import slurm_node as _node

from switchgear.core.service import Endpoints
from switchgear.core.tls import NodeFiles
from switchgear.scheduler.engines.slurm import keys
from switchgear.scheduler.engines.slurm.fate import Kind, fate
from switchgear.scheduler.engines.slurm.look import Look, look
from switchgear.scheduler.engines.slurm.plan import (
    REFUSALS_MAX,
    SUBMISSIONS_MAX,
    Plan,
    Refusal,
    fates_of,
    opened_again,
    our_drains,
    plan,
)
from switchgear.scheduler.engines.slurm.script import EXIT_NO_FOLDER, FOLDERS_MAX, script, submission
from switchgear.scheduler.engines.slurm.settings import PATIENCE_S
from switchgear.scheduler.engines.slurm.sight import observation
from switchgear.scheduler.model import (
    Closure,
    ForeignJob,
    GpuRecord,
    Inventory,
    LauncherRef,
    NodeStatus,
    Observation,
    Wanted,
    WantedLauncher,
)
from switchgear.slurm.model import Gpus, JobFlag, JobState, NodeFlag, NodeState, SlurmJob, SlurmNode

#: A command that writes what it was given.
TELL = 'echo "${SLURM_JWT-no token}" "$0" "$@"; cat /dev/fd/3'


def _look(*jobs: SlurmJob, nodes: tuple[SlurmNode, ...] = (_node(),)) -> Look:
    return look(nodes, jobs, SETTINGS)


def _plan(*jobs: SlurmJob, wanted: Any = WANTED, **more: Any) -> Plan:
    return plan(_look(*jobs, **more), wanted, {}, "c1", NOW_S)


def _see(*jobs: SlurmJob, wanted: Any = WANTED, agents: Any = None, away: str = "", **more: Any) -> NodeStatus:
    seen = _look(*jobs, **more)
    observed = observation(seen, fates_of(seen, wanted, {}, NOW_S), agents or {}, "c1", away=away)
    return dict(observed.nodes)["nodes/n1"]


SUBMIT = Plan(submit=((KEY, LAUNCHER),))


def test_a_comment_names_the_launcher_and_nothing_that_only_looks_like_one_does() -> None:
    assert keys.key_of(keys.comment_of(KEY, "c1"), "c1") == KEY
    # `singleton` is by the names of a user's jobs, and one user may have two installations.
    assert keys.name_of(KEY, "c1") != keys.name_of(KEY, "c2")
    for other in (
        "",
        "switchgear:c1:llama:3:n1",
        "switchgear:c2:llama:3:n1:abc",
        "switchgear:c1:llama:x:n1:abc",
        "a job of mine",
    ):
        assert keys.key_of(other, "c1") is None


def test_a_comment_of_somebody_else_is_a_foreign_job_whatever_it_says() -> None:
    theirs = _job(7, user="eve")
    assert _look(theirs).foreign == (theirs,)
    assert _plan(theirs) == SUBMIT


def test_a_launcher_that_misses_is_submitted_once() -> None:
    assert _plan() == SUBMIT
    assert _plan(_job(1, JobState.PENDING)) == Plan()
    assert _plan(_job(1)) == Plan()


def test_of_a_launcher_that_was_submitted_twice_the_later_job_is_cancelled_unless_it_runs() -> None:
    assert _plan(_job(1), _job(2, JobState.PENDING)).cancel == (2,)
    assert _plan(_job(1, JobState.PENDING), _job(2, JobState.PENDING)).cancel == (2,)
    assert _plan(_job(1, JobState.PENDING), _job(2)).cancel == (1,)


def test_an_answer_that_was_lost_is_waited_for_before_it_is_asked_again() -> None:
    lost = {KEY: Refusal(0, "nobody knows", NOW_S + 5)}
    assert plan(_look(), WANTED, lost, "c1", NOW_S) == Plan()
    assert plan(_look(), WANTED, lost, "c1", NOW_S + 5) == SUBMIT


def test_launchers_that_are_not_wanted_any_more_are_cancelled_and_those_that_shall_finish_are_not() -> None:
    assert _plan(_job(1), wanted={}).cancel == (1,)
    assert _plan(_job(1), wanted={"nodes/n1": Wanted(leave=frozenset({REF}))}) == Plan()
    older = _job(1, key=replace(KEY, epoch=2))
    assert _plan(older) == Plan(SUBMIT.submit, (1,))
    # Of one that is ending, or has, nothing is left to cancel.
    assert _plan(_job(1, JobState.UNKNOWN, JobFlag.COMPLETING), wanted={}) == Plan()
    assert _plan(_ended(1, JobState.COMPLETED), wanted={}) == Plan()


def test_a_job_of_the_same_name_before_is_another_one() -> None:
    before = replace(KEY, created=0xAAA)
    assert _plan(_ended(1, JobState.CANCELLED, key=before)) == SUBMIT
    assert _plan(_job(1, key=before)) == Plan(SUBMIT.submit, (1,))


def test_nothing_new_starts_while_slurm_still_cleans_up_after_the_last() -> None:
    assert _plan(_job(1, JobState.UNKNOWN, JobFlag.COMPLETING)) == Plan()


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.TIMEOUT, JobState.PREEMPTED, JobState.OUT_OF_MEMORY])
def test_a_launcher_that_ended_by_itself_is_submitted_again_after_a_while(state: str) -> None:
    ended = [_ended(number, state, exit_signal=9) for number in range(1, 5)]
    assert _plan(*ended[:1]) == SUBMIT
    just_now = replace(ended[3], end_s=NOW_S - 3)
    assert _plan(*ended[:3], just_now) == Plan()
    assert _plan(*ended[:3], replace(just_now, end_s=NOW_S - 4)) == SUBMIT


def test_a_launcher_that_fails_at_once_three_times_cannot_be_started_there() -> None:
    failures = [_ended(n, JobState.FAILED, NOW_S - 85 + n, exit_code=EXIT_NO_FOLDER) for n in (1, 2, 3)]
    assert _see(*failures[:2]).unstartable == ()
    ((ref, why),) = _see(*failures).unstartable
    assert ref == REF
    assert "cannot make its folder" in why
    # It has run before: what is left of that must be seen to by whoever leads the job.
    ran = _ended(0, JobState.TIMEOUT, NOW_S - 95, start_s=NOW_S - 1000)
    status = _see(ran, *failures)
    assert (status.unstartable, [lost.ref for lost in status.lost]) == ((), [REF])


def test_a_job_that_waits_for_more_than_its_turn_has_a_minute() -> None:
    waits = _job(1, JobState.PENDING, reason="QOSMaxJobsPerUserLimit", submit_s=NOW_S - int(PATIENCE_S))
    assert _see(waits).waiting == ((REF, "Slurm job 1 waits: QOSMaxJobsPerUserLimit"),)
    status = _see(replace(waits, submit_s=NOW_S - int(PATIENCE_S) - 1))
    assert status.unstartable == ((REF, "Slurm job 1 waits: QOSMaxJobsPerUserLimit, for 61 s"),)
    for passing in ("Dependency", "BeginTime"):
        assert _see(replace(waits, reason=passing, submit_s=NOW_S - 10_000)).unstartable == ()


def test_a_refusal_that_repeats_makes_the_launcher_unstartable_there() -> None:
    refused = {KEY: Refusal(REFUSALS_MAX, "Slurm says: Invalid account", NOW_S)}
    found = fates_of(_look(), WANTED, refused, NOW_S)[KEY]
    assert (found.kind, found.why) == (Kind.UNSTARTABLE, "Slurm says: Invalid account")
    assert plan(_look(), WANTED, refused, "c1", NOW_S) == Plan()


@pytest.mark.parametrize(
    ("job", "node"),
    [
        (_ended(1, JobState.NODE_FAIL), _node()),
        (_ended(1, JobState.FAILED), _node("n1", NodeState.DOWN, NodeFlag.NOT_RESPONDING)),
        (_job(1, JobState.UNKNOWN, JobFlag.COMPLETING), _node("n1", NodeState.DOWN, NodeFlag.NOT_RESPONDING)),
    ],
    ids=["given up", "ended when the node went", "never seen to end"],
)
def test_a_seat_on_a_node_that_slurm_has_given_up_is_lost_and_nothing_is_submitted(
    job: SlurmJob, node: SlurmNode
) -> None:
    (lost,) = _see(job, nodes=(node,)).lost
    assert (lost.ref, lost.by_node) == (REF, True)
    assert _plan(job, nodes=(node,)) == Plan()


def test_a_node_that_is_away_without_a_job_of_ours_says_nothing_about_the_launcher() -> None:
    """Slurm forgets jobs after some minutes: the launcher may run there all the same."""
    status = _see(nodes=(_node("n1", NodeState.DOWN, NodeFlag.NOT_RESPONDING),))
    assert (status.silent, status.lost, status.unstartable) == (True, (), ())
    assert _plan(nodes=()) == Plan()


def test_somebody_who_cancels_the_slurm_job_of_a_launcher_is_heard() -> None:
    told = ((REF, "Slurm job 1 was cancelled there"),)
    # By a signal, by the launcher's own hand, and in the queue.
    for how in ({"exit_signal": 15}, {"exit_code": 143}, {"nodes": (), "exit_code": 0}):
        assert _see(_ended(1, JobState.CANCELLED, **how)).cancelled == told
    again = _ended(2, JobState.CANCELLED, nodes=(), submit_s=NOW_S - 60)
    assert _see(_ended(1, JobState.TIMEOUT, NOW_S - 60), again).cancelled


def test_a_double_that_we_cancelled_ourselves_is_nobodys_wish_whenever_the_other_ends() -> None:
    double = _ended(2, JobState.CANCELLED, nodes=(), submit_s=NOW_S - 99)
    assert _see(_job(1), double).cancelled == ()
    for end_s in (NOW_S - 70, NOW_S - 50, NOW_S - 5):
        assert _see(_ended(1, JobState.TIMEOUT, end_s), double).cancelled == ()
    # Of two in the queue the first one counts, and so does one that ran.
    first = _ended(1, JobState.CANCELLED, nodes=())
    assert _see(first, double).cancelled == ((REF, "Slurm job 1 was cancelled there"),)
    ran = _ended(3, JobState.CANCELLED, exit_signal=15, submit_s=NOW_S - 98)
    assert _see(first, ran).cancelled == ((REF, "Slurm job 3 was cancelled there"),)


def test_a_launcher_that_slurm_itself_cancelled_goes_elsewhere_and_its_job_is_not_cancelled() -> None:
    # As Slurm 22.05.8 ends a job that may not be requeued and whose prolog fails: at once, with exit code 0, and the node is drained.
    refused = _ended(1, JobState.CANCELLED, start_s=NOW_S - 50, exit_code=0)
    drained = _node("n1", NodeState.IDLE, NodeFlag.DRAIN, reason="Prolog error", reason_s=NOW_S - 49)
    for job in (refused, replace(refused, start_s=NOW_S - 200)):
        status = _see(job, nodes=(drained,))
        assert status.cancelled == ()
        assert status.unstartable == ((REF, "it ended, and the node is drained in Slurm: Prolog error"),)


@pytest.mark.parametrize(
    "how",
    [
        {"state": JobState.CANCELLED, "exit_code": 0},
        {"state": JobState.FAILED, "exit_signal": 53, "reason": "JobLaunchFailure"},
    ],
    ids=["a slurmd that cannot write", "no file for its output"],
)
def test_a_launcher_that_slurm_could_not_launch_is_tried_again_and_then_elsewhere(how: dict[str, Any]) -> None:
    """Seen of Slurm 22.05.8, which drains nothing then."""
    failures = [_ended(n, end_s=NOW_S - 85 + n, start_s=NOW_S - 85 + n, **how) for n in (1, 2, 3)]
    assert _plan(failures[0]) == SUBMIT
    status = _see(*failures)
    assert status.cancelled == ()
    ((ref, why),) = status.unstartable
    assert (ref, why.partition(";")[0]) == (REF, "Slurm job 3 was ended by Slurm before it began")


def test_states_that_a_newer_slurm_may_have_are_taken_for_alive() -> None:
    assert _plan(_job(1, "TELEPORTING", "SPARKLING")) == Plan()
    status = _see(nodes=(_node("n1", "SLEEPY", "HUMMING"),))
    assert (status.obstacle, status.silent, status.closed) == ("sleepy in Slurm", False, None)


def test_our_cordon_is_a_drain_that_is_undone_only_when_it_is_ours() -> None:
    closed = {"nodes/n1": Wanted(closed="GPU_LOST: xid 79")}
    assert _plan(wanted=closed).drain == (("nodes/n1", "switchgear: GPU_LOST: xid 79 [c1]"),)
    ours = _node("n1", NodeState.IDLE, NodeFlag.DRAIN, reason="switchgear: GPU_LOST: xid 79 [c1]", reason_user="ops")
    assert _plan(wanted=closed, nodes=(ours,)) == Plan()
    assert _see(wanted=closed, nodes=(ours,)).closed is None
    assert _plan(wanted={}, nodes=(ours,)).resume == ("nodes/n1",)
    for reason in ("bad fan", "switchgear run: GPU_LOST", "switchgear: GPU_LOST [c2]"):
        theirs = replace(ours, reason=reason, reason_user="root")
        assert _plan(wanted={}, nodes=(theirs,)) == Plan()
        assert _plan(wanted=closed, nodes=(theirs,)) == Plan()
        assert _see(nodes=(theirs,)).closed == Closure(f"drained in Slurm by root: {reason}", "slurm:root")


def test_a_node_that_somebody_opens_in_slurm_is_not_closed_again_behind_their_back() -> None:
    closed = {"nodes/n1": Wanted(closed="xid 79")}
    ours = _node("n1", NodeState.IDLE, NodeFlag.DRAIN, reason="switchgear: xid 79 [c1]")
    before, after = _look(nodes=(ours,)), _look()
    drained = our_drains(before, "c1")
    assert opened_again(drained, after, closed) == drained == {"nodes/n1"}
    assert opened_again((), after, closed) == opened_again(drained, after, {}) == frozenset()
    assert opened_again(drained, before, closed) == frozenset()
    assert plan(after, closed, {}, "c1", NOW_S, opened={"nodes/n1"}) == Plan()
    observed = observation(after, {}, {}, "c1", away="", opened={"nodes/n1"})
    assert dict(observed.nodes)["nodes/n1"].opened


def test_a_launcher_that_was_never_there_is_not_sent_to_a_drained_node() -> None:
    drained = _node("n1", NodeState.IDLE, NodeFlag.DRAIN, reason="bad fan")
    assert _plan(nodes=(drained,)) == Plan()
    assert _see(nodes=(drained,)).unstartable == ((REF, "the node is drained in Slurm: bad fan"),)


@pytest.mark.parametrize(
    ("node", "obstacle"),
    [
        (_node(), ""),
        (_node("n1", NodeState.IDLE, NodeFlag.PLANNED), "planned by Slurm for another job"),
        (_node("n1", NodeState.IDLE, NodeFlag.MAINTENANCE), "in maintenance by a reservation of Slurm"),
        (_node("n1", NodeState.ALLOCATED), "without a free CPU in Slurm"),
        (_node("n1", NodeState.IDLE, NodeFlag.NOT_RESPONDING), "not answering Slurm"),
    ],
)
def test_a_node_that_slurm_keeps_for_others_takes_nothing_of_ours(node: SlurmNode, obstacle: str) -> None:
    status = _see(nodes=(node,), wanted={})
    assert (status.obstacle, status.silent, status.closed) == (obstacle, False, None)


def test_while_slurm_is_away_nobody_is_judged() -> None:
    away = "out of sight: Slurm does not answer"
    status = _see(_job(1), nodes=(_node("n1", NodeState.DOWN, NodeFlag.NOT_RESPONDING),), away=away)
    assert (status.silent, status.obstacle, status.launchers) == (False, away, frozenset({REF}))


def test_foreign_jobs_hold_their_gpus_until_their_time_limit_also_those_that_we_may_not_see() -> None:
    theirs = _job(7, comment="", user="ann", gpus={"n1": Gpus({"h100": 3})}, start_s=NOW_S, end_s=NOW_S + 60)
    busy = _node("n1", NodeState.MIXED, gpus_used=Gpus({"h100": 6}))
    assert _see(_job(1), theirs, nodes=(busy,)).foreign == (
        ForeignJob("slurm/7", "slurm:ann", 3, NOW_S * 10**9, (NOW_S + 60) * 10**9),
        ForeignJob("slurm/hidden", "slurm:somebody", 1, 0),
    )


def test_an_agent_on_the_node_knows_more_than_slurm_as_long_as_both_count_the_same_gpus() -> None:
    own = tuple(GpuRecord(index, f"GPU-{index}", "H100 80GB", 80 << 30) for index in range(8))
    agent = NodeStatus(Inventory("n1", own, "1.0", "n1:9100", labels=(("topology/rack", "r1"),)), True, False)
    told = _see(agents={"nodes/n1": agent}, nodes=(_node("n1", features=("nvlink",)),)).inventory
    assert (told.gpus, told.agent_version, told.metrics_address) == (own, "1.0", "n1:9100")
    assert (told.address, told.cpu_milli, told.memory_mib) == ("10.0.0.1", 64_000, 1000)
    assert told.labels == (("slurm/nvlink", "yes"), ("topology/rack", "r1"))
    fewer = replace(agent, inventory=replace(agent.inventory, gpus=own[:4]), connected=False)
    status = _see(agents={"nodes/n1": fewer})
    assert [gpu.model for gpu in status.inventory.gpus] == ["h100"] * 8
    assert not status.connected
    assert _see(agents={"nodes/n1": replace(fewer, silent=True)}).connected


def test_only_the_nodes_of_the_partitions_that_are_ours_to_use_are_seen() -> None:
    nodes = (_node("n1"), _node("n2", partitions=("cpu",)), _node("GPU_3", state=NodeState.FUTURE))
    assert set(look(nodes, (), SETTINGS).nodes) == {"nodes/n1", "nodes/n2"}
    assert set(look(nodes, (), replace(SETTINGS, partitions=("gpu",))).nodes) == {"nodes/n1"}
    assert set(look([_node("GPU_3")], (), SETTINGS).nodes) == {"nodes/gpu-3"}


def test_a_round_submits_so_few_that_the_next_look_comes_soon() -> None:
    launchers = [WantedLauncher(LauncherRef(f"jobs/j{n}", 1), SPEC, (0, 1)) for n in range(SUBMISSIONS_MAX + 1)]
    assert len(_plan(wanted={"nodes/n1": Wanted(tuple(launchers))}).submit) == SUBMISSIONS_MAX


def test_a_submission_asks_for_the_node_and_as_large_a_share_of_it_as_of_its_gpus() -> None:
    asked = submission(LAUNCHER, KEY, _node(), SETTINGS)
    assert (asked.name, asked.comment, asked.nodes) == ("llama:n1:c1", "switchgear:c1:llama:3:n1:abc", ("n1",))
    assert (asked.gpus_per_node, asked.cpus_per_task, asked.memory_per_node_mib) == (2, 16, 250)
    assert (asked.dependency, asked.requeue, asked.partition) == ("singleton", False, "")
    whole = submission(replace(LAUNCHER, gpu_indices=tuple(range(8))), KEY, _node(), SETTINGS)
    assert (whole.cpus_per_task, whole.memory_per_node_mib) == (64, 0)
    wishes = replace(
        SPEC, cpu_milli=1500, memory_mib=77, account="ai", qos="high", partition="a,b", time_limit_seconds=90
    )
    tls = NodeFiles(Path("/etc/sg")).tls
    settings = replace(SETTINGS, partitions=("gpu", "big"), tls=tls, environment={"PATH": "/bin"})
    asked = submission(replace(LAUNCHER, spec=wishes), KEY, _node(), settings)
    assert (asked.cpus_per_task, asked.memory_per_node_mib, asked.time_limit_s) == (2, 77, 90)
    assert (asked.account, asked.qos, asked.partition) == ("ai", "high", "a,b")
    assert asked.environment == {"PATH": "/bin", **tls.environment()}
    assert submission(LAUNCHER, KEY, _node(), settings).partition == "gpu,big"


def test_a_share_of_a_gpu_is_not_asked_of_slurm() -> None:
    wanted = {"nodes/n1": Wanted((replace(LAUNCHER, spec=replace(SPEC, gpu_milli=500)),))}
    assert _plan(wanted=wanted) == Plan()
    ((_, why),) = _see(wanted=wanted).unstartable
    assert "whole GPUs only" in why


def test_the_script_hands_over_the_specification_as_it_is_and_becomes_the_launcher(tmp_path: Path) -> None:
    settings = replace(SETTINGS, state_dir=tmp_path / "it's here", command=("/bin/sh", "-c", TELL))
    text = script(LAUNCHER, KEY, _node(), settings, Endpoints.all_at("10.0.0.9:7070"))
    environment = {**os.environ, "SLURM_JWT": "secret"}
    assert subprocess.run(["/bin/sh"], input=text, text=True, check=False, env=environment).returncode == 0
    folder = settings.folder(KEY)
    said, told = (folder / "launcher.log").read_text().splitlines()
    spec = json.loads(told)
    assert (spec["argv"], spec["environment"]) == (["train.py"], {"A": "it's\n$(one)"})
    assert [file.name for file in folder.iterdir()] == ["launcher.log"], "its environment may hold secrets"
    assert said.startswith(
        "no token --job jobs/llama --placement-epoch 3 --node nodes/n1 --address 10.0.0.1 --recovery 10.0.0.9:7070"
    )
    (tmp_path / "file").touch()
    text = script(LAUNCHER, KEY, _node(), replace(settings, state_dir=tmp_path / "file"), Endpoints.all_at("h:1"))
    assert (
        subprocess.run(["/bin/sh"], input=text, text=True, check=False, stderr=subprocess.DEVNULL).returncode
        == EXIT_NO_FOLDER
    )


def test_folders_of_launchers_that_ended_long_ago_are_removed_from_their_own_node(tmp_path: Path) -> None:
    settings = replace(SETTINGS, state_dir=tmp_path, command=("/bin/true",))
    launchers = settings.folder(KEY).parent
    names = [f"old-{number}@n1" for number in range(FOLDERS_MAX + 1)] + ["old@n2"]
    for age_s, name in enumerate(reversed(names)):
        (launchers / name).mkdir(parents=True)
        (launchers / name / "lock").touch()
        os.utime(launchers / name, (NOW_S - age_s, NOW_S - age_s))
    held = os.open(launchers / "old-0@n1/lock", os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    text = script(LAUNCHER, KEY, _node(), settings, Endpoints.all_at("h:1"))
    subprocess.run(["/bin/sh"], input=text, text=True, check=True)
    os.close(held)
    assert set(names) - {folder.name for folder in launchers.iterdir()} == {"old-1@n1"}


def test_nothing_was_seen_before_the_first_look() -> None:
    assert Observation().complete is False
    assert fate((), None, NOW_S).kind is Kind.RESTING
