"""Many faults on one long job: it must finish with the losses of an undisturbed run, and its ledger must account for every second.

    python benchmarks/campaign.py [--minutes 10] [--rate 8] [--seed N] [--keep] [--json FILE]

A control plane, two nodes with a rank each and a spare train the example GPT. For so many minutes, `rate` faults a minute, each of
a kind that the seed chooses: SIGKILL and SIGSTOP of a rank, a hang and an exception in a step, a damaged checkpoint and then SIGKILL of
a rank, SIGKILL of a launcher, of an agent, of the control plane itself. Then the job goes on to its end. A fault waits while two before
it have not been followed by a new step, since three in a row end a job. Exit code 1 when a proof fails.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from faultbench.cluster import start

from switchgear.cli.client import Client, connect, whole_list
from switchgear.cli.demo import proofs
from switchgear.cli.demo.faults import damage
from switchgear.cli.demo.patience import Patience
from switchgear.cli.demo.stage import NODES, Stage, example_trainer
from switchgear.core.errors import FailedPrecondition, Reason, SwitchgearError
from switchgear.launcher import proc
from switchgear.launcher.state import is_held
from switchgear.v1 import job_service_pb2 as jobs
from switchgear.v1 import recovery_service_pb2 as recovery

BREAKABLE = Path(__file__).parent / "breakable.py"
JOB = "campaign"
NAME = f"jobs/{JOB}"
RANKS = 2
CHECKPOINT_EVERY = 20
#: Stretches a step, so that faults and not steps fill the time: without any fault about 350 steps a minute.
STEP_SLEEP_S = 0.15
STEPS_A_MINUTE = 300
POLL_S = 0.2
FINAL = {jobs.Job.SUCCEEDED, jobs.Job.FAILED, jobs.Job.CANCELLED}


@dataclass
class Campaign:
    """One job on a stage, its faults and what came of them."""

    stage: Stage
    client: Client
    folder: Path
    minutes: float
    rate: float
    seed: int
    #: Of the fault that is made now: what one finds to break must not change what comes after it.
    rng: random.Random = field(default_factory=random.Random)
    done: list[str] = field(default_factory=list)
    spans: dict[tuple[int, int], proofs.Span] = field(default_factory=dict)
    #: Newest step that was ever written, and what it was when each fault was made.
    high_water: int = 0
    marks: list[int] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return int(self.minutes * STEPS_A_MINUTE)

    def run(self) -> recovery.JobGoodput:
        """Raises FailedPrecondition when the job does not come through."""
        spec = jobs.JobSpec(
            argv=trainer(self.folder, self.steps, STEP_SLEEP_S),
            working_directory=str(self.folder),
            environment={"OMP_NUM_THREADS": "1"},
            python=sys.executable,
            nnodes=RANKS,
            nproc_per_node=1,
            max_restarts=1000,
            checkpoint_directory=str(self.folder / "checkpoints"),
        )
        self.client.jobs.CreateJob(jobs.CreateJobRequest(job=jobs.Job(spec=spec), job_id=JOB, request_id=JOB))
        self._until(lambda: self.high_water >= CHECKPOINT_EVERY + 5, 120, "first steps")
        began, period_s = time.monotonic(), 60 / self.rate
        struck = began
        for number in range(int(self.minutes * self.rate)):
            self.rng = random.Random(f"{self.seed}/{number}")
            due, kind = began + (number + self.rng.uniform(0.0, 0.8)) * period_s, self.rng.choice(KINDS)
            # One that had to wait must not fall together with the next.
            while time.monotonic() < max(due, struck + period_s / 4) or not self._may_strike():
                self._look()
            struck = time.monotonic()
            self.marks.append(self.high_water)
            print(f"{time.monotonic() - began:6.1f} s  step {self.high_water:5d}  {kind(self, number)}", flush=True)
        self._until(self._ended, 240 + 60 * self.minutes, "the end of the job")
        self._take_spans()
        return self.client.recovery.GetJobGoodput(recovery.GetJobGoodputRequest(name=f"{NAME}/goodput"))

    def _may_strike(self) -> bool:
        if any(self.folder.glob("fault-*")):
            return False  # a fault that was asked for is still to be made
        return len(self.marks) < 2 or self.high_water > self.marks[-2]

    def _until(self, reached: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not reached():
            if time.monotonic() > deadline:
                raise FailedPrecondition(f"waited {timeout_s:.0f} s in vain for {what}", Reason.INTERNAL)
            self._look()

    def _look(self) -> None:
        time.sleep(POLL_S)
        self.stage.check()
        try:
            with (self.folder / "losses" / "loss-rank0.jsonl").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                whole = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
                self.high_water = max(self.high_water, json.loads(whole[-1])["step"])
        except (FileNotFoundError, IndexError):
            pass
        if self._job_state() in (jobs.Job.FAILED, jobs.Job.CANCELLED):
            job = self.client.jobs.GetJob(jobs.GetJobRequest(name=NAME))
            raise FailedPrecondition(f"the job ended {jobs.Job.State.Name(job.state)}: {job.message}", Reason.JOB_ENDED)

    def _job_state(self) -> int:
        return self.client.jobs.GetJob(jobs.GetJobRequest(name=NAME)).state

    def _ended(self) -> bool:
        return self._job_state() in FINAL

    def _take_spans(self) -> None:
        """Launchers keep the step logs of their newest generations only."""
        self.spans.update({(s.generation, s.rank): s for s in proofs.read_spans(self.stage.launcher_dirs(JOB))})

    def _rank(self) -> int:
        """A rank that lives, by pid; its leader is the first that its launcher wrote down. 0 when none does."""
        self._take_spans()
        found = []
        for folder in self.stage.launcher_dirs(JOB):
            try:
                processes = json.loads((folder / "generation.json").read_text())["processes"][:1]
            except (OSError, ValueError):
                continue
            found += [p["pid"] for p in processes if is_held(folder) and proc.start_ticks(p["pid"]) == p["start_ticks"]]
        return self.rng.choice(sorted(found)) if found else 0

    def _signal(self, number: signal.Signals) -> str:
        pid = self._rank()
        if pid:
            _send(pid, number)
        return f"{number.name} of {f'process {pid}' if pid else 'a rank: none runs'}"

    def kill_rank(self, number: int) -> str:  # noqa: ARG002  # each kind has this form
        self.done.append("rank killed")
        return self._signal(signal.SIGKILL)

    def stop_rank(self, number: int) -> str:  # noqa: ARG002
        self.done.append("rank stopped")
        return self._signal(signal.SIGSTOP)

    def hang(self, number: int) -> str:
        self.done.append("hang")
        return self._ask(f"hang {number}")

    def exception(self, number: int) -> str:
        self.done.append("exception")
        return self._ask(f"raise {number}")

    def _ask(self, wish: str) -> str:
        self._take_spans()
        rank = self.rng.randrange(RANKS)
        hidden = self.folder / f".fault-{rank}"
        hidden.write_text(wish)
        hidden.rename(self.folder / f"fault-{rank}")
        return f"rank {rank} shall {wish}"

    def damage_and_kill(self, number: int) -> str:  # noqa: ARG002
        self.done.append("checkpoint damaged, rank killed")
        newest = max((self.folder / "checkpoints").glob("step-*.pt"), default=None, key=lambda path: path.name)
        if newest and self.rng.random() < 0.5:
            damage(newest)
        elif newest:
            os.truncate(newest, self.rng.randrange(newest.stat().st_size))
        return f"{newest.name if newest else 'no checkpoint'} damaged, {self._signal(signal.SIGKILL)}"

    def kill_launcher(self, number: int) -> str:  # noqa: ARG002
        self.done.append("launcher killed")
        self._take_spans()
        held = [folder for folder in self.stage.launcher_dirs(JOB) if is_held(folder)]
        if not held:
            return "SIGKILL of a launcher: none runs"
        chosen = self.rng.choice(sorted(held))
        _send(int((chosen / "lock").read_text()), signal.SIGKILL)
        return f"SIGKILL of the launcher on {chosen.parent.parent.name}"

    def kill_agent(self, number: int) -> str:  # noqa: ARG002
        self.done.append("agent killed")
        return self._kill(self.rng.choice(NODES))

    def kill_control_plane(self, number: int) -> str:  # noqa: ARG002
        self.done.append("control plane killed")
        return self._kill("up")

    def _kill(self, name: str) -> str:
        self.stage.kill(name)
        return f"SIGKILL of {name}, started again"

    def proofs(
        self, goodput: recovery.JobGoodput, reference: Sequence[proofs.Loss], took_s: float
    ) -> list[proofs.Proof]:
        run = proofs.read_losses(self.folder / "losses")
        spans = sorted(self.spans.values(), key=lambda span: (span.generation, span.rank))
        request = recovery.ListIncidentsRequest(job=NAME)
        incidents = whole_list(self.client.recovery.ListIncidents, request, "incidents")
        asked = int(self.minutes * self.rate)
        return [
            proofs.Proof("as many faults as asked for", len(self.done) == asked, _counted(self.done)),
            proofs.Proof("the job finished", self._job_state() == jobs.Job.SUCCEEDED, f"{self.steps} steps"),
            proofs.same_losses(run, reference, steps=self.steps, ranks=RANKS),
            proofs.no_overlap(spans),
            proofs.same_step_counts(run, spans),
            proofs.bounded_redo(run, interval=CHECKPOINT_EVERY, damaged=_damaged(run, incidents)),
            hangs_named(incidents),
            exact(goodput, took_s),
        ]


KINDS = (
    Campaign.kill_rank,
    Campaign.stop_rank,
    Campaign.hang,
    Campaign.exception,
    Campaign.damage_and_kill,
    Campaign.kill_launcher,
    Campaign.kill_agent,
    Campaign.kill_control_plane,
)


def hangs_named(incidents: Sequence[recovery.Incident]) -> proofs.Proof:
    """Of every hang that was found the rank is named, and its stack has the function that hung."""
    hung = [incident for incident in incidents if incident.fault == "RANK_HUNG"]
    wrong = [incident for incident in hung if not incident.HasField("rank") or "stuck" not in incident.stack]
    detail = f"{len(hung)} hangs" if not wrong else f"{len(wrong)} of {len(hung)} not: {wrong[0].summary}"
    return proofs.Proof("the right rank of each hang is named, with its stack", not wrong, detail)


def exact(goodput: recovery.JobGoodput, took_s: float) -> proofs.Proof:
    """The buckets sum to the GPU-seconds, those are the wall clock times the GPUs, and the wall clock is ours."""
    claim = "the ledger's buckets sum to the wall clock"
    booked = sum(bucket.gpu_seconds for bucket in goodput.buckets)
    off_s = max(abs(booked - goodput.gpu_seconds), abs(goodput.gpu_seconds - RANKS * goodput.wall_seconds))
    detail = f"{booked:.6f} GPU-seconds booked, {goodput.gpu_seconds:.6f} in all, {took_s:.1f} s by our own clock"
    # Sums of doubles; our own clock starts before the submission and ends after the job.
    held = (
        off_s < 1e-5 and min(b.gpu_seconds for b in goodput.buckets) >= 0 and -0.1 < took_s - goodput.wall_seconds < 5
    )
    return proofs.Proof(claim, held, detail)


def _damaged(run: Sequence[proofs.Loss], incidents: Sequence[recovery.Incident]) -> dict[int, int]:
    """Checkpoints that each generation had to pass by: damaged ones between where it began and the newest step before it."""
    paths = [path for incident in incidents for path in incident.quarantined_checkpoints]
    found = {int(step) for path in paths for step in re.findall(r"step-(\d+)\.pt", path)}
    first = {loss.generation: loss.step for loss in sorted(run, key=lambda loss: -loss.step)}
    newest = {loss.generation: loss.step for loss in sorted(run, key=lambda loss: loss.step)}
    high_water, passed = 0, {}
    for generation in sorted(first):
        passed[generation] = sum(first[generation] <= step <= high_water for step in found)
        high_water = max(high_water, newest[generation])
    return passed


def trainer(folder: Path, steps: int, sleep_s: float) -> list[str]:
    shape = ["--steps", str(steps), "--checkpoint-every", str(CHECKPOINT_EVERY), "--step-sleep", str(sleep_s)]
    folders = ["--checkpoint-dir", str(folder / "checkpoints"), "--log-dir", str(folder / "losses")]
    return [str(BREAKABLE), str(folder), str(example_trainer()), *shape, *folders]


def reference(folder: Path, steps: int) -> list[proofs.Loss]:
    """The losses of the same training on this machine without any fault."""
    folder.mkdir()
    run = ["run", "--standalone", "--nproc-per-node", str(RANKS), "--name", "reference", "--max-restarts", "0", "--"]
    with (folder / "output.log").open("wb") as log:
        subprocess.run(
            [sys.executable, "-m", "switchgear.cli.main", *run, *trainer(folder, steps, 0.0)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "SWITCHGEAR_STATE_DIR": str(folder / "state"), "OMP_NUM_THREADS": "1"},
            check=True,
            timeout=60 + steps,
        )
    return proofs.read_losses(folder / "losses")


def _counted(done: Sequence[str]) -> str:
    return ", ".join(f"{count} x {kind}" for kind, count in sorted(Counter(done).items()))


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # it fell by itself a moment ago, with its generation


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=8, metavar="N", help="faults a minute (default: 8)")
    parser.add_argument("--seed", type=int, help="(default: from the clock)")
    parser.add_argument("--keep", action="store_true", help="leave the folder with all logs there")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    seed = time.time_ns() % 1_000_000 if args.seed is None else args.seed
    place = Path(tempfile.mkdtemp(prefix="switchgear-campaign-"))
    folder = place / "job"
    folder.mkdir()
    print(f"seed {seed}, {args.minutes * args.rate:.0f} faults; about {1.5 * args.minutes + 2:.0f} minutes", flush=True)
    stage = Stage(place / "stage")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends in order, as on Ctrl-C
    try:
        expected = reference(place / "reference", int(args.minutes * STEPS_A_MINUTE))
        start(stage)
        with connect(stage.addresses.grpc, Patience(stage.check)) as client:
            campaign = Campaign(stage, client, folder, args.minutes, args.rate, seed)
            began = time.monotonic()
            goodput = campaign.run()
            results = campaign.proofs(goodput, expected, time.monotonic() - began)
        report = goodput.report
    except (SwitchgearError, subprocess.SubprocessError) as error:
        results, report = [proofs.Proof("the campaign came to its end", False, str(error))], ""
    finally:
        stage.close()
    print(f"\n{report}\n" if report else "")
    for proof in results:
        print(f"{'held  ' if proof.held else 'FAILED'}  {proof.claim}: {proof.detail}")
    held = all(proof.held for proof in results)
    if args.json:
        args.json.write_text(
            json.dumps({"seed": seed, "proofs": [asdict(proof) for proof in results]}, indent=2) + "\n"
        )
    if held and not args.keep:
        shutil.rmtree(place, ignore_errors=True)
    else:
        print(f"logs and state are in {place}; the same faults again: --seed {seed}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
