"""Nodes and jobs out of what several versions of Slurm write."""

from __future__ import annotations

import json
from typing import Any

import pytest
from slurm_samples import BOOTED, DRAINED, INFINITE, SAMPLES, SLURMD_STARTED, STARTED, SUBMITTED, number

from switchgear.core.errors import FailedPrecondition
from switchgear.slurm import parse, scontrol
from switchgear.slurm.model import Gpus, JobFlag, JobState, NodeFlag, NodeState, SlurmJob, SlurmNode

RUNNING = SlurmJob(
    id=43, name="llama", user="ada", account="vision", partition="train", qos="high", state=JobState.RUNNING,
    flags=frozenset(), reason="", reason_detail="", comment="switchgear:c:llama:1", nodes=("gpu01", "gpu02"),
    gpus={"gpu01": Gpus({"h100": 4}, (0, 1, 2, 3)), "gpu02": Gpus({"h100": 4}, (0, 2, 3, 4))},
    gpus_per_node=Gpus({"h100": 4}), node_count=2, required_nodes=("gpu01", "gpu02"), excluded_nodes=("gpu09",),
    priority=4_294_901_759, submit_s=SUBMITTED, start_s=STARTED, end_s=STARTED + 1800, time_limit_s=1800, restarts=2,
    array_job_id=40, array_task_id=3, het_job_id=None, het_offset=None, exit_code=None, exit_signal=None,
)  # fmt: skip
ENDED = SlurmJob(
    id=50, name="eval", user="bob", account="", partition="train", qos="", state=JobState.FAILED, flags=frozenset(),
    reason="JobLaunchFailure", reason_detail="", comment="", nodes=("gpu03",), gpus={}, gpus_per_node=Gpus(), node_count=1,
    required_nodes=(), excluded_nodes=(), priority=0, submit_s=SUBMITTED, start_s=STARTED, end_s=STARTED + 5,
    time_limit_s=None, restarts=0, array_job_id=None, array_task_id=None, het_job_id=48, het_offset=2, exit_code=0,
    exit_signal=9,
)  # fmt: skip


def node(version: str) -> SlurmNode:
    return SlurmNode(
        name="gpu01", address="10.0.0.1", hostname="gpu01", state=NodeState.MIXED,
        flags=frozenset({NodeFlag.DRAIN, NodeFlag.NOT_RESPONDING}), cpus=96, memory_mib=1_031_000, gpus=Gpus({"h100": 8}),
        gpus_used=Gpus({"h100": 4}, (0, 1, 2, 3)), partitions=("train", "debug"), features=("ib",), reason="fan is broken",
        reason_user="root", reason_s=DRAINED, boot_s=BOOTED, slurmd_start_s=SLURMD_STARTED, version=version,
    )  # fmt: skip


def answer(**lists: list[dict[str, Any]]) -> parse.Fields:
    return parse.document(json.dumps({"errors": [], **lists}))


@pytest.mark.parametrize("version", SAMPLES)
def test_every_version_says_the_same_in_its_own_way(version: str) -> None:
    running, ended, its_node = SAMPLES[version]

    assert parse.jobs(answer(jobs=[running, ended])) == (RUNNING, ENDED)
    assert parse.nodes(answer(nodes=[its_node])) == (node(version),)


@pytest.mark.parametrize(
    ("told", "state", "flags"),
    [
        # A version that tells one word shows the flag in place of the state.
        ("COMPLETING", JobState.UNKNOWN, {JobFlag.COMPLETING}),
        ("CONFIGURING", JobState.RUNNING, {JobFlag.CONFIGURING}),
        ("REQUEUE_HOLD", JobState.PENDING, {JobFlag.REQUEUE_HOLD}),
        ("STOPPED", JobState.SUSPENDED, {JobFlag.STOPPED}),
        (["CANCELLED", "COMPLETING"], JobState.CANCELLED, {JobFlag.COMPLETING}),
        (["PENDING", "SPECIAL_EXIT", "REQUEUE_HOLD"], JobState.PENDING, {"SPECIAL_EXIT", "REQUEUE_HOLD"}),
        (["RUNNING", "LEVITATING"], JobState.RUNNING, {"LEVITATING"}),
        ("LEVITATING", JobState.UNKNOWN, {"LEVITATING"}),
        ([], JobState.UNKNOWN, set()),
    ],
)
def test_states_and_flags_are_told_apart(told: object, state: str, flags: set[str]) -> None:
    job = parse.job({"job_id": 1, "job_state": told})

    assert (job.state, set(job.flags)) == (state, flags)


