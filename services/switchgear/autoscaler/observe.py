"""From what is stored and reported of a service to what its policy sees. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from switchgear.autoscaler.meter import Done, Interval
from switchgear.autoscaler.model import ReplicaRecord, ReplicaState, ServiceRecord
from switchgear.autoscaler.observation import Engine, Observation, Phase, ReplicaRow
from switchgear.autoscaler.replicas import start_s

_PHASES = {
    ReplicaState.REQUESTED: Phase.STARTING,
    ReplicaState.STARTING: Phase.STARTING,
    ReplicaState.READY: Phase.READY,
    ReplicaState.DRAINING: Phase.DRAINING,
}


@dataclass(frozen=True, slots=True)
class NodeView:
    """What is known of a node: as `ReplicaRow` has it."""

    gpu_model: str = ""
    speed: float | None = None
    sick: bool = False


@dataclass(frozen=True, slots=True)
class Starts:
    """Starts that came to an end. known: replicas whose start a policy has been told of."""

    known: frozenset[str]
    took_s: tuple[float, ...] = ()
    failed_s: tuple[float, ...] = ()


def starts(replicas: Iterable[ReplicaRecord], known: frozenset[str] | None) -> Starts:
    """Those that ended since `known`; None: nothing was told yet, and what is over has been learnt before or never will be."""
    ended = [one for one in replicas if one.ready_time_unix_ns is not None or one.ended]
    names = frozenset(one.name for one in ended)
    if known is None:
        return Starts(names)
    news = [one for one in ended if one.name not in known]
    return Starts(
        names,
        tuple(_seconds(one, one.ready_time_unix_ns) for one in news if one.ready_time_unix_ns is not None),
        # One that was not needed any more before it began has not failed.
        tuple(
            _seconds(one, one.end_time_unix_ns)
            for one in news
            if one.ready_time_unix_ns is None and one.drain_time_unix_ns is None
        ),
    )


def observe(
    service: ServiceRecord,
    replicas: Sequence[ReplicaRecord],
    interval: Interval,
    *,
    interval_s: float,
    now_unix_ns: int,
    started: Starts,
    nodes: Mapping[str, NodeView],
) -> Observation:
    """What a policy sees. replicas: all of the service that are stored. interval: of the last `interval_s`. nodes: by name."""
    spec = service.spec
    nominal_s = start_s(replicas) or spec.cold_start_s
    rows = tuple(
        _row(one, interval, now_unix_ns, nominal_s, nodes.get(one.node, NodeView()))
        for one in replicas
        if not one.ended
    )
    batches = [load.sequences_max for load in interval.loads.values() if load.sequences_max]
    return Observation(
        interval_s=interval_s,
        desired=service.desired,
        replicas=rows,
        min_replicas=spec.min_replicas,
        max_replicas=spec.max_replicas,
        slo=spec.slo,
        gpus_per_replica=spec.gpus_per_replica,
        gpu_budget=spec.gpu_budget,
        queue=interval.queue,
        oldest_wait_s=interval.oldest_wait_s,
        arrived=interval.arrived,
        arrivals=interval.arrivals,
        completed=interval.completed,
        kept=interval.kept,
        broken=interval.broken,
        ttft_s=interval.ttft_s,
        tpot_s=interval.tpot_s,
        e2e_s=interval.e2e_s,
        wait_s=interval.wait_s,
        cold_starts_s=started.took_s,
        failed_starts_s=started.failed_s,
        cold_start_s=spec.cold_start_s,
        engine=Engine(
            prefill_tokens_per_s=spec.prefill_tokens_per_s,
            sequences_max=min(batches, default=None),
            tokens_per_s=spec.tokens_per_s,
        ),
        scale_down_delay_s=spec.scale_down_delay_s,
        unix_s=now_unix_ns / 1e9,
        blind=interval.blind,
    )


def _row(
    replica: ReplicaRecord, interval: Interval, now_unix_ns: int, nominal_s: float | None, node: NodeView
) -> ReplicaRow:
    name = replica.name.rpartition("/")[2]
    age_s = max(0.0, (now_unix_ns - replica.create_time_unix_ns) / 1e9)
    phase = _PHASES[replica.state]
    load = interval.loads.get(replica.name)
    if phase is Phase.STARTING or load is None:
        coming = phase is Phase.STARTING and nominal_s is not None
        return ReplicaRow(
            name,
            phase,
            age_s,
            max(0.0, nominal_s - age_s) if coming and nominal_s is not None else None,
            gpu_model=node.gpu_model,
            speed=node.speed,
            sick=node.sick,
        )
    done = interval.done.get(replica.name, Done(prefill_tokens=0, steps=0))
    sent = interval.in_flight.get(replica.name)
    # A router tells more often than a replica: what it has just sent waits there, as far as anybody knows.
    waiting = max(load.waiting_requests, sent.requests - load.running_requests) if sent else load.waiting_requests
    return ReplicaRow(
        name,
        phase,
        age_s,
        gpu_model=node.gpu_model,
        speed=node.speed,
        sick=node.sick,
        waiting=waiting,
        running=load.running_requests,
        kv_use=load.kv_use,
        prefill_tokens=done.prefill_tokens,
        decode_tokens=done.decode_tokens,
        busy_s=done.busy_s,
        steps=done.steps,
        remaining_tokens=load.remaining_tokens,
    )


def _seconds(replica: ReplicaRecord, until_unix_ns: int | None) -> float:
    return max(0.0, ((until_unix_ns or 0) - replica.create_time_unix_ns) / 1e9)
