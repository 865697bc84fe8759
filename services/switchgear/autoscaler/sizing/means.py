"""What requests are like, from those that have ended; and those that came, as arrivals for the fleets that might have been."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from switchgear.autoscaler.observation import Observation, Work

#: Half of what was seen is forgotten in so many requests.
HALF_LIFE_REQUESTS = 500.0
#: Before one has ended.
INPUT_TOKENS, OUTPUT_TOKENS = 500.0, 200.0


@dataclass(frozen=True, slots=True)
class Came:
    """Requests that came together: when, how many, and the tokens of all their prompts."""

    at_s: float
    requests: float
    input_tokens: float


@dataclass(slots=True)
class Means:
    """Faded sums over completed requests. service_s: of a slot, in a model without tokens."""

    requests: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    service_s: float = 0.0
    #: The most that an answer may have, as requests said that came last.
    asked_tokens: float | None = None

    def take(self, arrived: Work | None, done: Work | None) -> None:
        """What came and what completed in an interval."""
        if arrived is not None and arrived.requests and arrived.output_tokens is not None:
            self.asked_tokens = arrived.output_tokens / arrived.requests
        if done is None or not done.requests:
            return
        fade = 0.5 ** (done.requests / HALF_LIFE_REQUESTS)
        self.requests = self.requests * fade + done.requests
        self.input_tokens = self.input_tokens * fade + (done.input_tokens or 0)
        self.output_tokens = self.output_tokens * fade + (done.output_tokens or 0)
        self.service_s = self.service_s * fade + (done.service_s or 0.0)

    @property
    def input_mean(self) -> float:
        return self.input_tokens / self.requests if self.requests else INPUT_TOKENS

    @property
    def output_mean(self) -> float:
        if self.requests:
            return self.output_tokens / self.requests
        return OUTPUT_TOKENS if self.asked_tokens is None else min(OUTPUT_TOKENS, self.asked_tokens)

    @property
    def slot_s(self) -> float | None:
        """Seconds that a request takes a slot; None where requests have tokens, or nothing has ended."""
        if not self.requests or self.input_tokens or self.output_tokens or not self.service_s:
            return None
        return self.service_s / self.requests

    def came(self, now_s: float, seen: Observation, entries_max: int) -> list[Came]:
        """Those of the interval. One by one where the gateway tells; else spread over the interval, at most `entries_max` of them."""
        if seen.arrivals:
            return [Came(now_s - ago_s, requests, tokens) for ago_s, requests, tokens in seen.arrivals]
        arrived = seen.arrived if seen.arrived is not None else seen.completed
        if arrived is None or not arrived.requests:
            return []
        tokens = arrived.requests * self.input_mean if arrived.input_tokens is None else arrived.input_tokens
        pieces = min(arrived.requests, entries_max)
        gap_s = seen.interval_s / pieces
        return [
            Came(now_s - seen.interval_s + gap_s * (at + 0.5), arrived.requests / pieces, tokens / pieces)
            for at in range(pieces)
        ]

    def judged(self, seen: Observation, prompt_s: float) -> tuple[int, int]:
        """Requests that ended in the interval, and how many of them broke the promise: counted one by one, else as samples of latency tell.

        prompt_s: of a mean prompt on an idle replica, for samples, which do not say whose they are.
        """
        if seen.kept is not None and seen.broken is not None:
            return seen.kept + seen.broken, seen.broken
        slo = seen.slo
        limits = (
            (seen.ttft_s, None if slo.ttft_s is None else slo.ttft_s + slo.ttft_prefill_factor * prompt_s),
            (seen.tpot_s, slo.tpot_s),
            (seen.e2e_s, slo.e2e_s),
            (seen.wait_s, slo.wait_s),
        )
        found = [
            (sum([count for _, count in samples]), sum([count for took_s, count in samples if took_s > limit_s]))
            for samples, limit_s in limits
            if samples and limit_s is not None
        ]
        return max((ended for ended, _ in found), default=0), max((broken for _, broken in found), default=0)

    def memory(self) -> dict[str, object]:
        """For `restored`."""
        return asdict(self)

    @classmethod
    def restored(cls, memory: Mapping[str, Any]) -> Means:
        """As it was."""
        return cls(**memory)
