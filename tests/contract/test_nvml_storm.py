"""Whatever befalls driver and GPUs, in whichever order: once it is mended, the agent reads every GPU again."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from nvml_agent import NvmlAgent
from nvml_double.fixtures import scenario_or_skip
from nvml_double.scenario import UNKNOWN, Scenario

GPUS = 3
STEPS = 40
TEMPERATURE = ("DCGM_FI_DEV_GPU_TEMP",)
_CALLS = (
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetFieldValues",
    "nvmlGpmSampleGet",
    "nvmlDeviceGetHandleByPciBusId_v2",
)

BLOWS: tuple[Callable[[Scenario, random.Random, int], None], ...] = (
    lambda node, dice, gpu: node.lose(gpu),
    lambda node, dice, gpu: node.remove(gpu, "lost"),
    lambda node, dice, gpu: node.mig(gpu, [(instance, 0) for instance in range(dice.randrange(4))]),
    lambda node, dice, gpu: node.xid(gpu, dice.choice((31, 79, 94))),
    lambda node, dice, gpu: node.unsupport(gpu, dice.choice(_CALLS)),
    lambda node, dice, gpu: node.fail(gpu, dice.choice(_CALLS), UNKNOWN),
    lambda node, dice, gpu: node.remove(gpu, *(f"error.{call}" for call in _CALLS)),
    lambda node, dice, gpu: node.remove(gpu, "present"),
    lambda node, dice, gpu: node.set(gpu, present=1),
    lambda node, dice, gpu: node.restart_driver(),
    lambda node, dice, gpu: node.unload_driver(),
)


@pytest.mark.parametrize("seed", [3, 8])
def test_every_gpu_is_read_again_after_a_storm(tmp_path: Path, seed: int) -> None:
    node = scenario_or_skip(tmp_path / "nvml", GPUS)
    agent = NvmlAgent(node, tmp_path / "agent")
    dice = random.Random(seed)
    try:
        for _ in range(STEPS):
            dice.choice(BLOWS)(node, dice, dice.randrange(GPUS))
            for gpu in range(GPUS):
                agent.fast(gpu)
                agent.slow(gpu)
            agent.advance(1.0)
        node.mend()

        def temperatures() -> list[object]:
            agent.advance(5.0)
            return [agent.fast(gpu).get(TEMPERATURE) for gpu in range(GPUS)]

        agent.until(temperatures, [45, 46, 47])
    finally:
        agent.close()
