"""Simulated GPUs report what the agent gets out of NVML for a GPU of that model, at the same pace."""

from __future__ import annotations

from pathlib import Path

import pytest
from nvml_agent import NvmlAgent
from nvml_double.fixtures import scenario_or_skip

from switchgear.core.clock import ManualClock
from switchgear.sim.gpus import SimulatedGpus

#: Serial numbers, and counts over the agent's own samples: made by the NVML source itself.
NOT_SIMULATED = {"switchgear_gpu_info", "DCGM_EXP_CLOCK_EVENTS_COUNT"}


@pytest.mark.parametrize(("board", "profile"), [("a100", "A100"), ("h100", "H100"), ("b200", "B200")])
def test_a_simulated_gpu_has_the_metrics_of_a_real_one(board: str, profile: str, tmp_path: Path) -> None:
    agent = NvmlAgent(scenario_or_skip(tmp_path / "nvml", gpus=1, board=board), tmp_path / "agent")
    try:
        agent.fast(0)  # GPM needs two samples
        real = {False: {key[0] for key in agent.fast(0)}, True: {key[0] for key in agent.slow(0)}}
    finally:
        agent.close()
    gpus = SimulatedGpus("n1", 1, tmp_path, ManualClock(), profile=profile)
    for slow in (False, True):
        simulated = {metric for metric, _, _ in gpus.read(0, slow=slow)}
        assert simulated == real[slow] - NOT_SIMULATED
