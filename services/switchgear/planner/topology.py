"""As near together as it gets: the fewest domains, and of those that hold a gang the tightest, so that large ones stay whole."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import numpy as np

from switchgear.planner.fleet import Fleet, Ints, Reals

#: Of nodes (rows) that would take so many tasks of the gang: which is better for them, higher is better.
Rating = Callable[[Ints, int], Reals]


@dataclass(frozen=True, slots=True)
class Ladder:
    """rungs: the domain of each node, the widest rung first; the last is the node itself, its numbers follow the names, `gpu-9` before `gpu-10`.

    top: the rung of which one domain has to hold the whole gang; a node that cannot be part of it, since nobody says where it is, has -1 there.
    In the other rungs such a node is alone.
    """

    rungs: tuple[Ints, ...]
    top: int

    @classmethod
    def of(cls, fleet: Fleet, required: frozenset[str], one_model: bool) -> Self:
        """For gangs that need one domain of each of the `required` levels, and of one GPU model if so. Worked out once a fleet.

        required: some of `fleet.levels`.
        """
        needs = sorted(fleet.levels.index(level) for level in required)
        narrowest = needs[-1] if needs else -1
        rungs = fleet.ladders.get((required, one_model))
        if rungs is None:
            bound = fleet.model_of if one_model else np.zeros(len(fleet), np.int64)
            for level in needs:
                bound = _within(bound, fleet.domains[level])
            alone = np.where(fleet.domains < 0, np.arange(len(fleet), 2 * len(fleet)), fleet.domains)
            wider = alone[: max(narrowest, 0)]
            narrower = (_within(bound, level) for level in alone[narrowest + 1 :])
            rungs = fleet.ladders[required, one_model] = (*wider, bound, *narrower, _positions(tuple(fleet.at)))
        return cls(rungs, max(narrowest, 0))

    @property
    def bound(self) -> Ints:
        """The rung that has to hold the whole gang."""
        return self.rungs[self.top]

    def nearest(self, room: Ints, tasks: int, rating: Rating) -> Ints:
        """Tasks for each node, shape (nodes,), `tasks` in all.

        The narrowest rung is taken of which one domain holds all; of such domains the one with the least room, then that within the domain
        with the least room a rung wider, and so on. Below it, the fewest domains: the roomiest whole, and what remains again as near as it
        gets. Nodes that are alike in everything come from the shortest stretch of neighbours.
        room: tasks that each node may get; one domain of the top rung has room for all. O(rungs x nodes), again for each rung that is split.
        """
        share = np.zeros(len(room), np.int64)
        rows = np.flatnonzero(room)
        ladder = self
        while tasks:
            rung, rows = ladder._tightest(room, rows, tasks, rating)
            if rung == len(self.rungs) - 1:
                share[rows] = tasks
                break
            ladder = replace(self, top=rung + 1)
            whole, rows = ladder._roomiest(room, rows, tasks, rating)
            share[whole] = room[whole]
            tasks -= int(room[whole].sum())
        return share

    def by_neighbourhood(self, rows: Ints) -> Ints:
        """The rows so that those of one domain follow each other, at each rung."""
        return rows[np.lexsort(tuple(rung[rows] for rung in reversed(self.rungs)))]

    def _tightest(self, room: Ints, rows: Ints, tasks: int, rating: Rating) -> tuple[int, Ints]:
        """The narrowest rung from the top on with a domain that holds all, and the rows of the best such domain."""
        rung = len(self.rungs) - 1
        while not (fits := _room_of(self.rungs[rung], room, rows) >= tasks).any():
            rung -= 1
            if rung < self.top:
                raise ValueError(f"no domain has room for {tasks} tasks: count the room before")
        among = np.flatnonzero(fits)
        if rung == len(self.rungs) - 1:
            rates = rating(rows[among], tasks)
            among = among[rates == rates.max()]
        for wider in range(rung, -1, -1):
            if len(among) == 1:
                break
            left = _room_of(self.rungs[wider], room, rows)[among]
            among = among[left == left.min()]
        domain_of = self.rungs[rung][rows]
        return rung, rows[domain_of == domain_of[among[0]]]

    def _roomiest(self, room: Ints, rows: Ints, tasks: int, rating: Rating) -> tuple[Ints, Ints]:
        """The rows of those domains of the top rung, roomiest first, that the gang fills whole; and the others."""
        domain_of, in_domain = self.bound[rows], _room_of(self.bound, room, rows)
        rates = np.zeros(len(rows))
        if nodes := bool(np.bincount(domain_of).max() == 1):
            domain_of, rates = self.rungs[-1][rows], rating(rows, 1)
        order = np.lexsort((domain_of, -rates, -in_domain))
        if nodes and in_domain.min() == in_domain.max() and rates.min() == rates.max():
            order = _stretch(order, domain_of[order], int(tasks // in_domain[0]))
        rows, domain_of = rows[order], domain_of[order]
        ends = np.flatnonzero(np.append(domain_of[1:] != domain_of[:-1], True)) + 1
        filled = int(np.searchsorted(np.cumsum(room[rows])[ends - 1], tasks, side="right"))
        whole = int(ends[filled - 1]) if filled else 0
        return rows[:whole], rows[whole:]


def _stretch(order: Ints, positions: Ints, count: int) -> Ints:
    """Turned so that it begins with the `count` nodes whose positions are closest together."""
    if count == 0:
        return order
    spans = positions[count - 1 :] - positions[: len(order) - count + 1]
    return np.roll(order, -int(spans.argmin()))


def _room_of(domains: Ints, room: Ints, rows: Ints) -> Ints:
    """For each of the rows the room of its whole domain."""
    domain_of = domains[rows]
    found: Ints = np.bincount(domain_of, weights=room[rows]).astype(np.int64)[domain_of]
    return found


def _within(outer: Ints, inner: Ints) -> Ints:
    """Numbers of the pairs; -1 where either is."""
    if not len(outer):
        return outer
    pairs = np.unique(outer * (inner.max() + 2) + inner, return_inverse=True)[1]
    found: Ints = np.where((outer < 0) | (inner < 0), -1, pairs)
    return found


@lru_cache(maxsize=4)
def _positions(names: tuple[str, ...]) -> Ints:
    """The place of each name when all are sorted, numbers in them as numbers. Kept, since the next plan is for the same nodes."""

    def natural(at: int) -> tuple[str | int, ...]:
        parts = re.split(r"(\d+)", names[at])
        return tuple(int(part) if odd % 2 else part for odd, part in enumerate(parts))

    found = np.empty(len(names), np.int64)
    found[sorted(range(len(names)), key=natural)] = np.arange(len(names))
    return found
