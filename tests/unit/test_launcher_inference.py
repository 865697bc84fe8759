"""What a launcher does otherwise for a replica of an inference service."""

from __future__ import annotations

import argparse
from pathlib import Path

from google.protobuf import json_format

from switchgear.launcher.environment import rank_environment
from switchgear.launcher.main import add_arguments, settings_from
from switchgear.launcher.settings import LauncherSettings
from switchgear.v1.job_service_pb2 import JobSpec
from switchgear.v1alpha.launcher_service_pb2 import StartAttempt


def settings(folder: Path, workload: JobSpec.Workload) -> LauncherSettings:
    spec = folder / "spec.json"
    spec.write_text(json_format.MessageToJson(JobSpec(argv=["serve.py"], nproc_per_node=1, workload=workload)))
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = "--job jobs/a --placement-epoch 1 --node nodes/n --address 10.0.0.7 --gpu-indices 0 --recovery h:1 --autoscaler h:2"
    return settings_from(parser.parse_args([*given.split(), "--spec", str(spec), "--state-dir", str(folder)]))


def environment(of: LauncherSettings) -> dict[str, str]:
    return rank_environment(
        {}, of.spec, StartAttempt(world_size=1), job=of.job, generation=1, local_rank=0, gpu_indices=None,
        checkpoint_directory="", address=of.address, autoscaler=of.autoscaler,
    )  # fmt: skip


def test_a_replica_is_told_where_it_is_reached_and_to_whom_it_reports(tmp_path: Path) -> None:
    env = environment(settings(tmp_path, JobSpec.INFERENCE))
    assert (env["SWITCHGEAR_NODE_ADDRESS"], env["SWITCHGEAR_AUTOSCALER"]) == ("10.0.0.7", "h:2")


def test_a_training_job_is_told_nothing_of_the_autoscaler(tmp_path: Path) -> None:
    assert (
        not {"SWITCHGEAR_NODE_ADDRESS", "SWITCHGEAR_AUTOSCALER"}
        & environment(settings(tmp_path, JobSpec.TRAINING)).keys()
    )


def test_a_replica_serves_on_without_the_control_plane_and_training_does_not(tmp_path: Path) -> None:
    assert settings(tmp_path, JobSpec.INFERENCE).lease is None
    assert settings(tmp_path, JobSpec.TRAINING).lease is not None
