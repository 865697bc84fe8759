"""A live service under recorded traffic, in small: nothing is lost while its policy sizes it, and the decisions replay."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "autoscaling_live.py"


@pytest.mark.timeout(180)
def test_replicas_follow_a_burst_without_a_lost_request_and_the_decisions_replay(tmp_path: Path) -> None:
    """A trickle, then three times what one replica does."""
    draw, trace = random.Random(1), tmp_path / "requests.csv"
    arrivals = sorted([draw.uniform(0, 20) for _ in range(20)] + [draw.uniform(20, 60) for _ in range(200)])
    rows = [f"{at_s:.3f},100,{draw.randrange(50, 400)}" for at_s in [0.0, *arrivals, 60.0]]
    trace.write_text("\n".join(["t_s,input_tokens,output_tokens", *rows]) + "\n")
    command = [sys.executable, str(BENCHMARK), "--trace", str(trace), "--minutes", "0.35", "--rate", "6"]
    ran = subprocess.run(
        [*command, "--json", str(tmp_path / "result.json"), "--log", str(tmp_path / "log.jsonl")],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["lost"], result["replays_the_same"]) == (0, True)
    assert max(ready for _, ready in result["ready_replicas"]) >= 2
    replay = [sys.executable, "-m", "switchgear.cli.main", "services", "replay", str(tmp_path / "log.jsonl")]
    assert "all the same" in subprocess.run(replay, capture_output=True, text=True, timeout=60, check=True).stdout
