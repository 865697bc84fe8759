"""The double in tests: skipped where it cannot be built, a failure where SWITCHGEAR_REQUIRE_SERVICES=1 says that it must be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from nvml_double.build import Unbuildable
from nvml_double.scenario import Scenario


def scenario_or_skip(
    folder: Path, gpus: int = 8, *, board: str = "h100", moving: bool = False, without: Sequence[str] = ()
) -> Scenario:
    """A `Scenario` with these arguments."""
    try:
        return Scenario(folder, gpus, board=board, moving=moving, without=without)
    except Unbuildable as error:
        if os.environ.get("SWITCHGEAR_REQUIRE_SERVICES") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))


def run_python(scenario: Scenario, code: str, timeout_s: float = 30.0) -> str:
    """What the code prints in a process of its own: the loader looks for libnvidia-ml.so.1 before main begins."""
    command = [sys.executable, "-c", code]
    ended = subprocess.run(
        command, env=scenario.environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
