"""What a rank finds in its environment, which of its output is shown, and what torch's `record` left of its exception."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from switchgear.launcher.environment import rank_environment
from switchgear.launcher.logs import EchoRule, LogFolder, Streams
from switchgear.v1.job_service_pb2 import JobSpec
from switchgear.v1alpha.launcher_service_pb2 import StartAttempt

#: Of torch/distributed/elastic/agent/server/local_elastic_agent.py, `_start_workers`.
OF_TORCH_ELASTIC = {
    "LOCAL_RANK": "1",
    "RANK": "3",
    "GROUP_RANK": "1",
    "ROLE_RANK": "3",
    "ROLE_NAME": "trainer",
    "LOCAL_WORLD_SIZE": "2",
    "WORLD_SIZE": "4",
    "GROUP_WORLD_SIZE": "2",
    "ROLE_WORLD_SIZE": "4",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "2900",
    "TORCHELASTIC_RESTART_COUNT": "5",
    "TORCHELASTIC_MAX_RESTARTS": "3",
    "TORCHELASTIC_RUN_ID": "llama",
    "TORCHELASTIC_USE_AGENT_STORE": "False",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    "TORCHELASTIC_ERROR_FILE": "/logs/error",
    "OMP_NUM_THREADS": "1",
}


def environment(
    spec: JobSpec, *, local_rank: int = 1, gpus: tuple[int, ...] | None = None, **inherited: str
) -> dict[str, str]:
    start = StartAttempt(
        world_size=4, node_rank=1, nnodes=2, first_rank=2, master_address="10.0.0.1", master_port=2900, restart_count=5
    )
    return rank_environment(
        inherited, spec, start, job="jobs/llama", generation=6, local_rank=local_rank, gpu_indices=gpus,
        checkpoint_directory="", error_file="/logs/error",
    )  # fmt: skip


def test_a_rank_has_every_variable_of_torch_elastic() -> None:
    env = environment(JobSpec(nproc_per_node=2, max_restarts=3, role="trainer"))
    assert {name: env.get(name) for name in OF_TORCH_ELASTIC} == OF_TORCH_ELASTIC


def test_the_users_threads_and_run_id_stand() -> None:
    spec = JobSpec(nproc_per_node=2, environment={"TORCHELASTIC_RUN_ID": "Llama 3/7"})
    env = environment(spec, OMP_NUM_THREADS="8")
    assert (env["OMP_NUM_THREADS"], env["TORCHELASTIC_RUN_ID"], env["ROLE_NAME"]) == ("8", "Llama 3/7", "default")


@pytest.mark.parametrize(
    ("gpus", "inherited", "expected"),
    [((4, 5), {}, "5"), (None, {"CUDA_VISIBLE_DEVICES": "2,7"}, "7"), (None, {}, "1")],
)
def test_a_virtual_local_rank_sees_its_own_gpu_as_the_first(
    gpus: tuple[int, ...] | None, inherited: dict[str, str], expected: str
) -> None:
    env = environment(JobSpec(nproc_per_node=2, virtual_local_rank=True), gpus=gpus, **inherited)
    assert (env["LOCAL_RANK"], env["CUDA_VISIBLE_DEVICES"]) == ("0", expected)


def test_what_is_redirected_is_not_shown_unless_it_is_teed() -> None:
    both = frozenset({"stdout", "stderr"})
    rule = EchoRule(redirected=Streams(both), teed=Streams(by_local_rank={1: frozenset({"stderr"})}))
    assert [rule.streams(local_rank) for local_rank in (0, 1)] == [(), ("stderr",)]
    assert EchoRule().streams(0) == ("stdout", "stderr")
    assert [EchoRule(frozenset({1})).streams(local_rank) for local_rank in (0, 1)] == [(), ("stdout", "stderr")]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (json.dumps({"message": {"message": "ValueError: bad", "extraInfo": {}}}), "ValueError: bad"),
        (json.dumps({"message": "died"}), "died"),
        (json.dumps({"message": {"message": "x" * 5000}}), "x" * 1024),
        (json.dumps([1]), ""),
        (json.dumps({"message": {"message": 7}}), ""),
        ('{"message": "cut', ""),
        (None, ""),
    ],
)
def test_an_error_file_of_any_form_is_read_or_left(tmp_path: Path, written: str | None, read: str) -> None:
    logs = LogFolder(tmp_path)
    logs.prepare(1, 0)
    if written is not None:
        logs.path(1, 0, "error").write_text(written)
    assert logs.recorded_error(1, 0) == read


def test_an_error_of_an_earlier_run_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    logs = LogFolder(tmp_path)
    logs.prepare(1, 0)
    logs.path(1, 0, "error").write_text(json.dumps({"message": "old"}))
    logs.prepare(1, 0)
    assert logs.recorded_error(1, 0) == ""
