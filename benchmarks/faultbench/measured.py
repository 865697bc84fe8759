"""What a row of the benchmark is: a fault, the figure that counts, and the bars that it has to hold."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from faultbench.contenders import Contender

Fact = float | int | str | bool


@dataclass(frozen=True, slots=True)
class Measured:
    """One round. seconds: the figure of the row, infinite when it did not come within the limit. facts: what else was seen."""

    seconds: float
    facts: Mapping[str, Fact] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bar:
    """A claim, whether it held, and the numbers behind it."""

    claim: str
    held: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Row:
    """measure: one round, of a contender on so many ranks. judge: our rounds and the medians of all by name.

    peer_rounds: how many rounds the others get; None: as many as we, since a bar compares with them; 0: they have no counterpart.
    round_s: about how long one of our rounds and one of a peer's takes, for the estimate.
    """

    name: str
    fault: str
    figure: str
    measure: Callable[[Contender, int], Measured]
    judge: Callable[[Sequence[Measured], Mapping[str, float]], Sequence[Bar]]
    peer_rounds: int | None
    round_s: tuple[float, float]


def median(rounds: Sequence[Measured]) -> float:
    return statistics.median(one.seconds for one in rounds)


def told(seconds: float) -> str:
    return f"{seconds:.2f} s" if math.isfinite(seconds) else "not in time"


def at_most(what: str, seconds: float, bar_s: float) -> Bar:
    return Bar(f"{what} ≤ {bar_s:g} s", seconds <= bar_s, told(seconds))


def share_of_torchrun(medians: Mapping[str, float], share_max: float) -> Bar:
    ours, theirs = medians["switchgear"], medians["torchrun"]
    claim = f"first step ≤ {share_max:g} of torchrun's"
    if not math.isfinite(theirs):
        return Bar(claim, math.isfinite(ours), f"{told(ours)}; torchrun did not come back in its median round")
    return Bar(claim, ours <= share_max * theirs, f"{ours / theirs:.3f}")


def each(claim: str, rounds: Sequence[Measured], fact: str, wanted: Fact) -> Bar:
    """Every round must have that fact, not the median one."""
    seen = [one.facts.get(fact) for one in rounds]
    return Bar(claim, all(value == wanted for value in seen), ", ".join(str(value) for value in seen))
