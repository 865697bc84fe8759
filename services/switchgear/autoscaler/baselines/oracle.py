"""A policy that knows the trace: it has what each minute will need, a cold start ahead. How that is found: `simulate.foresight`."""

from __future__ import annotations

from collections.abc import Sequence

from switchgear.autoscaler.observation import Decision, Observation

MINUTE_S = 60.0


class Oracle:
    """needed: replicas for each minute. ahead_s: how long before they are asked for."""

    name = "oracle"
    interval_s = 10.0

    def __init__(self, needed: Sequence[int], ahead_s: float) -> None:
        self._needed, self._ahead_s = needed, ahead_s

    def decide(self, now_s: float, seen: Observation) -> Decision:
        # Asked for at a decision, so one interval earlier than that.
        until_s = now_s + self._ahead_s + self.interval_s
        minutes = self._needed[int(now_s // MINUTE_S) : int(until_s // MINUTE_S) + 1]
        return Decision(max(minutes, default=seen.min_replicas), "foresight", "what the next minutes need")
