"""A submission in the words of sbatch and of slurmrestd's versions, and which error a refusal is."""

from __future__ import annotations

import pytest

from switchgear.core.errors import (
    FailedPrecondition,
    Invalid,
    PermissionDenied,
    Reason,
    SwitchgearError,
    Unavailable,
)
from switchgear.slurm import refusals, rest_fields, sbatch
from switchgear.slurm.model import Submission

FULL = Submission(
    name="llama:n1", comment="switchgear:c:llama:1", nodes=("n2", "n1"), tasks=2, cpus_per_task=4, gpus_per_node=8,
    gpu_type="h100", memory_per_node_mib=1000, partition="train", account="vision", qos="high", time_limit_s=90,
    dependency="singleton", excluded_nodes=("n9",), requeue=True, working_directory="/w", output="/w/%j", environment={"A": "b=c"},
)  # fmt: skip


def test_sbatch_is_told_all_of_it_each_as_one_argument() -> None:
    assert sorted(sbatch.options(FULL)) == [
        "--account=vision", "--chdir=/w", "--comment=switchgear:c:llama:1", "--cpus-per-task=4", "--dependency=singleton",
        "--exclude=n9", "--export=ALL", "--gres=gpu:h100:8", "--job-name=llama:n1", "--mem=1000M", "--nodelist=n[1-2]",
        "--nodes=2", "--ntasks=2", "--output=/w/%j", "--parsable", "--partition=train", "--qos=high", "--requeue",
        "--time=1:30",
    ]  # fmt: skip


def test_what_is_left_out_is_left_to_slurm() -> None:
    assert sorted(sbatch.options(Submission(name="x"))) == [
        "--chdir=/", "--export=ALL", "--job-name=x", "--no-requeue", "--nodes=1", "--ntasks=1", "--parsable",
    ]  # fmt: skip
    assert rest_fields.submission_body("#!", Submission(name="x"), (0, 0, 42)) == {
        "script": "#!",
        "job": {
            "name": "x", "tasks": 1, "current_working_directory": "/", "minimum_nodes": 1, "maximum_nodes": 1,
            "environment": ["PATH=/usr/local/bin:/usr/bin:/bin"], "requeue": False,
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("version", "gres"),
    [((0, 0, 39), "gres:gpu:h100:8"), ((0, 0, 40), "gres/gpu:h100:8"), ((0, 0, 45), "gres/gpu:h100:8")],
)
def test_slurmrestd_is_told_all_of_it(version: tuple[int, ...], gres: str) -> None:
    assert rest_fields.submission_body("#!/bin/sh", FULL, version)["job"] == {
        "name": "llama:n1", "comment": "switchgear:c:llama:1", "tasks": 2, "cpus_per_task": 4, "memory_per_node": 1000,
        "partition": "train", "account": "vision", "qos": "high", "time_limit": 2, "dependency": "singleton",
        "current_working_directory": "/w", "standard_output": "/w/%j", "minimum_nodes": 2, "maximum_nodes": 2,
        "required_nodes": ["n2", "n1"], "excluded_nodes": ["n9"], "tres_per_node": gres, "requeue": True,
        "environment": ["PATH=/usr/local/bin:/usr/bin:/bin", "A=b=c"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "kind", "reason"),
    [
        (
            "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
            Unavailable,
            "SLURM_UNREACHABLE",
        ),
        ("Batch job submission failed: Socket timed out on send/recv operation", Unavailable, "SLURM_UNREACHABLE"),
        ("Zero Bytes were transmitted or received", Unavailable, "SLURM_UNREACHABLE"),
        ("slurmctld in standby mode, use primary", Unavailable, "SLURM_UNREACHABLE"),
        ("Resource temporarily unavailable", Unavailable, "SLURM_UNREACHABLE"),
        ("Unspecified error", Unavailable, "SLURM_UNREACHABLE"),
        ("Munge encode failed: Failed to access /run/munge: No such file", Unavailable, "SLURM_UNREACHABLE"),
        ("Invalid authentication credential", Unavailable, "SLURM_UNREACHABLE"),
        ("slurm_update error: Invalid user id", PermissionDenied, "SLURM_REFUSED"),
        ("Access/permission denied", PermissionDenied, "SLURM_REFUSED"),
        ("User's group not permitted to use this partition", PermissionDenied, "SLURM_REFUSED"),
        ("Authentication credential expired", Unavailable, "SLURM_UNREACHABLE"),
        ("Requested nodes not in this partition", Invalid, "SLURM_REFUSED"),
        ("Requested partition configuration not available now", FailedPrecondition, "SLURM_REFUSED"),
        ("Invalid account or account/partition combination specified", Invalid, "SLURM_REFUSED"),
        ("Invalid qos specification", Invalid, "SLURM_REFUSED"),
        ("Unable to parse time; Unspecified error: Unable to process key", FailedPrecondition, "SLURM_REFUSED"),
        ("Job violates accounting/QOS policy (job submit limit, user's size)", FailedPrecondition, "SLURM_REFUSED"),
        ("", FailedPrecondition, "SLURM_REFUSED"),
    ],
)
def test_slurms_words_decide_which_error_it_is(words: str, kind: type[SwitchgearError], reason: str) -> None:
    error = refusals.error("sbatch", words)

    assert (type(error), error.reason) == (kind, reason)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("Unable to contact slurm controller (connect failure)", Reason.SLURM_UNREACHABLE),
        ("Unable to contact slurm controller (send failure)", Reason.SLURM_OUTCOME_UNKNOWN),
        ("Unable to contact slurm controller (receive failure)", Reason.SLURM_OUTCOME_UNKNOWN),
        ("Socket timed out on send/recv operation", Reason.SLURM_OUTCOME_UNKNOWN),
        ("Invalid partition name specified", Reason.SLURM_REFUSED),
    ],
)
def test_only_a_submission_that_never_left_is_known_to_have_made_no_job(words: str, reason: Reason) -> None:
    assert refusals.of_submission(refusals.error("sbatch", words)).reason == reason
