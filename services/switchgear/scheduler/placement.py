"""Where a gang goes: all of its nodes at once or none."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Seat:
    """A node and the GPUs on it that one node rank of a job gets."""

    node: str
    gpu_indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Offer:
    """What a node has to give now."""

    node: str
    free_gpu_indices: tuple[int, ...]
    #: Why nothing may be placed here ("cordoned", "unreachable", …); empty when it may.
    obstacle: str = ""
    #: See `planner.fleet.Fleet.trust`.
    trust: float = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """A gang of `nnodes` different nodes with `nproc_per_node` GPUs each. Both are at least 1.

    nnodes_min: so many do when no more are free, at most `nnodes`; 0: only `nnodes`.
    """

    nnodes: int
    nproc_per_node: int
    #: Seats that the job has and keeps, by node rank. Their GPUs are not in any offer.
    kept: tuple[tuple[int, Seat], ...] = ()
    #: Nodes that this gang must not get, whatever they offer.
    excluded: frozenset[str] = frozenset()
    nnodes_min: int = 0

    @property
    def nnodes_least(self) -> int:
        return self.nnodes_min or self.nnodes


@dataclass(frozen=True, slots=True)
class NotPlaced:
    """Nothing was placed; `reason` is a sentence for a person."""

    reason: str


def place(request: Request, offers: Collection[Offer]) -> tuple[Seat, ...] | NotPlaced:
    """A seat for each node rank, or why there is none.

    Kept seats keep their rank, or move up when there are fewer seats than `nnodes`. The others go to the nodes that can be trusted most, of these where the fewest GPUs are left
    over, so that large gangs still find whole nodes; among equals the names decide. The answer does not depend on the order of `offers`. O(n log m) for n offers and m missing nodes.
    """
    kept = dict(request.kept)
    taken = {seat.node for seat in kept.values()}
    shut = taken | request.excluded
    per_node = request.nproc_per_node
    fitting = [
        offer
        for offer in offers
        if not offer.obstacle and offer.node not in shut and len(offer.free_gpu_indices) >= per_node
    ]
    missing = request.nnodes - len(kept)
    if len(kept) + len(fitting) < request.nnodes_least:
        return NotPlaced(_why(request, missing, len(fitting), [o for o in offers if o.node not in taken]))
    best = heapq.nsmallest(missing, fitting, key=lambda one: (-one.trust, len(one.free_gpu_indices), one.node))
    fresh = iter(
        Seat(offer.node, tuple(sorted(offer.free_gpu_indices)[:per_node]))
        for offer in sorted(best, key=lambda offer: offer.node)
    )
    seats = (kept.get(rank) or next(fresh, None) for rank in range(request.nnodes))
    return tuple(seat for seat in seats if seat)


def could_ever_fit(request: Request, gpus_per_node: Sequence[int]) -> bool:
    """Whether an empty fleet with nodes of these sizes would hold the gang."""
    return sum(gpus >= request.nproc_per_node for gpus in gpus_per_node) >= request.nnodes_least


def counted(number: int, noun: str) -> str:
    """`1 node`, `2 nodes`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _why(request: Request, missing: int, fitting: int, offers: Sequence[Offer]) -> str:
    more = "more " if missing < request.nnodes else ""
    obstacles = Counter(
        "excluded for this job" if offer.node in request.excluded else offer.obstacle or "with too few free GPUs"
        for offer in offers
        if offer.node in request.excluded or offer.obstacle or len(offer.free_gpu_indices) < request.nproc_per_node
    )
    others = ", ".join(f"{count} {obstacle}" for obstacle, count in sorted(obstacles.items()))
    return (
        f"waits for {missing} {more}{'node' if missing == 1 else 'nodes'} with {counted(request.nproc_per_node, 'free GPU')} each; "
        f"{fitting} {'has' if fitting == 1 else 'have'} them now" + (f" (others: {others})" if others else "")
    )
