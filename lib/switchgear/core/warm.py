"""What the imports of a job's ranks depend on, as scheduler, agent and launcher all see it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: Ranks read these variables when they run, nothing does at its import. Each replica of an inference service has other ones.
_OWN_VARIABLES = "SWITCHGEAR_"


@dataclass(frozen=True, slots=True)
class WarmKind:
    """All that the imports of a job's ranks depend on: a process that has done them for one job is as good for another of its kind.

    python: interpreter; empty: the launcher's own. environment: on top of the launcher's, sorted, without variables of ours.
    preload: modules that are imported beside torch. torch: whether that is; a program that is no Python file needs nothing of it all.
    """

    python: str
    working_directory: str
    environment: tuple[tuple[str, str], ...]
    preload: tuple[str, ...]
    torch: bool = True

    @classmethod
    def of(
        cls,
        python: str,
        working_directory: str,
        environment: Iterable[tuple[str, str]],
        preload: Iterable[str],
        *,
        torch: bool = True,
    ) -> WarmKind:
        """The kind of whoever runs with these; environment: in any order, variables of ours among them."""
        outer = (item for item in environment if not item[0].startswith(_OWN_VARIABLES))
        return cls(python, working_directory, tuple(sorted(outer)), tuple(preload) if torch else (), torch)
