"""The launchers that are compared, each with the command line that starts the same script."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

#: For what is compared with; never the project's own environment. `make clean` removes it.
PEERS = Path(__file__).parents[2] / "build" / "peers"
#: Newer wheels ask for a newer C library, for a CUPTI module that ft_launcher does not load; the older one is the last resort.
WHEELS = ("manylinux_2_39_x86_64", "manylinux_2_31_x86_64")
RESTARTS_MAX = 10


@dataclass(frozen=True, slots=True)
class Contender:
    """command: from the run's folder, its ranks and the restarts allowed to what stands before the script."""

    name: str
    version: str
    command: Callable[[Path, int, int], list[str]]
    environment: Mapping[str, str] = field(default_factory=dict)


def switchgear() -> Contender:
    def command(folder: Path, ranks: int, restarts: int) -> list[str]:
        run = [sys.executable, "-m", "switchgear.cli.main", "run", "--standalone", "--nproc-per-node", str(ranks)]
        return [*run, "--name", "bench", "--checkpoint-dir", str(folder), "--max-restarts", str(restarts), "--"]

    return Contender("switchgear", importlib.metadata.version("switchgear"), command)


def torchrun() -> Contender:
    return Contender("torchrun", str(torch.__version__), _elastic("torch.distributed.run"))


def ft_launcher() -> Contender | str:
    """Installs it when it is not there yet; the reason when it is not to be had."""
    refusals = []
    if not _version():
        for wheel in WHEELS:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(PEERS)]
            which = ["--only-binary", ":all:", "--platform", wheel, "--python-version", platform.python_version()]
            ended = subprocess.run(
                [*pip, *which, "nvidia-resiliency-ext", "defusedxml"], capture_output=True, text=True, check=False
            )
            if ended.returncode == 0:
                break
            refusals += [line for line in ended.stderr.splitlines() if line.startswith("ERROR")][-1:]
    if not (version := _version()):
        return "; ".join(refusals) or "pip gave no reason"
    module = "nvidia_resiliency_ext.fault_tolerance.launcher"
    return Contender("ft_launcher", version, _elastic(module), {"PYTHONPATH": str(PEERS)})


def _version() -> str:
    found = importlib.metadata.distributions(name="nvidia-resiliency-ext", path=[str(PEERS)])
    return next((one.version for one in found), "")


def _elastic(module: str) -> Callable[[Path, int, int], list[str]]:
    def command(folder: Path, ranks: int, restarts: int) -> list[str]:  # noqa: ARG001  # every contender's form
        run = [sys.executable, "-m", module, "--standalone", "--nproc-per-node", str(ranks)]
        return [*run, "--max-restarts", str(restarts), "--monitor-interval", "0.1"]

    return command


def contenders() -> tuple[Sequence[Contender], Sequence[str]]:
    """Ours first; and why one is missing."""
    peer = ft_launcher()
    if isinstance(peer, str):
        return (switchgear(), torchrun()), (f"ft_launcher (nvidia-resiliency-ext): not to be had: {peer}",)
    return (switchgear(), torchrun(), peer), ()
