"""The example trainer is deterministic across a kill: without that, equal losses would prove nothing elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from switchgear.launcher.checkpoints import verify_newest

SCRIPT = Path(__file__).parents[2] / "workloads" / "examples" / "train_gpt.py"
STEPS = 12
WORLD_SIZE = 2


def start(folder: Path, *options: str, **environment: str) -> list[subprocess.Popen[bytes]]:
    """Two ranks, as any launcher would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        "WORLD_SIZE": str(WORLD_SIZE),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "SWITCHGEAR_RESUME_FROM": "",
    }
    command = [sys.executable, str(SCRIPT), "--steps", str(STEPS), "--checkpoint-every", "4", "--batch-size", "2"]
    command += ["--checkpoint-dir", str(folder / "checkpoints"), "--log-dir", str(folder / "logs"), *options]
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), **environment},
            stdout=subprocess.DEVNULL,
        )
        for rank in range(WORLD_SIZE)
    ]


def finish(ranks: list[subprocess.Popen[bytes]]) -> None:
    try:
        assert [process.wait(timeout=60) for process in ranks] == [0] * WORLD_SIZE
    finally:
        kill(ranks)


def kill(ranks: list[subprocess.Popen[bytes]]) -> None:
    for process in ranks:
        process.kill()
        process.wait()


def lines(folder: Path, rank: int) -> list[dict[str, object]]:
    path = folder / "logs" / f"loss-rank{rank}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(folder: Path) -> dict[tuple[int, object], set[object]]:
    """The losses of each (rank, step); more than one where a step that was made again differs."""
    found: dict[tuple[int, object], set[object]] = {}
    for rank in range(WORLD_SIZE):
        for line in lines(folder, rank):
            found.setdefault((rank, line["step"]), set()).add(line["loss"])
    return found


def test_a_killed_and_resumed_run_has_the_losses_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, resumed, broken = tmp_path / "whole", tmp_path / "resumed", tmp_path / "broken"
    finish(start(whole, "--keep", "2"))
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["step-00000008.pt", "step-00000012.pt"]
    newest = verify_newest(whole / "checkpoints", {}).newest_good
    assert newest is not None
    assert newest.proven

    ranks = start(resumed, "--step-sleep", "0.1")
    try:
        deadline = time.monotonic() + 60
        while len(lines(resumed, 0)) < 6:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        kill(ranks)
    shutil.copytree(resumed, broken)
    # Worker processes and a path given from outside change nothing either.
    checkpoint = resumed / "checkpoints" / "step-00000004.pt"
    finish(
        start(resumed, "--data-workers", "1", SWITCHGEAR_RESUME_FROM=str(checkpoint), SWITCHGEAR_GENERATION="2"),
    )
    assert losses(resumed) == losses(whole)
    assert [line["step"] for line in lines(resumed, 0) if line["generation"] == 2] == list(range(5, STEPS + 1))

    finish(start(broken, "--break-resume"))
    assert losses(broken) != losses(whole), "a resume that forgets the random numbers must show"
