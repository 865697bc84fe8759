"""What an engine lends the nodes of a run from: the seam between a job that keeps itself together and the engine around it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from switchgear.recovery import model as m


class Allocation(Protocol):
    """What an engine has lent the job its nodes from, where there is one: it knows what came before, and hears what becomes of them.

    generation: newest of earlier runs of the job; 0: there were none. silence_s_max: whoever has not been heard for longer runs nothing
    of theirs any more. timing: of this run.
    """

    generation: int
    silence_s_max: float
    timing: m.Timing

    def is_quiet(self) -> bool:
        """Nothing lives that an earlier run of the job has started, wherever that was."""

    def left(self, given_up: Collection[str]) -> int:
        """How many of its nodes there are besides these."""

    async def keep(self, state: m.JobState, records: Sequence[m.Effect]) -> None:
        """Told before anything is done about them."""

    def give_up(self, node: str, reason: str) -> None:
        """The job goes on without the node."""

    async def after(self, *, is_over: bool) -> tuple[str, bool]:
        """Told once when nothing of this run lives any more.

        is_over: by the job's own end; else it might go on, with other nodes or more time.
        Returns what people are told about that, and whether the job goes on.
        """
