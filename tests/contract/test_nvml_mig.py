"""GPUs that are cut into MIG instances, on the double of the driver's library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from nvml_agent import NvmlAgent
from nvml_double.fixtures import scenario_or_skip
from nvml_double.scenario import Scenario

MIG_MODE, TEMPERATURE = ("DCGM_FI_DEV_MIG_MODE",), ("DCGM_FI_DEV_GPU_TEMP",)
INVALID_ARGUMENT = 2
USED = "DCGM_FI_DEV_FB_USED"


@pytest.fixture
def node(tmp_path: Path) -> Scenario:
    return scenario_or_skip(tmp_path / "nvml", gpus=1)


@pytest.fixture
def agent(node: Scenario, tmp_path: Path) -> Iterator[NvmlAgent]:
    agent = NvmlAgent(node, tmp_path / "agent")
    yield agent
    agent.close()


def test_gpu_instances_have_their_own_memory_and_activity(node: Scenario, agent: NvmlAgent) -> None:
    node.mig(0, [(1, 0), (5, 0)])
    of_5 = (("GPU_I_PROFILE", "1g.10gb"), ("GPU_I_ID", "5"))
    agent.until(lambda: bool(agent.slow(0)) and (USED, *of_5) in agent.fast(0), True)
    values = agent.fast(0)
    assert values["DCGM_FI_DEV_FB_TOTAL", *of_5] == 10 * 1024
    assert values[USED, *of_5] == 1024
    assert values["DCGM_FI_PROF_GR_ENGINE_ACTIVE", *of_5] == pytest.approx(0.41)
    node.remove(0, "mig.1.gpu_instance")
    agent.until(lambda: bool(agent.slow(0)) and (USED, *of_5) in agent.fast(0), False)


def test_a_gpu_instance_that_is_destroyed_costs_its_own_values_and_may_be_another_afterwards(
    node: Scenario, agent: NvmlAgent
) -> None:
    node.mig(0, [(1, 0), (5, 0)])
    small, large = ((("GPU_I_PROFILE", profile), ("GPU_I_ID", "5")) for profile in ("1g.10gb", "2g.20gb"))
    agent.until(lambda: bool(agent.slow(0)) and (USED, *small) in agent.fast(0), True)
    node.fail(0, "nvmlGpmMigSampleGet", INVALID_ARGUMENT)  # says nothing about the memory
    agent.until(lambda: ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", *small) in agent.fast(0), False)
    assert (USED, *small) in agent.fast(0)
    node.remove(0, "mig.1.gpu_instance")
    agent.until(lambda: (USED, *small) in agent.fast(0), False)
    assert agent.fast(0).get(TEMPERATURE) == 45
    node.put(0, {"mig.1.gpu_instance": 5, "mig.1.name": "NVIDIA H100 80GB HBM3 MIG 2g.20gb"})
    agent.until(lambda: bool(agent.slow(0)) and (USED, *large) in agent.fast(0), True)


def test_what_a_gpu_has_is_found_out_anew_when_it_is_no_longer_cut_into_instances(
    node: Scenario, tmp_path: Path
) -> None:
    node.mig(0, [(1, 0)])
    node.unsupport(0, "nvmlDeviceGetUtilizationRates", "nvmlGpmSampleGet")
    agent = NvmlAgent(node, tmp_path / "agent")
    agent.slow(0)
    assert agent.fast(0).get(("DCGM_FI_DEV_GPU_UTIL",)) is None
    node.mig(0, [])
    node.remove(0, "error.nvmlDeviceGetUtilizationRates", "error.nvmlGpmSampleGet")
    agent.until(lambda: agent.slow(0).get(MIG_MODE), 0)
    agent.fast(0)
    values = agent.fast(0)
    agent.close()
    assert values.get(("DCGM_FI_DEV_GPU_UTIL",)) == 97
    assert values.get(("DCGM_FI_PROF_SM_ACTIVE",)) is not None
