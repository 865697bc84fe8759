"""The life of replicas, from what is stored and seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from switchgear.autoscaler.model import (
    InFlight,
    JobEnd,
    JobView,
    Load,
    ReplicaRecord,
    ReplicaState,
    RouterReport,
    ServiceRecord,
    ServiceReport,
    ServiceSpec,
    World,
)
from switchgear.autoscaler.replicas import effects, orphans, reconcile, start_s

CHAT = "inferenceServices/chat"
S = 1_000_000_000
NOW = 1000 * S
SERVICE = ServiceRecord(CHAT, ServiceSpec(("serve.py",), "/w", max_replicas=9), 0, desired=1, last_number=9)


def replica(number: int, state: ReplicaState = ReplicaState.READY, **fields: object) -> ReplicaRecord:
    if state in (ReplicaState.READY, ReplicaState.DRAINING):
        fields = {"ready_time_unix_ns": 10 * S, "node": "nodes/a", "address": "h:1", **fields}
    return ReplicaRecord(CHAT, number, f"{CHAT}/replicas/{number}", f"jobs/chat-r{number}", 0, state, **fields)  # type: ignore[arg-type]


def job(one: ReplicaRecord, end: JobEnd | None = None, message: str = "") -> dict[str, JobView]:
    return {one.job: JobView(one.name, end, message, "nodes/a")}


def world(**fields: object) -> World:
    return World(**{"now_unix_ns": NOW, "jobs": {}, **fields})  # type: ignore[arg-type]


def failed(number: int, end_s: float, ready_s: float | None = None, **fields: object) -> ReplicaRecord:
    ready = None if ready_s is None else int(ready_s * S)
    times = {"ready_time_unix_ns": ready, "end_time_unix_ns": int(end_s * S)}
    return replica(number, ReplicaState.FAILED, message="boom", **times, **fields)


def test_those_that_serve_least_go_first() -> None:
    ready = [replica(number) for number in (1, 2, 3)]
    stored = [*ready, replica(4, ReplicaState.STARTING, node="nodes/a"), replica(5, ReplicaState.REQUESTED)]
    jobs = {name: view for one in stored[:4] for name, view in job(one).items()}
    loads = {one.name: Load("i", "h:1", True, requests) for one, requests in zip(ready, (2, 1, 2), strict=True)}
    seen = world(jobs=jobs, loads=loads)
    order = []
    for desired in (4, 3, 2, 1, 0):
        plan = reconcile(replace(SERVICE, desired=desired), stored, seen)
        drained = {one.number for one in plan.replicas if one.state is ReplicaState.DRAINING}
        order += [number for number in drained if number not in order]
    assert order == [5, 4, 2, 3, 1]


def test_a_replica_on_a_node_that_is_to_be_left_goes_before_an_idle_one() -> None:
    stored = [replica(1, node="nodes/b"), replica(2)]
    jobs = {one.job: JobView(one.name, node=one.node) for one in stored}
    loads = {one.name: Load("i", "h:1", True, requests) for one, requests in zip(stored, (3, 0), strict=True)}
    plan = reconcile(SERVICE, stored, world(jobs=jobs, loads=loads, sick=frozenset({"nodes/b"})))
    assert [one.number for one in plan.replicas if one.state is ReplicaState.DRAINING] == [1]


def test_a_replica_that_does_not_report_is_not_taken_for_an_idle_one() -> None:
    stored = [replica(1), replica(2)]
    seen = world(jobs=job(stored[0]) | job(stored[1]), loads={stored[0].name: Load("i", "h:1", True, 4)})
    (drained,) = reconcile(SERVICE, stored, seen).replicas
    assert drained.number == 1


@pytest.mark.parametrize(("failures", "waits"), [(1, 0), (2, 1), (3, 2), (4, 4), (8, 60), (20, 60)])
def test_replicas_that_fail_in_a_row_make_the_next_one_wait(failures: int, waits: float) -> None:
    history = [failed(number, 900 + number) for number in range(1, failures + 1)]
    ended_s = 900 + failures
    if waits:
        plan = reconcile(SERVICE, history, world(now_unix_ns=int((ended_s + waits - 0.1) * S)))
        assert plan.replicas == ()
        assert f"{failures} replicas in a row" in plan.service.hindrance
        assert plan.service.hindrance.endswith(f"replicas/{failures}: boom")
    plan = reconcile(SERVICE, history, world(now_unix_ns=int((ended_s + waits + 0.1) * S)))
    assert [one.state for one in plan.replicas] == [ReplicaState.REQUESTED]
    assert plan.service.last_number == 10


def test_a_replica_whose_gpus_were_taken_ends_and_another_one_waits_in_its_place() -> None:
    taken = replica(9)
    seen = world(jobs={taken.job: JobView(taken.name, message="waits for GPUs")})
    ended, fresh = reconcile(SERVICE, [taken], seen).replicas
    assert (ended.state, ended.message) == (ReplicaState.STOPPED, "its GPUs were taken for a job of a higher claim")
    assert (fresh.number, fresh.state) == (10, ReplicaState.REQUESTED)
    assert orphans([ended, fresh], seen) == (taken.job,)


def test_what_has_served_or_was_sent_away_is_no_crash() -> None:
    history = [failed(1, 998), failed(2, 999, ready_s=900), failed(3, 999.5), failed(4, 999.6, drain_time_unix_ns=1)]
    assert len(reconcile(SERVICE, history, world()).replicas) == 1
    back_from_the_future = [failed(1, 5000), failed(2, 5001)]
    assert len(reconcile(SERVICE, back_from_the_future, world()).replicas) == 1


def test_nothing_is_asked_for_while_the_scheduler_does_not_tell() -> None:
    requested = replica(1, ReplicaState.REQUESTED)
    assert effects(SERVICE, [requested], world(jobs=None)).create == ()
    assert effects(SERVICE, [requested], world()).create == (requested,)
    assert effects(SERVICE, [requested], world(jobs=job(requested))).create == ()


def test_a_ready_replica_outlives_its_stream_and_the_schedulers_silence() -> None:
    assert reconcile(SERVICE, [replica(1)], world(jobs=None)).replicas == ()
    assert reconcile(SERVICE, [replica(1)], world(jobs=job(replica(1)))).replicas == ()
    gone, fresh = reconcile(SERVICE, [replica(1)], world(jobs={})).replicas
    assert (gone.state, gone.message) == (ReplicaState.FAILED, "jobs/chat-r1 is gone from the scheduler")
    assert fresh.state is ReplicaState.REQUESTED


def test_a_replica_that_says_it_is_not_ready_is_not_routed_to() -> None:
    one = replica(1)
    seen = world(jobs=job(one), loads={one.name: Load("i", "h:1", ready=False)})
    (after,) = reconcile(SERVICE, [one], seen).replicas
    assert after.state is ReplicaState.STARTING
    (again,) = reconcile(SERVICE, [after], world(jobs=job(one), loads={one.name: Load("i", "h:1", True)})).replicas
    assert (again.state, again.ready_time_unix_ns) == (ReplicaState.READY, 10 * S)


def draining(**fields: object) -> ReplicaRecord:
    return replica(1, ReplicaState.DRAINING, drain_time_unix_ns=NOW - 5 * S, drain_revision=7, **fields)


IDLE = Load("i", "h:1", True)
BUSY = ServiceReport(in_flight={draining().name: InFlight(1, 10)})


@pytest.mark.parametrize(
    ("may", "seen"),
    [
        (True, {"routers": (RouterReport(7), RouterReport(9))}),
        (True, {}),
        (False, {"routers": (RouterReport(7), RouterReport(6))}),
        (False, {"routers": (RouterReport(7, {CHAT: BUSY}),)}),
        (False, {"routers_heard": False}),
        (False, {"loads": {}}),
        (False, {"loads": {draining().name: Load("i", "h:1", True, 1)}}),
        (False, {"loads": {draining().name: Load("i", "h:1", True, 0, 1)}}),
        (True, {"loads": {}, "now_unix_ns": NOW + 56 * S}),
    ],
)  # fmt: skip
def test_a_drained_replica_may_end_when_nothing_can_be_lost(may: bool, seen: dict[str, object]) -> None:
    one = draining()
    fields = {"jobs": job(one), "loads": {one.name: IDLE}, **seen}
    assert effects(SERVICE, [one], world(**fields)).cancel == ((one.job,) if may else ())


def test_a_drained_replica_that_never_got_a_job_is_over_once_no_call_is_under_way() -> None:
    one = replica(1, ReplicaState.DRAINING, ready_time_unix_ns=None, node="", drain_time_unix_ns=NOW)
    idle = replace(SERVICE, desired=0)
    assert reconcile(idle, [one], world(creating=frozenset({one.name}))).replicas == ()
    (after,) = reconcile(idle, [one], world()).replicas
    assert (after.state, after.message) == (ReplicaState.STOPPED, "was not needed any more before it began")
    # A call that arrives late all the same made a job that nobody wants.
    assert orphans([after], world(jobs=job(one))) == (one.job,)
    assert orphans([one], world(jobs=job(one))) == ()


def test_the_time_of_a_start_is_that_of_most() -> None:
    assert start_s([replica(1, ReplicaState.STARTING)]) is None
    ready = [replica(number, ready_time_unix_ns=seconds * S) for number, seconds in enumerate((4, 5, 90), 1)]
    assert start_s(ready) == 5.0
