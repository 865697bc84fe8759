"""The seam between what is measured and who asks for it."""

from __future__ import annotations

from typing import Protocol

from switchgear.agent.readings import Reading


class Source(Protocol):
    """Something that can be sampled: once at a time, from any thread. It may block; it may also raise."""

    @property
    def name(self) -> str:
        """Unique in the agent; shown in metrics and events."""

    @property
    def period_s(self) -> float:
        """Shortest time from one sample to the next; 0: at every tick."""

    def sample(self) -> list[Reading]:
        """The present readings, one for each series of the source. A series that is left out counts as gone."""
