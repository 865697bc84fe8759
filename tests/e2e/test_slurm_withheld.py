"""Somebody else gets a node of a real Slurm between our look at it and our submission: what our job holds elsewhere goes back."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import NODES, SlurmCluster
from slurm_drive import Drive
from terminal import wait_for

#: As little as lets Slurm look at a job in peace.
PATIENCE_S = 5
#: Submits the job of the file `rival`, once, just before the first of ours that is for its node.
SBATCH = """#!/bin/sh
if [ -e {folder}/rival ]; then
    node=$(cat {folder}/rival)
    case " $* " in *"=$node "*)
        rm {folder}/rival
        printf '#!/bin/sh\\nexec sleep 600\\n' | {sbatch} --parsable --nodelist=$node --gres=gpu:8 --time=20 >{folder}/rival.id
        sleep 1;;
    esac
fi
exec {sbatch} "$@"
"""


class Rivalry:
    def __init__(self, folder: Path, slurm: SlurmCluster) -> None:
        self._folder, self._slurm = folder, slurm
        (folder / "bin").mkdir()
        program = folder / "bin/sbatch"
        program.write_text(SBATCH.format(folder=folder, sbatch=shutil.which("sbatch")))
        program.chmod(0o755)
        self.path = str(program.parent)

    def begin(self, node: str) -> None:
        (self._folder / "rival.id").unlink(missing_ok=True)
        (self._folder / "rival").write_text(node)

    def end(self) -> None:
        self._slurm.command("scancel", (self._folder / "rival.id").read_text().strip())


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    cluster = SlurmCluster(extra="SlurmdTimeout=6\nKillWait=2")
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def rivalry(cluster: SlurmCluster, tmp_path: Path) -> Rivalry:
    cluster.mend()
    return Rivalry(tmp_path, cluster)


@pytest.fixture
def drive(cluster: SlurmCluster, rivalry: Rivalry, tmp_path: Path) -> Iterator[Drive]:
    drive = Drive(tmp_path, cluster, "--slurm-patience-seconds", str(PATIENCE_S), path=rivalry.path)
    try:
        wait_for(lambda: [node["state"] for node in drive.nodes().values()] == ["HEALTHY"] * len(NODES))
        yield drive
        drive.cancel(*drive.alive())
        drive.watch.check()
    finally:
        drive.close()


def _close(drive: Drive, *nodes: str) -> None:
    for node in nodes:
        drive.slurm.command("scontrol", "update", f"nodename={node}", "state=drain", "reason=not for this test")
    wait_for(lambda: all(drive.nodes()[node]["state"] == "CORDONED" for node in nodes))


WITHHELD = "node n2: Slurm holds it for another job (Resources)"


def test_a_job_whose_node_another_got_first_gives_the_others_back_and_starts_once_it_is_free(
    drive: Drive, rivalry: Rivalry
) -> None:
    _close(drive, "n3", "n4")
    rivalry.begin("n2")
    drive.submit("pair", "--nnodes", "2", "--nproc-per-node", "2")
    wait_for(lambda: drive.state("pair") == "STARTING" and "Resources" in drive.job("pair")["message"])
    wait_for(lambda: drive.state("pair") == "PENDING")
    wait_for(lambda: not any(line.is_alive for line in drive.slurm_jobs("pair")))
    asked = len(drive.slurm_jobs("pair"))
    time.sleep(PATIENCE_S)
    assert (drive.state("pair"), drive.nodes_of("pair"), len(drive.slurm_jobs("pair"))) == ("PENDING", [], asked)
    assert WITHHELD in drive.job("pair")["message"]
    assert WITHHELD in drive.run("jobs").stdout
    assert WITHHELD in drive.run("explain", "pair").stdout
    rivalry.end()
    drive.goes_on("pair")
    assert sorted(drive.nodes_of("pair")) == ["n1", "n2"]
    # Nothing failed: neither the job nor a node.
    assert drive.rest("GET", "incidents").get("incidents", []) == []
    assert {step.generation for step in drive.steps("pair")} == {1}
    assert drive.nodes()["n2"]["state"] == "HEALTHY"


@pytest.mark.slow
def test_a_job_that_has_run_takes_another_node_in_place_of_one_that_another_got_first(
    drive: Drive, rivalry: Rivalry
) -> None:
    _close(drive, "n4")
    drive.submit("pair", "--nnodes", "2", "--nproc-per-node", "2")
    drive.goes_on("pair")
    wait_for(lambda: drive.steps("pair")[-1].step > 15)
    (spare,) = {"n1", "n2", "n3"} - set(drive.nodes_of("pair"))
    victim = drive.nodes_of("pair")[1]
    rivalry.begin(spare)
    drive.slurm.kill_node(victim)
    wait_for(lambda: spare in drive.nodes_of("pair"))
    wait_for(lambda: drive.state("pair") == "PENDING")
    message = f"node {spare}: Slurm holds it for another job"
    wait_for(lambda: message in drive.job("pair")["message"])
    drive.slurm.command("scontrol", "update", "nodename=n4", "state=resume")
    drive.goes_on("pair", 2)
    assert "n4" in drive.nodes_of("pair")
    resumed = min(step.step for step in drive.steps("pair") if step.generation == 2)
    assert resumed % 10 == 1
    assert resumed > 10
    (incident,) = drive.rest("GET", "incidents")["incidents"]
    assert (incident["fault"], incident["node"]) == ("NODE_LOST", f"nodes/{victim}")
