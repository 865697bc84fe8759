"""The seam between what is measured and who asks for it."""

from __future__ import annotations

from typing import Protocol

from switchgear.agent.readings import Reading


class Source(Protocol):
    """Something that can be sampled. It runs in a thread of its own and may block; it may also raise."""

    @property
    def name(self) -> str:
        """Unique in the agent; shown in metrics and events."""

    @property
    def deadline_s(self) -> float:
        """Longest time that a sample may take before its series count as unknown."""

    @property
    def gpu(self) -> int | None:
        """Index of the GPU that the source reads, when it reads exactly one."""

    def sample(self) -> list[Reading]:
        """The present readings, one for each series of the source."""
