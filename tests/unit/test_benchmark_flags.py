"""Benchmarks refuse numbers that measure nothing with what to give, before they begin."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("autoscaling.py --hard --jobs 0", "error: --jobs is 0; give 1 or more"),
        ("inference_scale.py --replicas 0", "error: --replicas is 0; give 1 to 5000"),
        ("inference_scale.py --replicas 5001", "error: --replicas is 5001; give 1 to 5000"),
        ("inference_scale.py --interval nan", "error: --interval is nan; give 0.1 to 300 seconds"),
        ("inference_scale.py --looks 0", "error: --looks is 0; give 1 or more"),
    ],
)
def test_a_number_that_measures_nothing_is_refused(command: str, told: str) -> None:
    script, *flags = command.split()
    ended = subprocess.run(
        [sys.executable, BENCHMARKS / script, *flags], check=False, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert ended.stderr.rstrip().endswith(told)
