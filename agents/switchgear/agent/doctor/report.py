"""Everything that the doctor found, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from switchgear.agent.amd.library import traces_of_driver
from switchgear.agent.doctor import amd, node, nvidia
from switchgear.agent.doctor.check import Check, State, ok
from switchgear.agent.doctor.gpu import Gpu


@dataclass(frozen=True, slots=True)
class Report:
    """checks: of the node first, then of its GPUs; what is the same for several GPUs stands there once."""

    checks: Sequence[Check]
    gpus: Sequence[Gpu]

    @property
    def problems(self) -> int:
        return sum(check.state is State.PROBLEM for check in self.checks)

    @property
    def unfit(self) -> Sequence[Check]:
        """Why no job should start on this node; none when jobs may."""
        return [check for check in self.checks if check.unfit]

    def slowest_ms(self) -> Mapping[str, float]:
        """Of each NVML function that the agent calls, the longest that any GPU took; slowest first."""
        slowest = dict[str, float]()
        for gpu in self.gpus:
            for name, spent in gpu.times.items():
                slowest[name] = max(slowest.get(name, 0.0), spent.max_ms)
        return dict(sorted(slowest.items(), key=lambda item: -item[1]))

    def as_json(self) -> dict[str, Any]:
        return {
            "problems": self.problems,
            "checks": [
                {
                    "topic": check.topic,
                    "state": check.state.value,
                    "text": check.text,
                    "remedy": check.remedy,
                    "gpus": list(check.gpus),
                    "unfit": check.unfit,
                }
                for check in self.checks
            ],
            "gpus": [_gpu(gpu) for gpu in self.gpus],
        }


def examine(*, gpus_expected: bool, deadline_s: float, root: Path = Path("/")) -> Report:
    """Looks at this node. deadline_s: for each call of a driver; a GPU whose call does not come back costs that much time.

    root: of the file system, another one in tests.
    """
    has_amd = traces_of_driver(root)
    of_nvidia, gpus = nvidia.examine(root, expected=gpus_expected and not has_amd, deadline_s=deadline_s)
    of_amd, amd_gpus = amd.examine(root, len(gpus), deadline_s=deadline_s)
    gpus += amd_gpus
    return Report([*node.examine(root), *of_nvidia, *of_amd, *_merged(gpus)], gpus)


def _merged(gpus: Sequence[Gpu]) -> Iterator[Check]:
    """One check for all GPUs that have the same to say."""
    of = dict[Check, list[int]]()
    for gpu in gpus:
        said = list(gpu.checks)
        if gpu.device is not None:
            said.insert(0, ok("model", gpu.device.model))
        if gpu.supported:
            text = f"{len(gpu.supported)} read"
            if gpu.unsupported:
                text += f"; {len(gpu.unsupported)} that this GPU or driver does not have, as --json names them"
            said.append(ok("metrics", text))
        for check in said:
            of.setdefault(check, []).append(gpu.index)
    for check, indices in of.items():
        yield replace(check, gpus=tuple(indices))


def _gpu(gpu: Gpu) -> dict[str, Any]:
    identity = {}
    if gpu.device is not None:
        identity = {
            "uuid": gpu.device.uuid,
            "model": gpu.device.model,
            "pciBusId": gpu.device.pci_bus_id,
            "memoryBytes": str(gpu.device.memory_bytes),  # 64 bits are text in canonical JSON
        }
    return {
        "index": gpu.index,
        **identity,
        "info": dict(gpu.details),
        "hangsIn": gpu.hangs,
        "supported": list(gpu.supported),
        "unsupported": list(gpu.unsupported),
        "refused": dict(gpu.refused),
        "calls": {
            name: {
                "calls": spent.calls,
                "meanMs": round(spent.total_ms / spent.calls, 4),
                "maxMs": round(spent.max_ms, 4),
            }
            for name, spent in sorted(gpu.times.items())
        },
    }
