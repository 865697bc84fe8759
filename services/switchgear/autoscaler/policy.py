"""How many replicas a service should have. Pure: an observation and a time in, a decision that explains itself out.

The work that arrives must be done as it comes, and what waits must be done in time:

    replicas = ceil((arriving + waiting / (target wait + start)) / capacity)      tokens/s, tokens, s

A replica that is asked for now works `start` seconds later; what the others will have done by then is no reason for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from switchgear.autoscaler.demand import Demand
from switchgear.autoscaler.model import ServiceSpec


class Cause(StrEnum):
    """Classes of decisions: a decision of the same class and number is no news."""

    FITS = "FITS"  # it has what it needs
    LOAD = "LOAD"  # more is needed
    HELD = "HELD"  # requests are held and there is no replica
    LESS = "LESS"  # less would do, but not for long enough yet
    DOWN = "DOWN"  # less has sufficed for long enough
    IDLE = "IDLE"  # no request for long enough
    BLIND = "BLIND"  # demand is not known
    BOUNDS = "BOUNDS"  # the user's bounds say so


@dataclass(frozen=True, slots=True)
class Less:
    """Less than there is has sufficed since then. most: the most that was needed meanwhile."""

    since_s: float
    most: int


@dataclass(frozen=True, slots=True)
class Observation:
    """What the policy sees of a service.

    replicas: what it has decided before. coming: of them, those that are not READY yet. start_s: how long replicas took to start
    lately, None when not known. less: as the last decision left it.
    """

    spec: ServiceSpec
    demand: Demand
    replicas: int
    coming: int = 0
    start_s: float | None = None
    less: Less | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """replicas: how many there should be, within the bounds. text: one sentence. less: for the next observation."""

    replicas: int
    cause: Cause
    text: str
    less: Less | None = None


def decide(now_s: float, seen: Observation) -> Decision:
    """Up at once; down when less has sufficed for the scale-down delay; never down on what is not known. O(1)."""
    spec, demand = seen.spec, seen.demand
    current = spec.bounded(seen.replicas)
    if current != seen.replicas:
        return within_bounds(spec, seen.replicas)
    needed = _needed(seen, current)
    target = spec.bounded(needed)
    why = _figures(seen) + _limit(needed, spec)
    if target > current:
        if current == 0:
            return Decision(target, Cause.HELD, f"goes from 0 to {target}: {_held(demand)}")
        return Decision(target, Cause.LOAD, f"goes from {current} to {target}: {why}")
    if target == current:
        if demand.blind:
            return Decision(current, Cause.BLIND, f"stays at {current}: {demand.blind}")
        return Decision(current, Cause.FITS, f"stays at {current}: {why}")
    if demand.blind:
        return Decision(current, Cause.BLIND, f"stays at {current}: {demand.blind}, and what is not known is not zero")
    less = Less(seen.less.since_s, max(seen.less.most, target)) if seen.less else Less(now_s, target)
    if now_s - less.since_s < spec.scale_down_delay_s:
        delay = f"{less.most} must suffice for {spec.scale_down_delay_s:g} s first"
        return Decision(current, Cause.LESS, f"stays at {current}: {delay}; {why}", less)
    if less.most == 0:
        idle = f"no request for {spec.scale_down_delay_s:g} s"
        return Decision(0, Cause.IDLE, f"goes from {current} to 0: {idle}")
    enough = f"{less.most} sufficed for {spec.scale_down_delay_s:g} s"
    return Decision(less.most, Cause.DOWN, f"goes from {current} to {less.most}: {enough}; {why}")


def within_bounds(spec: ServiceSpec, replicas: int) -> Decision:
    """What the bounds make of a number of replicas that is not within them."""
    allowed = f"{spec.min_replicas} to {spec.max_replicas} replicas are allowed"
    bounded = spec.bounded(replicas)
    return Decision(bounded, Cause.BOUNDS, f"goes from {replicas} to {bounded}: {allowed}")


def capacity_of(seen: Observation) -> float:
    """Generated tokens per second of one replica: measured, or the user's word until then."""
    return max(seen.demand.capacity_tokens_per_s or seen.spec.tokens_per_s, 1e-6)


def _needed(seen: Observation, current: int) -> int:
    demand, capacity = seen.demand, capacity_of(seen)
    wait_s = seen.spec.target_wait_s + (seen.start_s or 0.0)
    arriving = _ceil(demand.arriving_tokens_per_s / capacity)
    needed = _ceil((demand.arriving_tokens_per_s + demand.waiting_tokens / wait_s) / capacity)
    if seen.coming:
        # What waits is a reason for those that are coming, and none for more: it waits because they are not there yet.
        needed = max(arriving, min(needed, current))
    return max(needed, 1) if demand.held_requests or demand.in_flight_requests else needed


def _ceil(replicas: float) -> int:
    # A demand of exactly two replicas must not become three by rounding.
    return math.ceil(min(replicas, 1e9) - 1e-9)


def _figures(seen: Observation) -> str:
    demand = seen.demand
    measured = "measured" if demand.capacity_tokens_per_s else "as specified"
    return (
        f"{demand.arriving_tokens_per_s:.0f} tokens/s arrive and {demand.waiting_tokens:.0f} tokens wait, "
        f"a replica does {capacity_of(seen):.0f} tokens/s ({measured})"
    )


def _limit(needed: int, spec: ServiceSpec) -> str:
    if needed > spec.max_replicas:
        return f"; that needs {needed}, max_replicas is {spec.max_replicas}"
    if needed < spec.min_replicas:
        return f"; min_replicas is {spec.min_replicas}"
    return ""


def _held(demand: Demand) -> str:
    count = demand.held_requests
    return "requests arrive" if not count else f"{count} request{' is' if count == 1 else 's are'} held"