def test_a_completing_job_holds_its_nodes_and_has_not_ended() -> None:
    old, new = (
        parse.job({"job_id": 1, "job_state": told, "nodes": "n1", "gres_detail": [], "tres_per_node": "gres:gpu:2"})
        for told in ("COMPLETING", ["COMPLETED", "COMPLETING"])
    )

    for job in (old, new):
        assert job.holds_nodes
        assert not job.has_ended
        assert job.gpus == {"n1": Gpus({"": 2})}


@pytest.mark.parametrize(
    ("told", "state", "flags", "up"),
    [
        ("idle", NodeState.IDLE, set(), True),
        ("IDLE+DRAIN", NodeState.IDLE, {"DRAIN"}, True),
        ("DOWN*", NodeState.DOWN, {"NOT_RESPONDING"}, False),
        (["ALLOCATED", "COMPLETING"], NodeState.ALLOCATED, {"COMPLETING"}, True),
        (["IDLE", "POWERED_DOWN"], NodeState.IDLE, {"POWERED_DOWN"}, False),
        (["IDLE", "LEVITATING"], NodeState.IDLE, {"LEVITATING"}, True),
        ("inval", NodeState.UNKNOWN, {"INVAL"}, False),
    ],
)
def test_states_of_nodes_are_told_apart(told: object, state: str, flags: set[str], up: bool) -> None:
    seen = parse.node({"name": "n1", "state": told})

    assert (seen.state, set(seen.flags), seen.is_up) == (state, flags, up)


def test_a_job_without_limit_has_no_end_before_it_ends() -> None:
    """Slurm writes some time a year or a century ahead."""
    running, waiting = (
        parse.job({"job_id": 1, "job_state": [state], "time_limit": INFINITE, "end_time": number(6_090_340_278)})
        for state in ("RUNNING", "PENDING")
    )

    assert (running.end_s, waiting.end_s, running.time_limit_s) == (None, None, None)


def test_numbers_that_stand_for_none_are_none() -> None:
    """NO_VAL and INFINITE of slurm.h."""
    job = parse.job({"job_id": 1, "job_state": "RUNNING", "time_limit": 0xFFFFFFFF, "array_job_id": 0xFFFFFFFE})

    assert (job.time_limit_s, job.array_job_id) == (None, None)


def test_gpus_without_indices_are_counted() -> None:
    """`gres_detail` is told to the job's user and to operators only."""
    held = {"job_id": 1, "job_state": ["RUNNING"], "nodes": "n[1-2]", "node_count": 2}
    by_node = parse.job({**held, "tres_per_node": "gres/gpu:4"})
    by_total = parse.job({**held, "tres_alloc_str": "cpu=2,gres/gpu=6,gres/gpu:a100=6"})

    assert by_node.gpus == {"n1": Gpus({"": 4}), "n2": Gpus({"": 4})}
    assert by_total.gpus == {"n1": Gpus({"a100": 3}), "n2": Gpus({"a100": 3})}


def test_strange_fields_are_no_reason_to_see_nothing() -> None:
    strange = {
        "job_id": 1,
        "nodes": "n[1-",
        "exit_code": "?",
        "gres_detail": None,
        "time_limit": True,
        "job_state": None,
    }
    seen = parse.jobs(answer(jobs=[strange, {"job_id": number(2)}, "job"]))  # type: ignore[list-item]

    assert [(job.id, job.nodes) for job in seen] == [(1, ("n[1-",)), (2, ())]


