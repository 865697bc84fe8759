"""What a job's specification must look like."""

from __future__ import annotations

from typing import Any

import pytest

from switchgear.core.errors import Invalid, Reason
from switchgear.scheduler.model import Workload
from switchgear.scheduler.spec import spec_from_proto
from switchgear.scheduler.translate import spec_to_proto
from switchgear.v1 import job_service_pb2 as job_pb

GOOD: dict[str, Any] = {
    "argv": ["x.py"],
    "working_directory": "/w",
    "environment": {"B": "2", "A": "1"},
    "nnodes": 1,
    "nproc_per_node": 1,
}


def test_a_good_specification_is_taken_as_it_is() -> None:
    spec = spec_from_proto(job_pb.JobSpec(**GOOD))
    assert (spec.argv, spec.environment, spec.checkpoint_directory) == (("x.py",), (("A", "1"), ("B", "2")), "")


def test_a_job_of_no_workload_trains() -> None:
    assert spec_from_proto(job_pb.JobSpec(**GOOD)).workload is Workload.TRAINING
    assert spec_from_proto(job_pb.JobSpec(**GOOD, workload=job_pb.JobSpec.INFERENCE)).workload is Workload.INFERENCE


def test_what_a_job_may_leave_out_is_not_confused_with_zero() -> None:
    assert spec_from_proto(job_pb.JobSpec(**GOOD)).hang_seconds is None
    spec = spec_from_proto(job_pb.JobSpec(**GOOD, hang_seconds=0, preload=["a.b", "c"], role="trainer", no_python=True))
    assert (spec.hang_seconds, spec.preload, spec.role, spec.no_python) == (0, ("a.b", "c"), "trainer", True)
    assert spec_from_proto(spec_to_proto(spec)) == spec


def test_account_partition_and_qos_are_words_that_an_engine_can_be_given() -> None:
    spec = spec_from_proto(job_pb.JobSpec(**GOOD, account="chem-01", partition="gpu,gpu_long", qos="high"))
    assert (spec.account, spec.partition, spec.qos) == ("chem-01", "gpu,gpu_long", "high")
    assert spec_from_proto(spec_to_proto(spec)) == spec


@pytest.mark.parametrize(
    ("spec", "field", "reason"),
    [
        ({"account": "--wrap=x"}, "spec.account", Reason.BAD_FIELD),
        ({"account": "a,b"}, "spec.account", Reason.BAD_FIELD),
        ({"partition": "gpu,,long"}, "spec.partition", Reason.BAD_FIELD),
        ({"qos": "x" * 101}, "spec.qos", Reason.BAD_FIELD),
        ({"argv": []}, "spec.argv", Reason.BAD_FIELD),
        ({"argv": ["x"] * 1001}, "spec.argv", Reason.LIMIT_EXCEEDED),
        ({"argv": ["x" * 70_000]}, "spec.argv", Reason.LIMIT_EXCEEDED),
        ({"argv": ["a\0b"]}, "spec.argv", Reason.BAD_FIELD),
        ({"working_directory": "here"}, "spec.working_directory", Reason.BAD_FIELD),
        ({"working_directory": ""}, "spec.working_directory", Reason.BAD_FIELD),
        ({"checkpoint_directory": "here"}, "spec.checkpoint_directory", Reason.BAD_FIELD),
        ({"environment": {"A": "x" * 70_000}}, "spec.environment", Reason.LIMIT_EXCEEDED),
        ({"environment": {"A=B": "x"}}, "spec.environment", Reason.BAD_FIELD),
        ({"nnodes": 0}, "spec.nnodes", Reason.BAD_FIELD),
        ({"nproc_per_node": -1}, "spec.nproc_per_node", Reason.BAD_FIELD),
        ({"max_restarts": -1}, "spec.max_restarts", Reason.BAD_FIELD),
        ({"nnodes": 2, "nnodes_min": 3}, "spec.nnodes_min", Reason.BAD_FIELD),
        ({"preload": ["a"] * 65}, "spec.preload", Reason.LIMIT_EXCEEDED),
        ({"preload": ["os; print()"]}, "spec.preload", Reason.BAD_FIELD),
        ({"role": "x" * 101}, "spec.role", Reason.LIMIT_EXCEEDED),
        ({"hang_seconds": -1.0}, "spec.hang_seconds", Reason.BAD_FIELD),
        ({"hang_seconds": float("nan")}, "spec.hang_seconds", Reason.BAD_FIELD),
        ({"workload": 9}, "spec.workload", Reason.BAD_FIELD),
        ({"workload": "INFERENCE", "checkpoint_directory": "/c"}, "spec.checkpoint_directory", Reason.BAD_FIELD),
    ],
)
def test_what_cannot_be_run_is_refused_by_field(spec: dict[str, Any], field: str, reason: Reason) -> None:
    with pytest.raises(Invalid) as caught:
        spec_from_proto(job_pb.JobSpec(**{**GOOD, **spec}))
    assert (caught.value.reason, caught.value.metadata["field"]) == (reason, field)
