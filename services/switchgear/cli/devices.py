"""How many ranks `--nproc-per-node auto|gpu|cpu` means, without torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import pynvml

from switchgear.core.errors import Invalid, Reason

WORDS = ("auto", "gpu", "cuda", "cpu")


def nvidia_gpus() -> int:
    """NVIDIA GPUs of this machine; 0 without their driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0
    finally:
        pynvml.nvmlShutdown()


def ranks_here(given: str, environment: Mapping[str, str], installed: Callable[[], int] = nvidia_gpus) -> int:
    """Ranks that one of WORDS stands for on this machine; `auto`: one a GPU, or one a processor where there is none.

    Raises Invalid when it has no such device.
    """
    gpus = 0 if given == "cpu" else visible_gpus(environment, installed)
    if gpus or given in ("auto", "cpu"):
        return gpus or len(os.sched_getaffinity(0))
    raise Invalid(
        f"--nproc-per-node {given}: this machine has no NVIDIA GPU that may be used here; write auto, cpu or a number",
        Reason.BAD_FIELD,
        field="nproc_per_node",
    )


def visible_gpus(environment: Mapping[str, str], installed: Callable[[], int] = nvidia_gpus) -> int:
    """NVIDIA GPUs of this machine, as far as CUDA_VISIBLE_DEVICES lets programs see them."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return installed()
    count = 0
    for device in map(str.strip, visible.split(",")):
        # CUDA stops at the first that is none.
        if not device or device.startswith("-") or (device.isdigit() and int(device) >= installed()):
            break
        count += 1
    return count
