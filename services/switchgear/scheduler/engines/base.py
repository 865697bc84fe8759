"""What the scheduler needs of an engine: the thing that starts launchers on nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from switchgear.core.service import Endpoints
from switchgear.core.warm import WarmKind
from switchgear.scheduler.model import Observation, Wanted


class Engine(Protocol):
    """Sees nodes, and makes what runs on them what is wanted.

    An engine keeps nothing: what it sees it learns from the nodes again after a restart, what is wanted it is told again.
    """

    def observe(self) -> Observation:
        """What it sees now; equal to the answer before when nothing has changed."""

    def last_heard(self) -> Mapping[str, int]:
        """When each connected node was last heard, in Unix nanoseconds."""

    def want(self, wanted: Mapping[str, Wanted], warm: Mapping[str, Sequence[WarmKind]]) -> None:
        """What should run, by node: launchers that miss are started, others are stopped. Until the first call nothing is.

        warm: kinds of launchers that each node should have ready, the most useful first.
        """

    async def run(self, endpoints: Endpoints) -> None:
        """Does so until cancelled. endpoints: where launchers report."""
