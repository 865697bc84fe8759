"""What makes a process that has done the imports of one job good for another."""

from __future__ import annotations

from switchgear.agent import standby
from switchgear.core.warm import WarmKind
from switchgear.launcher import zygote
from switchgear.v1.job_service_pb2 import JobSpec


def test_jobs_that_differ_in_what_only_their_ranks_read_are_of_one_kind() -> None:
    kinds = {
        WarmKind.of("python", "/w", environment, ["numpy"])
        for environment in ([("A", "1"), ("B", "2")], [("B", "2"), ("SWITCHGEAR_REPLICA", "x"), ("A", "1")])
    }
    assert kinds == {WarmKind("python", "/w", (("A", "1"), ("B", "2")), ("numpy",))}


def test_agent_and_launcher_see_one_kind_in_a_job_that_names_its_interpreter() -> None:
    spec = JobSpec(python="/p", working_directory="/w", environment={"A": "1", "SWITCHGEAR_X": ""}, preload=["numpy"])
    assert standby.kind_of(spec) == zygote.kind_of(spec) == WarmKind("/p", "/w", (("A", "1"),), ("numpy",))


def test_a_program_of_another_kind_imports_nothing() -> None:
    kind = zygote.kind_of(JobSpec(python="/p", no_python=True, preload=["numpy"]))
    assert (kind.torch, kind.preload) == (False, ())
