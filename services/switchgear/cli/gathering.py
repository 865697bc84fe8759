"""Which nodes make up a job that has no scheduler: who has come, when they are enough, and who takes a lost one's place. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from switchgear.core.errors import FailedPrecondition, Reason

#: Nodes that may wait beyond those that the job runs on.
SPARES_MAX = 64


@dataclass(frozen=True, slots=True)
class Member:
    """A node that has come. node_rank: the place that it must have; None: any."""

    node: str
    address: str
    node_rank: int | None = None


class Gathering:
    """Places the job once `most` nodes are there, or `fewest` for `last_call_s`; then again whenever places are empty.

    From the first placement on the job has as many nodes as then. Those that come later wait as spares.
    """

    def __init__(self, fewest: int, most: int, last_call_s: float) -> None:
        self._fewest, self._most, self._last_call_s = fewest, most, last_call_s
        self._present: dict[str, Member] = {}
        #: By node rank; None: empty.
        self._places: list[Member | None] = []
        self._enough_since_s: float | None = None

    @property
    def joined(self) -> int:
        """Nodes that are here now."""
        return len(self._present)

    @property
    def wanted(self) -> int:
        """Nodes that the job runs on, or would best run on."""
        return len(self._places) or self._most

    @property
    def complete(self) -> bool:
        return bool(self._places) and None not in self._places

    def has_place(self, node: str) -> bool:
        return any(member is not None and member.node == node for member in self._places)

    def has_spare(self) -> bool:
        """Whether somebody waits who could take a place."""
        return any(not self.has_place(node) for node in self._present)

    def join(self, member: Member, now_s: float) -> None:
        """A node has come, or come back: it takes the place of the one of the same name and address.

        Raises FailedPrecondition when its name or rank is another's, or too many wait.
        """
        placed = [place for place in self._places if place is not None]
        for other in (*placed, *self._present.values()):
            if other.node == member.node and other.address != member.address:
                raise _refused(
                    f"{other.address} has joined as {member.node} already; give each node its --node-rank", member
                )
            if other.node != member.node and member.node_rank is not None and other.node_rank == member.node_rank:
                raise _refused(f"--node-rank {member.node_rank} is the place of {other.node}; take another", member)
        if member.node_rank is not None and member.node_rank >= self.wanted:
            raise _refused(f"--node-rank {member.node_rank} is too high for {self.wanted} nodes; count from 0", member)
        if member.node not in self._present and self.joined >= self._most + SPARES_MAX:
            raise _refused(f"{self.joined} nodes are here already and {self._most} are asked for", member)
        self._present[member.node] = member
        if self._enough_since_s is None and self.joined >= self._fewest:
            self._enough_since_s = now_s

    def leave(self, node: str) -> None:
        """A node has gone. Its place stays its own until recovery gives it up: it may be back in a moment."""
        self._present.pop(node, None)
        if self.joined < self._fewest:
            self._enough_since_s = None

    def give_up(self, nodes: Collection[str]) -> None:
        """Empties the places of these nodes. Those that are still here must join again to be given one."""
        self._places = [None if place and place.node in nodes else place for place in self._places]
        for node in nodes:
            self.leave(node)

    def place(self, now_s: float) -> Sequence[Member] | None:
        """The job's nodes by rank when they are complete as of now and were not before; None otherwise."""
        if self.complete:
            return None
        waiting = [member for member in self._present.values() if not self.has_place(member.node)]
        if not self._places:
            called = self._enough_since_s is not None and now_s - self._enough_since_s >= self._last_call_s
            if len(waiting) < (self._fewest if called else self._most):
                return None
            count = min(len(waiting), self._most)
            # Whoever must have a place beyond the last one waits with the spares.
            fitting = [member for member in waiting if member.node_rank is None or member.node_rank < count]
            places = _filled([None] * count, fitting)
        else:
            places = _filled(self._places, waiting)
        if None in places:
            return None
        self._places = places
        return [member for member in places if member is not None]


def _filled(places: Sequence[Member | None], waiting: Sequence[Member]) -> list[Member | None]:
    filled = list(places)
    for member in waiting:
        rank = member.node_rank
        if rank is not None and filled[rank] is None:
            filled[rank] = member
    free = iter([member for member in waiting if member.node_rank is None])
    return [next(free, None) if place is None else place for place in filled]


def _refused(why: str, member: Member) -> FailedPrecondition:
    return FailedPrecondition(why, Reason.BAD_FIELD, node=member.node)
