"""From one look at a service to the number of replicas that there should be. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, Self, runtime_checkable

from pydantic import JsonValue

from switchgear.autoscaler import policies
from switchgear.autoscaler.adapters.fleet import Fleet
from switchgear.autoscaler.adapters.scrape import Reading
from switchgear.autoscaler.adapters.table import BY_NAME
from switchgear.autoscaler.baselines.registry import scaler
from switchgear.autoscaler.decision_log import Head, Record
from switchgear.autoscaler.external.presence import GRACE_S, Look, NoPage, Presence
from switchgear.autoscaler.external.settings import Service
from switchgear.autoscaler.external.starts import Starts
from switchgear.autoscaler.external.state import State
from switchgear.autoscaler.observation import Observation, ReplicaRow, Scaler
from switchgear.autoscaler.sizing.policy import Policy

#: Between two looks at a Prometheus: twice the time in which most scrape, so that each look finds a new sample of each replica.
PROMETHEUS_S = 30.0

FIRST_LOOK = "a first look tells only where counters stand"


@dataclass(frozen=True, slots=True)
class Decided:
    """record: what the policy saw and said; None: nothing was decided, as `text` says.

    desired: what is in force; while blind never less than before, whatever the policy. current: replicas that answered. blind: why the
    service is not seen; empty: it is. held: what was desired when that began. text: why, as one sentence.
    """

    record: Record | None
    desired: int
    current: int
    blind: str
    held: int
    text: str


class Deciding:
    """One service. state: from before a restart; None: there is none, and what is there is taken for what is desired."""

    def __init__(self, service: Service, state: State | None) -> None:
        """Raises Invalid when the service's policy does not exist, or what it remembered means nothing to it."""
        self.name = service.name
        self._service = service
        memory = state.memory if state is not None and state.policy == service.policy else None
        self._scaler = _begun(service.policy, memory)
        self._fleet = Fleet(service.engine)
        grace_s = max(GRACE_S, 3 * (service.cold_start_s or 0.0))
        self._presence = Presence(grace_s, () if state is None else state.answered)
        self._starts = Starts() if state is None else Starts(state.asked_s, state.answered)
        self._desired = state.desired if state is not None else None
        self._held: int | None = None
        #: Whether the gateway has told how many requests it holds. Until it has, nobody could see what should end a rest at zero.
        self._holds_told = False

    @property
    def interval_s(self) -> float:
        """Between two looks."""
        if self._service.interval_s is not None:
            return self._service.interval_s
        period_s = BY_NAME[self._service.engine].period_s if self._service.engine else 0.0
        return max(self._scaler.interval_s, period_s, PROMETHEUS_S if self._service.prometheus else 0.0)

    def step(self, now_s: float, unix_s: float, look: Look) -> Decided:
        """now_s: the policy's clock."""
        ready = {name: one for name, one in look.found.items() if isinstance(one, Reading)}
        desired = _there(look) if self._desired is None else self._desired
        unseen, lost = self._presence.unseen(now_s, look, desired)
        cold_starts_s = self._starts.came(now_s, ready)
        self._starts.want(now_s, desired, len(ready))
        front = look.gateway.why if isinstance(look.gateway, NoPage) else look.gateway
        told = self._fleet.step(now_s, {**ready, **unseen}, front)
        blind = "; ".join(filter(None, (look.trouble, lost, told.blind)))
        trouble = look.trouble
        if self._desired is None and not look.found and self._service.min_replicas:
            # A name or selector with a slip finds nobody either, and the least number would take away all the others.
            trouble = trouble or "no replica is listed; what there is, is left alone until one is"
        if told.interval_s <= 0 or (self._desired is None and trouble):
            self._desired = None if trouble else desired
            return Decided(None, desired, len(ready), blind, desired, trouble or FIRST_LOOK)
        self._holds_told |= told.queue is not None
        kept = desired > 0 and not self._holds_told
        seen = replace(
            told,
            desired=desired,
            replicas=(*(self._aged(now_s, row) for row in told.replicas), *self._starts.rows(now_s)),
            min_replicas=max(self._service.min_replicas, 1 if kept else 0),
            max_replicas=self._service.max_replicas,
            slo=self._service.slo.promise(),
            gpus_per_replica=self._service.gpus_per_replica,
            gpu_budget=self._service.gpu_budget,
            cold_starts_s=cold_starts_s,
            cold_start_s=self._service.cold_start_s,
            unix_s=unix_s,
            blind=blind,
        )
        return self._decide(now_s, len(ready), seen)

    def new_head(self) -> Head:
        """A file of decisions begins with what is remembered, and from there alone the policy goes on: whoever replays it decides the same.

        A policy without memory begins anew.
        """
        memory = self._memory()
        self._scaler = _begun(self._service.policy, memory)
        return Head(self.name, self._service.policy, memory)

    def state(self, now_s: float, unix_s: float) -> State:
        """What a restart goes on from, after a decision."""
        return State(
            now_s,
            unix_s,
            self._desired or 0,
            self._starts.asked_s,
            self._presence.answered,
            self._service.policy,
            self._memory(),
        )

    def _decide(self, now_s: float, current: int, seen: Observation) -> Decided:
        decision = self._scaler.decide(now_s, seen)
        before, desired, text = seen.bounded(seen.desired), seen.bounded(decision.replicas), decision.text
        if not seen.blind:
            self._held = None
            if desired < before and self._presence.misses:
                why = "one that answered is gone, perhaps only from the list, and what it does is not seen"
                desired, text = before, f"stays at {before}: {why}"
        else:
            if self._held is None:
                self._held = before
            if desired < before:  # a policy that knows no blindness
                desired, text = before, f"stays at {before}, since it is not seen: {seen.blind}"
        if seen.min_replicas > self._service.min_replicas:
            text += "; one is kept, since the gateway has not told yet how many requests it holds: look at gateway and gateway_labels"
        self._desired = desired
        self._starts.want(now_s, desired, current)
        held = desired if self._held is None else self._held
        return Decided(Record(now_s, seen, decision), desired, current, seen.blind, held, text)

    def _aged(self, now_s: float, row: ReplicaRow) -> ReplicaRow:
        return replace(row, age_s=now_s - self._presence.listed_s(row.name))

    def _memory(self) -> dict[str, JsonValue] | None:
        return _plain(self._scaler.memory()) if isinstance(self._scaler, Remembering) else None


@runtime_checkable
class Remembering(Scaler, Protocol):
    """A policy that goes on after a restart from what it had learned."""

    def memory(self) -> Mapping[str, JsonValue]: ...
    @classmethod
    def restored(cls, memory: Mapping[str, JsonValue]) -> Self: ...


def _there(look: Look) -> int:
    """Replicas that somebody wants already: those that are listed, of a fixed list those that are not off."""
    return sum(look.certain or not (isinstance(one, NoPage) and one.off) for one in look.found.values())


def _begun(policy: str, memory: Mapping[str, JsonValue] | None) -> Scaler:
    made = scaler(policy)
    if memory is not None and isinstance(made, Policy):
        return policies.restored(memory)
    return type(made).restored(memory) if memory is not None and isinstance(made, Remembering) else made


def _plain(memory: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """As it comes back from a file."""
    plain: dict[str, JsonValue] = json.loads(json.dumps(memory))
    return plain
