"""What the ledger says, as messages of the contract."""

from __future__ import annotations

from collections.abc import Iterable

from switchgear.recovery import model as m
from switchgear.recovery.goodput import Goodput, mttr_s, of_job, report
from switchgear.recovery.ledger import Bucket, Cost
from switchgear.recovery.machine import steps_redone
from switchgear.v1 import recovery_service_pb2 as pb


def goodput_to_proto(state: m.JobState, now: m.Now) -> pb.JobGoodput:
    found, redone = of_job(state, now), steps_redone(state)
    return pb.JobGoodput(
        name=f"{state.job}/goodput",
        wall_seconds=found.gpu_ns / state.spec.world_size / 1e9,
        gpu_seconds=found.gpu_ns / 1e9,
        buckets=_buckets(found),
        goodput=found.goodput,
        ettr=found.ettr,
        mttf_seconds=found.mttf_s,
        mttr_seconds=found.mttr_s,
        steps_productive=state.high_water_step,
        steps_redone=redone,
        costs=[_cost(cost) for cost in found.costs],
        report=report(state, found, redone),
    )


def reliability_to_proto(found: Goodput, groups: Iterable[tuple[str, Goodput]] = ()) -> pb.Reliability:
    """groups: the same by account, user or queue."""
    return pb.Reliability(
        jobs=found.jobs,
        gpu_seconds=found.gpu_ns / 1e9,
        goodput=found.goodput,
        ettr=found.ettr,
        mttf_seconds=found.mttf_s,
        mttr_seconds=found.mttr_s,
        costs=[_cost(cost) for cost in found.costs],
        groups=[
            pb.GoodputGroup(
                key=key,
                jobs=one.jobs,
                gpu_seconds=one.gpu_ns / 1e9,
                buckets=_buckets(one),
                goodput=one.goodput,
                ettr=one.ettr,
                costs=[_cost(cost) for cost in one.costs],
            )
            for key, one in groups
        ],
    )


def _buckets(found: Goodput) -> list[pb.GoodputBucket]:
    return [pb.GoodputBucket(bucket=b.value, gpu_seconds=found.buckets[b] / 1e9) for b in Bucket]


def _cost(cost: Cost) -> pb.FaultCost:
    return pb.FaultCost(
        cause=cost.cause,
        node=cost.node,
        incidents=cost.incidents,
        lost_gpu_seconds=cost.lost_gpu_ns / 1e9,
        mttr_seconds=mttr_s(cost),
    )
