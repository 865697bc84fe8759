"""The first act of the demo: a real training job, three faults, and what proves that it came through them unharmed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from switchgear.cli.client import Client, progress_of, whole_list
from switchgear.cli.demo import faults, proofs
from switchgear.cli.demo.report import FaultReport, TrainingReport, fault_report
from switchgear.cli.demo.stage import GPUS_PER_NODE, NODES, Stage, example_trainer, wait_for
from switchgear.cli.goodput import of_job
from switchgear.core.errors import FailedPrecondition, Reason
from switchgear.v1 import fleet_service_pb2 as fleet
from switchgear.v1 import job_service_pb2 as jobs
from switchgear.v1 import recovery_service_pb2 as recovery

JOB = "jobs/demo"
NNODES = 2
RANKS = NNODES * GPUS_PER_NODE
CHECKPOINT_EVERY = 20
#: What is promised for a killed rank on a machine as busy as this one.
FIRST_STEP_S_MAX = 3.0
_FINAL = {jobs.Job.SUCCEEDED, jobs.Job.FAILED, jobs.Job.CANCELLED}


@dataclass
class Training:
    """One job on a stage. say: tells a line. interlude: called once, between the second and the third fault."""

    stage: Stage
    client: Client
    steps: int
    say: Callable[[str], None]
    interlude: Callable[[], None]
    break_resume: bool = False

    @property
    def checkpoints(self) -> Path:
        return self.stage.folder / "job" / "checkpoints"

    def run(self) -> TrainingReport:
        """Raises FailedPrecondition when the job does not come through."""
        wait_for("three healthy nodes", self._healthy, 60, self.stage.check)
        self.say(
            f"nodes {', '.join(NODES)} are healthy: {GPUS_PER_NODE} simulated GPUs each, the last node is the spare"
        )
        request = jobs.CreateJobRequest(job=jobs.Job(spec=self._spec()), job_id=JOB.split("/")[1], request_id="demo")
        self.client.jobs.CreateJob(request)
        self.say(
            f"submitted {JOB}: a GPT on {RANKS} ranks over {NNODES} nodes, a checkpoint every {CHECKPOINT_EVERY} steps"
        )
        told = self._break_three_times()
        job = self._until_end()
        progress, goodput = self._progress(), of_job(self.client, JOB)
        if job.state != jobs.Job.SUCCEEDED:
            raise FailedPrecondition(f"{JOB} ended {jobs.Job.State.Name(job.state)}: {job.message}", Reason.JOB_ENDED)
        self.say(f"{JOB} is done after step {progress.step}; now the same training without any fault, for comparison")
        self._reference()
        return TrainingReport(
            faults=told,
            steps=self.steps,
            ranks=RANKS,
            goodput=goodput.goodput,
            wall_s=goodput.wall_seconds,
            gpu_seconds={bucket.bucket: bucket.gpu_seconds for bucket in goodput.buckets},
            account=goodput.report.splitlines(),
            proofs=self._proofs(told),
        )

    def loss(self) -> float | None:
        """The newest of rank 0; None before the first."""
        try:
            newest = proofs.read_losses(self.stage.folder / "job" / "losses", rank=0)[-1]
        except (OSError, IndexError):
            return None
        return float.fromhex(newest.value)

    def _break_three_times(self) -> list[FaultReport]:
        told = []
        self._run_to(self.steps * 15 // 100)
        told.append(self._recover(faults.kill_rank(self._progress(), 1), FIRST_STEP_S_MAX))
        self._run_to(self.steps * 40 // 100)
        told.append(self._recover(faults.lose_gpu(self.stage.agent_dir(NODES[1]), f"nodes/{NODES[1]}"), None))
        self._run_to(self.steps * 55 // 100)
        self.interlude()
        self._run_to(self.steps * 70 // 100)
        told.append(self._recover(self._damage_and_kill(), FIRST_STEP_S_MAX))
        return told

    def _damage_and_kill(self) -> faults.Injected:
        def verified() -> recovery.Checkpoint | None:
            request = recovery.ListCheckpointsRequest(parent=JOB)
            newest = next(iter(whole_list(self.client.recovery.ListCheckpoints, request, "checkpoints")), None)
            return newest if newest and newest.state == recovery.Checkpoint.VERIFIED else None

        newest = wait_for("a verified checkpoint", verified, 30, self.stage.check)
        what = faults.damage(Path(newest.path))
        killed = faults.kill_rank(self._progress(), RANKS - 1)
        return faults.Injected("checkpoint damaged, then rank killed", f"{what}, then {killed.what}", killed.time_ns)

    def _recover(self, injected: faults.Injected, bound_s: float | None) -> FaultReport:
        """Waits until the incident of the fault is closed by the first new step."""
        self.say(f"FAULT: {injected.what}")

        def closed() -> recovery.Incident | None:
            request = recovery.ListIncidentsRequest(page_size=1, job=JOB)
            newest = next(iter(self.client.recovery.ListIncidents(request).incidents), None)
            after = newest and any(
                e.phase == "detected" and e.time.ToNanoseconds() >= injected.time_ns for e in newest.timeline
            )
            return (
                newest
                if newest and after and newest.state in (recovery.Incident.RESOLVED, recovery.Incident.ESCALATED)
                else None
            )

        incident = wait_for("the end of the incident", closed, 90, self._check)
        if incident.state != recovery.Incident.RESOLVED:
            raise FailedPrecondition(f"not recovered: {incident.summary}", Reason.INTERNAL)
        report = fault_report(injected, incident, bound_s)
        self.say(f"recovered in {report.first_step_s:.2f} s: {report.summary}")
        return report

    def _run_to(self, step: int) -> None:
        """Lets the job train past a step that is half-way between two checkpoints, with a line now and then."""
        goal = step // CHECKPOINT_EVERY * CHECKPOINT_EVERY + CHECKPOINT_EVERY // 2
        told = [time.monotonic()]

        def reached() -> int | None:
            now = self._progress()
            if time.monotonic() - told[0] > 2:
                told[0] = time.monotonic()
                self.say(f"step {now.step} of {self.steps}, attempt {now.generation}")
            # In the middle between two checkpoints, also when an interlude took long.
            middle = abs(now.step % CHECKPOINT_EVERY - CHECKPOINT_EVERY // 2) <= CHECKPOINT_EVERY // 4
            return now.step if now.step >= goal and middle else None

        wait_for(f"step {goal}", reached, 90, self._check)

    def _until_end(self) -> jobs.Job:
        def ended() -> jobs.Job | None:
            job = self.client.jobs.GetJob(jobs.GetJobRequest(name=JOB))
            return job if job.state in _FINAL else None

        return wait_for("the end of the job", ended, 120, self.stage.check)

    def _healthy(self) -> bool | None:
        found = self.client.fleet.ListNodes(fleet.ListNodesRequest()).nodes
        return True if sum(node.state == fleet.Node.HEALTHY for node in found) == len(NODES) else None

    def _progress(self) -> recovery.JobProgress:
        return progress_of(self.client, JOB) or recovery.JobProgress()

    def _check(self) -> None:
        self.stage.check()
        job = self.client.jobs.GetJob(jobs.GetJobRequest(name=JOB))
        if job.state in (jobs.Job.FAILED, jobs.Job.CANCELLED):
            raise FailedPrecondition(f"{JOB} {jobs.Job.State.Name(job.state)}: {job.message}", Reason.JOB_ENDED)

    def _trainer(self, folder: Path) -> list[str]:
        arguments = [
            *("--steps", str(self.steps), "--checkpoint-every", str(CHECKPOINT_EVERY)),
            *("--checkpoint-dir", str(folder / "checkpoints"), "--log-dir", str(folder / "losses")),
        ]
        return [str(example_trainer()), *arguments]

    def _spec(self) -> jobs.JobSpec:
        folder = self.stage.folder / "job"
        folder.mkdir()
        return jobs.JobSpec(
            argv=[*self._trainer(folder), *(["--break-resume"] if self.break_resume else [])],
            working_directory=str(folder),
            python=sys.executable,
            nnodes=NNODES,
            nproc_per_node=GPUS_PER_NODE,
            max_restarts=3,
            checkpoint_directory=str(folder / "checkpoints"),
        )

    def _reference(self) -> None:
        """The same training with the same number of ranks on this machine, never interrupted."""
        folder = self.stage.folder / "reference"
        folder.mkdir()
        command = [
            *(sys.executable, "-m", "switchgear.cli.main", "run", "--standalone", "--nproc-per-node", str(RANKS)),
            *("--name", "reference", "--max-restarts", "0", "--", *self._trainer(folder)),
        ]
        with (folder / "output.log").open("wb") as log:
            ended = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "SWITCHGEAR_STATE_DIR": str(folder / "state")},
                check=False,
                timeout=180,
            )
        if ended.returncode:
            raise FailedPrecondition(
                f"the reference run failed; its output is in {folder / 'output.log'}", Reason.INTERNAL
            )

    def _proofs(self, told: list[FaultReport]) -> list[proofs.Proof]:
        run = proofs.read_losses(self.stage.folder / "job" / "losses")
        reference = proofs.read_losses(self.stage.folder / "reference" / "losses")
        spans = proofs.read_spans(self.stage.launcher_dirs(JOB.split("/")[1]))
        # The n-th fault ends generation n.
        damaged = {number + 2: len(fault.quarantined) for number, fault in enumerate(told)}
        return [
            proofs.same_losses(run, reference, steps=self.steps, ranks=RANKS),
            proofs.no_overlap(spans),
            proofs.same_step_counts(run, spans),
            proofs.bounded_redo(run, interval=CHECKPOINT_EVERY, damaged=damaged),
            proofs.same_redo(run, {number + 2: fault.steps_redone for number, fault in enumerate(told)}),
            proofs.Proof(
                "the damaged checkpoint was found and skipped",
                len(told[2].quarantined) == 1,
                ", ".join(told[2].quarantined) or "nothing was put into quarantine",
            ),
        ]
