"""`switchgear run` inside of a real Slurm's allocation, from a plain batch script."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from launcher_world import TRAIN
from slurm_cluster import SlurmCluster
from terminal import SWITCHGEAR, wait_for

from switchgear.cli.demo import proofs

#: Ranks of a lost node are waited for as long, when nobody vouches for their end.
LEASE = {"SWITCHGEAR_LEASE_SECONDS": "3", "SWITCHGEAR_LEASE_MARGIN_SECONDS": "3"}


#: Goes on for ever, and in one generation to an end, so that no test depends on how fast it gets there.
TRAIN_UNTIL = TRAIN.replace(
    "ddp = DDP", 'if int(os.environ["SWITCHGEAR_GENERATION"]) == int(sys.argv[3]): steps = done + 10\nddp = DDP'
)


class Batch:
    """A batch script of one line of ours, which trains. last_generation: the one that trains to an end."""

    def __init__(
        self, slurm: SlurmCluster, folder: Path, *options: str, run: Sequence[str] = (), last_generation: int
    ) -> None:
        self.slurm, self.folder = slurm, folder
        (folder / "train.py").write_text(TRAIN_UNTIL)
        self.checkpoints = folder / "checkpoints"
        self.checkpoints.mkdir(exist_ok=True)
        script = ("train.py", "1000000", "0.05", str(last_generation))
        command = [*SWITCHGEAR, "run", "--checkpoint-dir", str(self.checkpoints), *run, *script]
        environment = {"SWITCHGEAR_STATE_DIR": str(folder / "state"), "OMP_NUM_THREADS": "1", **LEASE}
        exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in environment.items())
        line = f"srun --no-kill --ntasks-per-node=1 {shlex.join(command)}"
        options = ("--gres=gpu:2", "--no-kill", "--requeue", "--open-mode=append", *options)
        self.id = slurm.submit(f"cd {folder}\n{exports}\n{line}", "--job-name=train", *options)

    @property
    def output(self) -> str:
        path = self.slurm.folder / f"slurm-{self.id}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def says(self, text: str, timeout_s: float = 60) -> None:
        try:
            wait_for(lambda: re.search(text, self.output), timeout_s)
        except AssertionError:
            pytest.fail(f"never said {text!r}:\n{self.output}{self.slurm.logs()}")

    def ends(self, state: str = "COMPLETED", timeout_s: float = 60) -> str:
        """What it has said."""
        try:
            wait_for(lambda: self.slurm.job_state(self.id) not in {"PENDING", "RUNNING", "COMPLETING"}, timeout_s)
        except AssertionError:
            pytest.fail(f"did not end:\n{self.output}{self.slurm.logs()}")
        assert self.slurm.job_state(self.id) == state, self.output
        return self.output

    def rank_pids(self, node: str) -> list[int]:
        (state,) = (self.folder / "state/standalone").glob(f"*@{node}/generation.json")
        return [process["pid"] for process in json.loads(state.read_text())["processes"]][:2]

    def spans(self) -> list[proofs.Span]:
        return proofs.read_spans(sorted((self.folder / "state/standalone").glob("*@*")))

    def has_checkpoints(self) -> int:
        """How many, at least one."""
        wait_for(lambda: list(self.checkpoints.glob("step-*.pt")))
        return len(list(self.checkpoints.glob("step-*.pt")))


def lose(slurm: SlurmCluster, node: str) -> None:
    """All at once, as when the power is cut: no process there sees another one die and tells Slurm."""
    for pid in slurm.processes_on(node):
        os.kill(pid, signal.SIGSTOP)
    slurm.kill_node(node)


def see_lost(slurm: SlurmCluster, node: str) -> None:
    """What slurmctld finds by itself after 25 s, at the shortest SlurmdTimeout too."""
    slurm.command("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")


def test_a_lost_node_is_drained_and_a_spare_of_the_allocation_takes_its_place(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    batch = Batch(slurm, tmp_path, "--nodes=3", run=("--nnodes", "2", "--drain", "act"), last_generation=2)
    batch.has_checkpoints()
    slurm.stop_controller()  # which is not needed for it
    lose(slurm, "n2")
    batch.says(r"\[rank 3\] done")
    slurm.start_controller()
    batch.says("n2 is drained: switchgear: contact with nodes/n2 was lost")
    reasons = slurm.command("sinfo", "--list-reasons", "--noheader", "--Node", "--format=%N %E")
    assert reasons == "n2 switchgear: contact with nodes/n2 was lost"
    see_lost(slurm, "n2")
    said = batch.ends()
    assert all(f"[rank {rank}] done" in said for rank in range(4)), said
    assert "nodes/n2 given up; 2 of 2 nodes are here" in said, said
    assert {span.generation for span in batch.spans()} == {1, 2}
    assert proofs.no_overlap(batch.spans()).held


@pytest.mark.slow
def test_with_too_few_nodes_left_the_job_is_requeued_without_the_lost_one(slurm: SlurmCluster, tmp_path: Path) -> None:
    batch = Batch(slurm, tmp_path, "--nodes=2", last_generation=2)
    batch.has_checkpoints()
    lose(slurm, "n2")
    batch.says("waits until Slurm has given up n2 too")
    see_lost(slurm, "n2")
    batch.says("requeues the job without n2; run 2 goes on from the newest checkpoint")
    said = batch.ends()
    assert "advice: scontrol update nodename=n2 state=drain reason='switchgear: contact with nodes/n2 was lost'" in said
    assert all(f"[rank {rank}] done" in said for rank in range(4)), said
    assert "ExcNodeList=n2" in slurm.command("scontrol", "show", "job", str(batch.id))
    assert proofs.no_overlap(batch.spans()).held


def test_ranks_that_outlive_their_run_never_write_again_once_the_requeued_job_begins(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    """Slurm loses sight of a node, and starts the job elsewhere while its ranks go on."""
    batch = Batch(slurm, tmp_path, "--nodes=1", last_generation=2)
    batch.has_checkpoints()
    slurm.kill_node("n1", jobs=False)
    see_lost(slurm, "n1")
    wait_for(lambda: slurm.job_state(batch.id) == "PENDING")
    before = batch.has_checkpoints()
    wait_for(lambda: batch.has_checkpoints() > before)  # they do
    slurm.command("scontrol", "update", f"jobid={batch.id}", "starttime=now")
    said = batch.ends()
    assert all(f"[rank {rank}] done" in said for rank in range(2)), said
    spans = batch.spans()
    assert sorted((span.generation, span.rank) for span in spans) == [(g, r) for g in (1, 2) for r in range(2)]
    assert proofs.no_overlap(spans).held


def test_a_killed_rank_costs_a_restart_in_the_allocation_and_a_run_whose_time_ends_is_chained_to_the_next(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    batch = Batch(slurm, tmp_path, "--nodes=2", run=("--chain", "2"), last_generation=3)
    batch.has_checkpoints()
    os.kill(batch.rank_pids("n2")[0], signal.SIGKILL)
    batch.says(r"Rank \d on nodes/n2 was killed by SIGKILL after step \d+ .* restarted in place")
    slurm.command("scancel", "--signal=USR1", f"{batch.id}.0")
    batch.says("stops here: SIGUSR1 has announced the end, and a checkpoint has been written since")
    batch.says("requeues the job; run 2 goes on from the newest checkpoint")
    said = batch.ends()
    assert all(f"[rank {rank}] done" in said for rank in range(4)), said
    spans = batch.spans()
    assert sorted((span.generation, span.rank) for span in spans) == [(g, r) for g in (1, 2, 3) for r in range(4)]
    assert proofs.no_overlap(spans).held


@pytest.mark.slow
def test_a_run_stops_before_its_time_limit_with_a_code_of_its_own(slurm: SlurmCluster, tmp_path: Path) -> None:
    batch = Batch(slurm, tmp_path, "--nodes=2", "--time=1", last_generation=2)
    said = batch.ends("FAILED")
    assert "stops here: the time limit is over in" in said, said
    assert "ExitCode=75:0" in slurm.command("scontrol", "show", "job", str(batch.id))


@pytest.mark.slow
def test_when_the_node_that_keeps_the_job_together_is_lost_the_others_have_it_requeued(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    """It runs the batch script too, without which Slurm would leave the job standing until its time limit."""
    batch = Batch(slurm, tmp_path, "--nodes=2", last_generation=2)
    batch.has_checkpoints()
    lose(slurm, "n1")
    see_lost(slurm, "n1")
    said = batch.ends()
    assert all(f"[rank {rank}] done" in said for rank in range(4)), said
    assert "ExcNodeList=n1" in slurm.command("scontrol", "show", "job", str(batch.id))
    spans = batch.spans()
    assert {span.rank for span in spans if span.generation == 2} == {0, 1, 2, 3}
    assert proofs.no_overlap(spans).held
