"""The policies of one service at work: the live one and the shadow beside it, from one observation to the next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from switchgear.autoscaler import policies
from switchgear.autoscaler.decision_log import Head, Record
from switchgear.autoscaler.observation import Decision, Observation, Scaler
from switchgear.autoscaler.sizing.policy import Policy
from switchgear.core.errors import Invalid

#: A pass that comes a little early is not to wait for the next one.
EARLY_S = 0.1
#: Of what a policy remembers, as JSON; weeks of patterns take some ten thousand.
MEMORY_LENGTH_MAX = 1 << 20
#: Time constant of the mean of arrivals that is shown.
SHOWN_S = 10.0


@dataclass(frozen=True, slots=True)
class Memory:
    """What a policy has learned, and when: `now_s` on its own clock, which never goes back, and by the wall clock."""

    policy: str
    learned: dict[str, JsonValue]
    now_s: float
    unix_s: float


@dataclass(slots=True)
class Shadow:
    """A policy that decides without effect. Seconds times replicas since it began: that it wanted, and that the decisions in force did."""

    name: str
    scaler: Scaler
    start_unix_s: float
    decision: Decision
    replica_s: float = 0.0
    live_replica_s: float = 0.0

    def decide(self, now_s: float, seen: Observation) -> None:
        """Takes a decision; a shadow that cannot costs the live policy nothing."""
        try:
            self.decision = self.scaler.decide(now_s, seen)
        except Exception as error:
            self.decision = Decision(
                self.decision.replicas, "FAILED", f"could not decide: {type(error).__name__} {error}"
            )


@dataclass(frozen=True, slots=True)
class Decided:
    """record: for the log. head: of the file that must begin with it; None: the record goes on in the file that is there.

    before: what the policy had wanted until now.
    """

    record: Record
    head: Head | None
    before: int


class Scaling:
    """The policies of the service `name`. memory: of a process before; None: there is none, or it is another policy's."""

    def __init__(self, name: str, memory: Memory | None, now_s: float, unix_s: float) -> None:
        self._name = name
        self._scaler = policies.live()
        self._ahead_s = 0.0  # of the policy's clock before the monotonic one
        if memory is not None and memory.policy == self._scaler.name:
            self._scaler = _restored(memory)
            self._ahead_s = memory.now_s + max(0.0, unix_s - memory.unix_s) - now_s
        self._last_s = now_s - self._scaler.interval_s
        self._fresh = True
        self._shadow_wanted = ""
        #: What was decided last; None: nothing yet.
        self.decision: Decision | None = None
        self.seen: Observation | None = None
        self.shadow: Shadow | None = None
        #: Names of replicas whose start the policy knows of; None: not any yet.
        self.known_starts: frozenset[str] | None = None
        #: Requests since this process began.
        self.kept = self.broken = 0
        #: Tokens of prompts, and the most that may be generated, as a mean of `SHOWN_S`.
        self.arriving_tokens_per_s = 0.0

    def interval_s(self, now_s: float) -> float:
        """Since the last decision."""
        return now_s - self._last_s

    def due(self, now_s: float, *, urgent: bool) -> bool:
        """Whether to decide now. urgent: something waits for a decision."""
        return urgent or self.decision is None or self.interval_s(now_s) >= self._scaler.interval_s - EARLY_S

    def decide(self, now_s: float, seen: Observation, *, mode: str, begins: bool) -> Decided:
        """Takes a decision. mode: what will be made of it. begins: the log begins a file."""
        self._account(now_s, seen)
        head = None
        if begins or self._fresh:
            head = self._begin()
        at_s, before = now_s + self._ahead_s, self.wanted if self.decision else seen.desired
        self._fresh = True  # whoever fails in the midst of it decides what no log tells: then the next file begins
        self.decision, self.seen, self._last_s = self._scaler.decide(at_s, seen), seen, now_s
        self._fresh = False
        if self.shadow is not None:
            self.shadow.decide(at_s, seen)
        return Decided(
            Record(at_s, seen, self.decision, mode, self.shadow.decision if self.shadow else None), head, before
        )

    @property
    def wanted(self) -> int:
        """What the policy decided last, within bounds; 0 before the first decision."""
        return self.seen.bounded(self.decision.replicas) if self.seen and self.decision else 0

    def follow(self, shadow: str, now_unix_s: float, desired: int) -> None:
        """Begins or ends the shadow as the service has it; a policy that there is not (any more) is none."""
        if self._shadow_wanted == shadow:
            return
        self._shadow_wanted, self.shadow, self._fresh = shadow, None, True
        if policies.exists(shadow):
            waits = Decision(desired, "NEW", "has not decided yet")
            self.shadow = Shadow(shadow, policies.scaler(shadow), now_unix_s, waits)

    def memory(self, now_s: float, unix_s: float) -> Memory:
        """What to go on from after a restart."""
        return Memory(self._scaler.name, _plain(self._scaler.memory()), now_s + self._ahead_s, unix_s)

    def _begin(self) -> Head:
        """A file begins with what is remembered, and from there alone the policy goes on: so whoever replays the file decides the same."""
        memory = _plain(self._scaler.memory())
        self._scaler = policies.restored(memory)
        self._fresh = False
        return Head(self._name, self._scaler.name, memory, self.shadow.name if self.shadow else "")

    def _account(self, now_s: float, seen: Observation) -> None:
        interval_s = max(0.0, self.interval_s(now_s)) if self.decision else 0.0
        self.kept += seen.kept or 0
        self.broken += seen.broken or 0
        if self.shadow is not None:
            self.shadow.replica_s += interval_s * seen.bounded(self.shadow.decision.replicas)
            self.shadow.live_replica_s += interval_s * seen.desired
        if seen.arrived is not None and interval_s:
            tokens = (seen.arrived.input_tokens or 0) + (seen.arrived.output_tokens or 0)
            share = min(1.0, interval_s / SHOWN_S)
            self.arriving_tokens_per_s += share * (tokens / interval_s - self.arriving_tokens_per_s)


def _restored(memory: Memory) -> Policy:
    """What another version has learned may mean nothing to this one, which then learns anew."""
    try:
        return policies.restored(memory.learned)
    except Invalid:
        return policies.live()


def _plain(memory: Mapping[str, object]) -> dict[str, JsonValue]:
    """As it comes back from a file. One beyond all bounds, or with a number that is none, is dropped: learning anew is better than a full
    database, and than one that takes nothing more."""
    try:
        text = json.dumps(memory, allow_nan=False)
    except ValueError:
        return {}
    plain: dict[str, JsonValue] = json.loads(text) if len(text) <= MEMORY_LENGTH_MAX else {}
    return plain
