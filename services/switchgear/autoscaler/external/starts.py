"""Replicas that were asked for and are not there yet, as far as that can be told from outside."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from switchgear.autoscaler.observation import Phase, ReplicaRow


class Starts:
    """When each missing replica was asked for, oldest first.

    Nobody tells us which pod was started for which wish: one that answers for the first time is taken for the oldest wish. A pod that
    is replaced is asked for when the old one is gone. There are never more wishes than `desired`, which its service bounds.

    asked_s, known: wishes, and replicas that had answered, before a restart.
    """

    def __init__(self, asked_s: Iterable[float] = (), known: Iterable[str] | None = None) -> None:
        self._asked_s = sorted(asked_s)
        self._known = None if known is None else frozenset(known)

    @property
    def asked_s(self) -> tuple[float, ...]:
        """Times on the clock of the policy."""
        return tuple(self._asked_s)

    def came(self, now_s: float, ready: Collection[str]) -> tuple[float, ...]:
        """Those that answer now. Returns what the new ones among them took, in seconds; of those that were there at first nobody knows."""
        new = 0 if self._known is None else len(frozenset(ready) - self._known)
        self._known = frozenset(ready)
        taken, self._asked_s = self._asked_s[:new], self._asked_s[new:]
        return tuple(now_s - asked_s for asked_s in taken)

    def want(self, now_s: float, desired: int, ready: int) -> None:
        """So many are desired from now on while so many are there. A wish that is taken back is the youngest."""
        missing = max(0, desired - ready)
        del self._asked_s[missing:]
        self._asked_s.extend([now_s] * (missing - len(self._asked_s)))

    def rows(self, now_s: float) -> tuple[ReplicaRow, ...]:
        """One for each missing replica; when it will be ready nobody knows."""
        return tuple(
            ReplicaRow(f"starting-{number}", Phase.STARTING, age_s=now_s - asked_s)
            for number, asked_s in enumerate(self._asked_s)
        )
