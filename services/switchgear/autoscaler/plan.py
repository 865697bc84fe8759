"""What becomes of a service and its replicas in one pass: the policy's decision, as its mode allows, then the replicas. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from switchgear.autoscaler.demand import Demand
from switchgear.autoscaler.model import ReplicaRecord, ReplicaState, ServiceRecord, World
from switchgear.autoscaler.policy import Cause, Decision, Less, Observation, decide
from switchgear.autoscaler.replicas import Plan, reconcile, start_s
from switchgear.core.modes import Mode

#: What it stands for in `policies/{policy}`.
POLICY = "autoscaler.scale"

#: After a change the sentence that explains it stays, as long as nothing but its success is to be told.
_NEWS = frozenset({Cause.LOAD, Cause.HELD, Cause.DOWN, Cause.IDLE, Cause.BOUNDS})


@dataclass(frozen=True, slots=True)
class Memory:
    """What the policy remembers of a service. replicas: what it has decided, which is not what is while it may not act."""

    replicas: int
    less: Less | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """plan: what to store. memory: for the next pass. before: what the policy had decided in the pass before."""

    plan: Plan
    memory: Memory
    before: int


def judge(
    service: ServiceRecord,
    replicas: Sequence[ReplicaRecord],
    world: World,
    *,
    demand: Demand,
    now_s: float,
    mode: Mode,
    memory: Memory | None,
) -> Pass:
    """One pass over one service. replicas: all of it that are stored."""
    if service.deleting:
        return Pass(reconcile(service, replicas, world), Memory(0), 0)
    before = memory.replicas if memory and mode is not Mode.ACT else service.desired
    coming = sum(replica.counts and replica.state is not ReplicaState.READY for replica in replicas)
    seen = Observation(service.spec, demand, before, coming, start_s(replicas), memory.less if memory else None)
    decision = decide(now_s, seen)
    if decision.cause is Cause.BLIND and not world.routers_heard:
        after = service  # they are just coming back
    else:
        after = _decided(service, decision, mode, world.now_unix_ns)
    return Pass(reconcile(after, replicas, world), Memory(decision.replicas, decision.less), before)


def _decided(service: ServiceRecord, decision: Decision, mode: Mode, now_unix_ns: int) -> ServiceRecord:
    """The service after the decision; as it was when that is no news."""
    # Bounds are the user's word, not the policy's: they hold in every mode.
    kept = service.spec.bounded(service.desired)
    match mode:
        case Mode.ACT:
            after = replace(service, desired=decision.replicas, advised=None, cause=decision.cause.value)
            text = decision.text
        case Mode.ADVISE:
            after = replace(service, desired=kept, advised=decision.replicas, cause=f"ADVISE-{decision.cause}")
            text = f"stays at {kept} since {POLICY} only advises; the advice: {decision.text}"
        case Mode.OBSERVE:
            after = replace(service, desired=kept, advised=None, cause="OBSERVE")
            text = f"stays at {kept} since {POLICY} only observes"
    same = (after.desired, after.advised) == (service.desired, service.advised)
    told = mode is not Mode.OBSERVE and service.cause.removeprefix("ADVISE-") in _NEWS
    if same and (after.cause == service.cause or (decision.cause is Cause.FITS and told)):
        return service
    return replace(after, decision=text, decide_time_unix_ns=now_unix_ns)
