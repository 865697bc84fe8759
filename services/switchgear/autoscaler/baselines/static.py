"""A fixed fleet. As `static-peak` it is the smallest that keeps the promise, which only hindsight knows: `simulate.search` finds it."""

from __future__ import annotations

from switchgear.autoscaler.observation import Decision, Observation


class Static:
    """replicas: always so many."""

    name = "static"
    interval_s = 60.0

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas

    def decide(self, now_s: float, seen: Observation) -> Decision:  # noqa: ARG002  # the protocol's
        return Decision(self._replicas, "static", "a fixed fleet")
