"""What becomes of a service and its replicas in one pass: the decision in force, as its mode allows, then the replicas. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from switchgear.autoscaler.borrowing import BORROWED_S_MIN, borrowed, kept_until_unix_ns
from switchgear.autoscaler.model import ReplicaRecord, ServiceRecord, ServiceSpec, World
from switchgear.autoscaler.observation import Decision
from switchgear.autoscaler.replicas import Plan, reconcile
from switchgear.core.modes import Mode

#: What it stands for in `policies/{policy}`.
POLICY = "autoscaler.scale"

#: Causes of decisions: the bounds are the user's word; nothing but that it has what it needs.
BOUNDS, FITS = "BOUNDS", "FITS"
#: After a change the sentence that explains it stays, as long as nothing but its success is to be told.
_NEWS = frozenset({"LOAD", "HELD", "DOWN", "IDLE", BOUNDS})
#: The database has room for so much.
_CAUSE_LENGTH_MAX = 16


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the policy decided last. heard: False while routers are just coming back, so that not seeing them is no news."""

    decision: Decision
    heard: bool = True


def judge(
    service: ServiceRecord,
    replicas: Sequence[ReplicaRecord],
    world: World,
    *,
    verdict: Verdict | None,
    mode: Mode,
    stuck: str = "",
) -> Plan:
    """One pass over one service. replicas: all of it that are stored. verdict: None: nothing has been decided yet. stuck: see `reconcile`."""
    if not service.deleting:
        if verdict is not None and mode is Mode.ACT:
            verdict = replace(verdict, decision=_not_too_soon(service, replicas, world, verdict.decision))
        service = _decided(service, verdict, mode, world.now_unix_ns)
    return reconcile(service, replicas, world, stuck)


def _not_too_soon(
    service: ServiceRecord, replicas: Sequence[ReplicaRecord], world: World, decision: Decision
) -> Decision:
    """The decision, or to stay for a while where it would give back what was borrowed just now."""
    loans = borrowed(replicas, world.loans, service.spec.gpus_per_replica)
    if decision.replicas >= service.desired or world.now_unix_ns >= kept_until_unix_ns(loans):
        return decision
    lender = max(loans, key=lambda loan: loan.since_unix_ns).lender
    text = f"stays at {service.desired}: GPUs were borrowed of {lender} less than {BORROWED_S_MIN:g} s ago"
    return Decision(service.desired, "BORROWED", f"{text}; what is to come then: {decision.text}")


def within_bounds(spec: ServiceSpec, replicas: int) -> Decision:
    """What the user's bounds make of a number of replicas."""
    bounded = spec.bounded(replicas)
    allowed = f"{min(spec.min_replicas, spec.most)} to {spec.most} replicas are allowed"
    return Decision(bounded, BOUNDS, f"goes from {replicas} to {bounded}: {allowed}")


def _decided(service: ServiceRecord, verdict: Verdict | None, mode: Mode, now_unix_ns: int) -> ServiceRecord:
    """The service after the decision; as it was when that is no news."""
    # Bounds are the user's word, not the policy's: they hold in every mode.
    kept = service.spec.bounded(service.desired)
    if kept != service.desired:
        moved = within_bounds(service.spec, service.desired)
        service = replace(service, desired=kept, cause=BOUNDS, decision=moved.text, decide_time_unix_ns=now_unix_ns)
    if verdict is None:
        return service
    decision = replace(verdict.decision, replicas=service.spec.bounded(verdict.decision.replicas))
    match mode:
        case Mode.ACT:
            after = replace(service, desired=decision.replicas, advised=None, cause=decision.cause)
            text = decision.text
        case Mode.ADVISE:
            after = replace(service, advised=decision.replicas, cause=f"ADVISE-{decision.cause}")
            text = f"stays at {kept} since {POLICY} only advises; the advice: {decision.text}"
        case Mode.OBSERVE:
            after = replace(service, advised=None, cause="OBSERVE")
            text = f"stays at {kept} since {POLICY} only observes"
    after = replace(after, cause=after.cause[:_CAUSE_LENGTH_MAX])
    if (after.desired, after.advised) == (service.desired, service.advised):
        told = mode is not Mode.OBSERVE and service.cause.removeprefix("ADVISE-") in _NEWS
        if after.cause == service.cause or not verdict.heard or (decision.cause == FITS and told):
            return service
    return replace(after, decision=text, decide_time_unix_ns=now_unix_ns)