def test_what_went_wrong_is_told_in_the_words_of_each_version() -> None:
    old = {"errors": [{"error": "Unspecified error", "errno": -1}], "nodes": []}
    new = {
        "errors": [
            {"description": "Unable to query nodes", "error_number": 1007, "error": "Protocol authentication error"}
        ]
    }

    assert parse.complaints(old) == ["Unspecified error"]
    assert parse.complaints(new) == ["Protocol authentication error: Unable to query nodes"]
    assert parse.complaints({"errors": [{"error_number": 5}, "text"]}) == ["error 5", "text"]
    assert parse.complaints({"nodes": []}) == []


@pytest.mark.parametrize("text", ["", "slurm_load_jobs error", "[]", b"\xff\xfe"])
def test_what_is_no_json_object_is_refused(text: str | bytes) -> None:
    with pytest.raises(FailedPrecondition, match="JSON"):
        parse.document(text)


def test_lines_of_scontrol_say_the_same() -> None:
    """As `scontrol -d -o show` of 22.05 writes them, with Unix seconds for times; fields in its order, most of them left out."""
    job = (
        f"JobId=43 ArrayJobId=40 ArrayTaskId=3 JobName=llama UserId=ada(1000) GroupId=ada(1000) Priority=4294901759 Nice=0 "
        f"Account=vision QOS=high JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=2 ExitCode=0:0 "
        f"RunTime=00:00:02 TimeLimit=00:30:00 SubmitTime={SUBMITTED} StartTime={STARTED} EndTime={STARTED + 1800} "
        "Partition=train ReqNodeList=gpu[01-02] ExcNodeList=gpu09 NodeList=gpu[01-02] BatchHost=gpu01 NumNodes=2 NumCPUs=2 "
        "CPUs/Task=1 ReqB:S:C:T=0:0:*:* TRES=cpu=2,node=2,billing=2 JOB_GRES=gpu:h100:8   "
        "Nodes=gpu01 CPU_IDs=0 Mem=0 GRES=gpu:h100:4(IDX:0-3)   Nodes=gpu02 CPU_IDs=0 Mem=0 GRES=gpu:h100:4(IDX:0,2-4) "
        "MinCPUsNode=1 Features=(null) Comment=switchgear:c:llama:1  StdOut=/x Power= TresPerNode=gres:gpu:h100:4 "
    )
    its_node = (
        "NodeName=gpu01 Arch=x86_64 CPUAlloc=1 CPUTot=96 CPULoad=5.42 AvailableFeatures=nvlink,ib ActiveFeatures=ib "
        "Gres=gpu:h100:8(S:0-1) GresDrain=N/A GresUsed=gpu:h100:4(IDX:0-3) NodeAddr=10.0.0.1 NodeHostName=gpu01 Port=6818 "
        "Version=22.05.8 OS=Linux 6.1 #1 SMP @0  RealMemory=1031000 AllocMem=0 State=MIXED+DRAIN+NOT_RESPONDING Weight=1 "
        f"Partitions=train,debug  BootTime={BOOTED} SlurmdStartTime={SLURMD_STARTED} CfgTRES=cpu=96,mem=1031000M AllocTRES= "
        f"ExtSensorsTemp=n/s Reason=fan is broken [root@{DRAINED}]"
    )

    assert scontrol.jobs(job + "\n\n") == (RUNNING,)
    assert scontrol.nodes(its_node + "\n") == (node("22.05.8"),)
    assert scontrol.jobs("No jobs in the system\n") == ()


def test_a_comment_that_looks_like_fields_changes_no_field() -> None:
    (job,) = scontrol.jobs("JobId=1 JobName=a JobState=RUNNING NodeList=n1 Comment=x JobState=COMPLETED NodeList=n2 \n")

    assert (job.state, job.nodes, job.comment) == (JobState.RUNNING, ("n1",), "x")
