"""Which nodes make up a job that has no scheduler: who has come, when they are enough, and who takes a lost one's place. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from switchgear.core.errors import FailedPrecondition, Reason

#: Nodes that may wait beyond those that the job runs on.
SPARES_MAX = 64


@dataclass(frozen=True, slots=True)
class Member:
    """A node that has come. node_rank: the place that it must have; None: any. generation: newest that it has accepted."""

    node: str
    address: str
    node_rank: int | None = None
    generation: int = 0


class Gathering:
    """Places the job on `most` nodes as soon as they are there, or on fewer, at least `fewest`, when the last call is over.

    The last call lasts `last_call_s` from when there are enough, and again from when a node was given up. Those who come when all
    places are taken wait as spares.

    order_s: how long those without a rank leave the places at first to those that have one. generation: newest that this machine has
    accepted. quiet_s: when ranks that others started have ended, wherever they are: until then those of the newest generation are not
    replaced by anybody.
    """

    def __init__(
        self,
        fewest: int,
        most: int,
        last_call_s: float,
        *,
        order_s: float = 0.0,
        generation: int = 0,
        quiet_s: float = -math.inf,
    ) -> None:
        self._fewest, self._most, self._last_call_s, self._order_s = fewest, most, last_call_s, order_s
        self._newest, self._quiet_s = generation, quiet_s
        self._present: dict[str, Member] = {}
        #: By node rank; None: given up.
        self._places: list[Member | None] = []
        self._settled = False
        #: When the first one came; None: nobody yet.
        self._began_s: float | None = None
        #: When the last call began; None: not yet.
        self._called_s: float | None = None

    @property
    def joined(self) -> int:
        """Nodes that are here now."""
        return len(self._present)

    @property
    def settled(self) -> bool:
        """Whether the newest placement stands."""
        return self._settled

    @property
    def newest(self) -> int:
        """The largest generation that anybody has told of; 0: none has run."""
        return self._newest

    def holds_back(self, now_s: float) -> bool:
        """Whether enough nodes are here, but ranks of the newest generation may run on one that is not."""
        return self.joined >= self._fewest and self._is_early(now_s)

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
        rank = member.node_rank
        for other in (*placed, *self._present.values()):
            if other.node == member.node and other.address != member.address:
                raise _refused(
                    f"{other.address} has joined as {other.node} already; give each node its --node-rank", member
                )
            if other.node != member.node and rank is not None and other.node_rank == rank:
                raise _refused(f"--node-rank {rank} is the place of {other.node}; take another", member)
        if rank is not None and rank >= self._most:
            raise _refused(f"--node-rank {rank} is too high for {self._most} nodes; count from 0", member)
        if member.node not in self._present and self.joined >= self._most + SPARES_MAX:
            raise _refused(f"{self.joined} nodes are here already and {self._most} are asked for", member)
        self._present[member.node] = member
        self._began_s = now_s if self._began_s is None else self._began_s
        self._newest = max(self._newest, member.generation)
        if not self._places and self._called_s is None and self.joined >= self._fewest:
            self._called_s = now_s

    def leave(self, node: str) -> None:
        """A node has gone. Its place stays its own until recovery gives it up: it may be back in a moment."""
        self._present.pop(node, None)
        if not self._places and self.joined < self._fewest:
            self._called_s = None

    def nothing_else_runs(self) -> None:
        """Ranks that others started have ended, wherever they were."""
        self._quiet_s = -math.inf

    def give_up(self, nodes: Collection[str], now_s: float, *, waits: bool = True) -> None:
        """Empties the places of these nodes, which must join again to be given one.

        Without any, recovery only asks whether missing nodes have come meanwhile: nobody is waited for. waits: as nobody is either
        when no others can come.
        """
        self._settled, self._called_s = False, now_s if nodes and waits else -math.inf
        self._places = [None if place and place.node in nodes else place for place in self._places]
        for node in nodes:
            self._present.pop(node, None)

    def place(self, now_s: float) -> Sequence[Member] | None:
        """The job's nodes by rank, once for each placement; None while there is nothing new."""
        if self._settled:
            return None
        waiting = [member for member in self._present.values() if not self.has_place(member.node)]
        waiting.sort(key=lambda member: -member.generation)
        missing = self._most - len(self._places)
        nodes = [member for member in _filled([*self._places, *[None] * missing], waiting) if member is not None]
        if not self._places and any(node.node_rank is None for node in nodes) and self._is_ordering(now_s):
            return None
        called = self._called_s is not None and now_s - self._called_s >= self._last_call_s
        if len(nodes) < (self._fewest if called else self._most):
            return None
        if self._is_early(now_s) and (len(nodes) < self._most or any(node.generation < self._newest for node in nodes)):
            return None
        self._places, self._settled = list(nodes), True
        return nodes

    def _is_ordering(self, now_s: float) -> bool:
        return self._began_s is not None and now_s - self._began_s < self._order_s

    def _is_early(self, now_s: float) -> bool:
        return not self._places and self._newest > 0 and now_s < self._quiet_s


def _filled(places: Sequence[Member | None], waiting: Sequence[Member]) -> list[Member | None]:
    """The places with those who wait in the empty ones, first those who must have just that one."""
    filled = list(places)
    for member in waiting:
        rank = member.node_rank
        if rank is not None and filled[rank] is None:
            filled[rank] = member
    free = iter([member for member in waiting if member.node_rank is None])
    return [next(free, None) if place is None else place for place in filled]


def _refused(why: str, member: Member) -> FailedPrecondition:
    return FailedPrecondition(why, Reason.BAD_FIELD, node=member.node)
