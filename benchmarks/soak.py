"""Rounds of random faults on a 2-rank job, each round with the proofs of the demo. Every round prints its seed.

    python benchmarks/soak.py [--rounds 10] [--seed N] [--faults 3] [--json FILE]

A round trains the example GPT under `switchgear run --standalone` and breaks it at random moments: SIGKILL of a rank, a damaged
newest checkpoint and then SIGKILL, SIGKILL of the launcher itself (which is then started again). Run one seed again with
`--rounds 1 --seed N`. Exit code 1 when a proof failed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from switchgear.cli.demo import proofs
from switchgear.cli.demo.faults import damage
from switchgear.cli.demo.stage import example_trainer
from switchgear.launcher.checkpoints import QUARANTINE

RANKS = 2
STEPS = 200
CHECKPOINT_EVERY = 15
JOB = "soak"
TIMEOUT_S = 120.0


@dataclass
class Round:
    """One job, its faults and what came of them."""

    seed: int
    faults: int
    folder: Path
    reference: list[proofs.Loss]
    done: list[str] = field(default_factory=list)
    #: Damaged checkpoints found before each generation started.
    damaged: dict[int, int] = field(default_factory=dict)

    def run(self) -> list[proofs.Proof]:
        rng = random.Random(self.seed)
        state = self.folder / "state" / "standalone" / JOB
        self._start()
        try:
            for goal in sorted(rng.sample(range(10, STEPS - 20), self.faults)):
                self._wait_for_step(goal, state)
                self._count_quarantine(state)
                rng.choice((self._kill_rank, self._damage_and_kill, self._kill_launcher))(rng, state)
            self._finish()
            self._count_quarantine(state)
        finally:
            self._end()
        run, spans = proofs.read_losses(self.folder / "losses"), proofs.read_spans([state])
        return [
            proofs.same_losses(run, self.reference, steps=STEPS, ranks=RANKS),
            proofs.no_overlap(spans),
            proofs.same_step_counts(run, spans),
            proofs.bounded_redo(run, interval=CHECKPOINT_EVERY, damaged=self.damaged),
        ]

    def _start(self) -> None:
        self._process = start(self.folder, "--max-restarts", "100")

    def _wait(self, what: str, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not reached():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no {what}: {(self.folder / 'output.log').read_text()[-2000:]}")
            time.sleep(0.01)

    def _wait_for_step(self, goal: int, state: Path) -> None:
        """Until all ranks of a running generation have come so far."""

        def reached() -> bool:
            losses = proofs.read_losses(self.folder / "losses")
            newest = self._generation(state)
            now = [
                max((x.step for x in losses if x.rank == r and x.generation == newest), default=0) for r in range(RANKS)
            ]
            return self._process.poll() is not None or min(now) >= goal

        self._wait(f"step {goal}", reached)

    def _count_quarantine(self, state: Path) -> None:
        """Books what was put into quarantine since the last look on the generation that runs now: it was started after it."""
        found = len(list((self.folder / "checkpoints" / QUARANTINE).glob("*")))
        new = found - sum(self.damaged.values())
        if new:
            self.damaged[self._generation(state)] = new

    def _generation(self, state: Path) -> int:
        try:
            return int(json.loads((state / "generation.json").read_text())["generation"])
        except (OSError, ValueError):
            return 0

    def _rank_pids(self, state: Path) -> list[int]:
        """Leaders of the ranks' process groups, as the launcher wrote them down; the zygote is the last."""
        return [process["pid"] for process in json.loads((state / "generation.json").read_text())["processes"]][:RANKS]

    def _kill_rank(self, rng: random.Random, state: Path) -> None:
        pid = rng.choice(self._rank_pids(state))
        self.done.append("rank killed")
        _kill(pid)

    def _damage_and_kill(self, rng: random.Random, state: Path) -> None:
        newest = max((self.folder / "checkpoints").glob("step-*.pt"), default=None, key=lambda path: path.name)
        if newest:
            if rng.random() < 0.5:
                damage(newest)
            else:
                os.truncate(newest, rng.randrange(newest.stat().st_size))
        self.done.append("checkpoint damaged, rank killed" if newest else "rank killed")
        _kill(rng.choice(self._rank_pids(state)))

    def _kill_launcher(self, rng: random.Random, state: Path) -> None:  # noqa: ARG002
        self.done.append("launcher killed")
        self._process.kill()
        self._process.wait()
        self._start()

    def _finish(self) -> None:
        self._process.wait(TIMEOUT_S)
        if self._process.returncode:
            raise RuntimeError(f"the job failed: {(self.folder / 'output.log').read_text()[-2000:]}")

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(20)


def start(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """The job as a user would start it; started again in the same folder it goes on."""
    command = [
        sys.executable,
        "-m",
        "switchgear.cli.main",
        "run",
        "--standalone",
        "--nproc-per-node",
        str(RANKS),
        "--name",
        JOB,
    ]
    trainer = [str(example_trainer()), "--steps", str(STEPS), "--checkpoint-every", str(CHECKPOINT_EVERY)]
    folders = ["--checkpoint-dir", str(folder / "checkpoints"), "--log-dir", str(folder / "losses")]
    with (folder / "output.log").open("ab") as log:
        return subprocess.Popen(
            [*command, *options, "--checkpoint-dir", str(folder / "checkpoints"), "--", *trainer, *folders],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "SWITCHGEAR_STATE_DIR": str(folder / "state")},
        )


def reference(folder: Path) -> list[proofs.Loss]:
    """The losses of the same training without any fault."""
    folder.mkdir()
    process = start(folder, "--max-restarts", "0")
    if process.wait(TIMEOUT_S):
        raise RuntimeError(f"the reference run failed: {(folder / 'output.log').read_text()[-2000:]}")
    return proofs.read_losses(folder / "losses")


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it fell by itself a moment ago, with its generation


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--faults", type=int, default=3, help="faults a round (default: 3)")
    parser.add_argument("--seed", type=int, help="seed of the first round (default: from the clock)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    first = time.time_ns() % 1_000_000 if args.seed is None else args.seed
    folder = Path(tempfile.mkdtemp(prefix="switchgear-soak-"))
    expected, told, failed = reference(folder / "reference"), [], 0
    for seed in range(first, first + args.rounds):
        place = folder / str(seed)
        place.mkdir()
        began = time.monotonic()
        one = Round(seed, args.faults, place, expected)
        try:
            results = one.run()
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            results = [proofs.Proof("the job ends well", False, str(error))]
        bad = [proof for proof in results if not proof.held]
        failed += bool(bad)
        print(
            f"seed {seed}  {'FAILED' if bad else 'held'}  {time.monotonic() - began:5.1f} s  {', '.join(one.done)}",
            flush=True,
        )
        for proof in bad:
            print(f"    {proof.claim}: {proof.detail}")
        told.append({"seed": seed, "faults": one.done, "proofs": [asdict(proof) for proof in results]})
        if not bad:
            shutil.rmtree(place)
    print(
        f"{args.rounds - failed} of {args.rounds} rounds held every proof"
        + (f"; the others are in {folder}" if failed else "")
    )
    if args.json:
        args.json.write_text(json.dumps(told, indent=2) + "\n")
    if not failed:
        shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
