"""Switchgear drives a real Slurm by slurmrestd alone, on a machine without Slurm's programs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import NODES, SlurmCluster
from slurm_drive import Drive
from terminal import wait_for


@pytest.fixture(params=["socket", pytest.param("token", marks=pytest.mark.slow)])
def drive(request: pytest.FixtureRequest, slurm: SlurmCluster, tmp_path: Path) -> Iterator[Drive]:
    missing = tmp_path / "bin"
    missing.mkdir()
    for program in ("sbatch", "squeue", "scancel", "scontrol", "sinfo"):
        (missing / program).write_text("#!/bin/sh\nexit 127\n")
        (missing / program).chmod(0o755)
    environment, address = {}, ""
    if request.param == "token":
        address = slurm.start_rest_with_tokens()
        environment["SLURM_JWT"] = slurm.token("root").partition("=")[2]
    else:
        address = slurm.start_rest()
    drive = Drive(tmp_path, slurm, "--slurm-rest", address, path=str(missing), environment=environment)
    try:
        wait_for(lambda: [node["state"] for node in drive.nodes().values()] == ["HEALTHY"] * len(NODES))
        yield drive
        drive.watch.check()
    finally:
        drive.close()


def test_a_job_is_submitted_followed_and_cancelled_by_slurmrestd_alone(drive: Drive) -> None:
    drive.submit("pair", "--nnodes", "2", "--nproc-per-node", "2", steps=60)
    drive.goes_on("pair")
    # The last ones of that name: this Slurm knows the jobs of other tests, too.
    assert [line.state for line in drive.slurm_jobs("pair")[-2:]] == ["RUNNING"] * 2
    wait_for(lambda: drive.state("pair") == "SUCCEEDED")
    assert {step.generation for step in drive.steps("pair")} == {1}
    assert {step.gpus for step in drive.steps("pair")} == {"0,1"}
    wait_for(lambda: [line.state for line in drive.slurm_jobs("pair")[-2:]] == ["COMPLETED"] * 2)

    # A person who cancels in Slurm is heard, and so is one who cancels here.
    for job in ("theirs", "ours"):
        drive.submit(job)
        drive.goes_on(job)
    drive.slurm.command("scancel", drive.slurm_jobs("theirs")[-1].id)
    wait_for(lambda: drive.state("theirs") == "CANCELLED")
    drive.cancel("ours")
    wait_for(lambda: not any(line.is_alive for line in drive.slurm_jobs()))
