"""What is found out about one GPU, of whichever vendor."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from switchgear.agent.doctor.check import Check
from switchgear.agent.doctor.deadline import CallTime
from switchgear.agent.sources.gpu import GpuDevice


@dataclass(slots=True)
class Gpu:
    """As far as it answered.

    details: what the board says of itself, by name. supported, unsupported: metrics that the agent asks for.
    refused: reason by metric. times: of each function of the vendor's library that the agent calls.
    hangs: the one that did not come back, "" when all did.
    """

    index: int
    device: GpuDevice | None = None
    details: Mapping[str, str] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    supported: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    times: Mapping[str, CallTime] = field(default_factory=dict)
    hangs: str = ""

    def take(self, values: Mapping[str, float | str], asked: Set[str]) -> None:
        """values: by metric, a number or why there is none. asked: all metrics that the agent asks such a GPU for."""
        self.supported = tuple(sorted(metric for metric, value in values.items() if not isinstance(value, str)))
        self.refused = {metric: value for metric, value in sorted(values.items()) if isinstance(value, str)}
        self.unsupported = tuple(sorted(asked - values.keys()))
