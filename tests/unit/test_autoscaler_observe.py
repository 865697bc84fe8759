"""What a policy sees of a live service."""

from __future__ import annotations

from dataclasses import replace

from switchgear.autoscaler.meter import Done, Interval
from switchgear.autoscaler.model import InFlight, Load, ReplicaRecord, ReplicaState, ServiceRecord, ServiceSpec
from switchgear.autoscaler.observation import Observation, Phase, Work
from switchgear.autoscaler.observe import NodeView, Starts, observe, starts

CHAT = "inferenceServices/chat"
NOW_NS = 1_700_000_000_000_000_000
SERVICE = ServiceRecord(
    CHAT, ServiceSpec(("serve.py",), "/w", max_replicas=4, gpu_budget=4, cold_start_s=30.0), NOW_NS, 2
)


def replica(
    number: int, state: ReplicaState, age_s: float, ready_s: float | None = None, **more: object
) -> ReplicaRecord:
    born_ns = NOW_NS - int(age_s * 1e9)
    ready_ns = None if ready_s is None else born_ns + int(ready_s * 1e9)
    name = f"{CHAT}/replicas/{number}"
    return ReplicaRecord(
        CHAT, number, name, f"jobs/chat-r{number}", born_ns, state, ready_time_unix_ns=ready_ns, **more
    )  # type: ignore[arg-type]


def seen(*replicas: ReplicaRecord, interval: Interval | None = None, **more: object) -> Observation:
    given = {"started": Starts(frozenset()), "nodes": {}, **more}
    return observe(SERVICE, replicas, interval or Interval(), interval_s=5.0, now_unix_ns=NOW_NS, **given)  # type: ignore[arg-type]


def test_replicas_that_start_have_an_age_and_a_nominal_time_to_come() -> None:
    asked, starting = replica(1, ReplicaState.REQUESTED, 0.5), replica(2, ReplicaState.STARTING, 12.0)
    rows = seen(asked, starting).replicas
    assert [(row.name, row.phase, row.age_s, row.ready_in_s) for row in rows] == [
        ("1", Phase.STARTING, 0.5, 29.5),
        ("2", Phase.STARTING, 12.0, 18.0),
    ]
    taught = seen(starting, replica(3, ReplicaState.READY, 100.0, ready_s=20.0)).replicas
    assert taught[0].ready_in_s == 8.0  # what starts took beats what somebody said
    assert taught[1].ready_in_s is None


def test_a_replica_that_does_not_report_is_unknown_and_one_that_did_nothing_is_zero() -> None:
    ready = replica(1, ReplicaState.READY, 60.0, ready_s=30.0)
    silent = seen(ready).replicas[0]
    assert (silent.running, silent.waiting, silent.decode_tokens, silent.busy_s) == (None, None, None, None)
    load = Load("i", "h:1", True, running_requests=1, waiting_requests=0, sequences_max=4, remaining_tokens=30)
    idle = seen(ready, interval=Interval(loads={ready.name: load})).replicas[0]
    assert (idle.running, idle.waiting, idle.decode_tokens, idle.steps, idle.remaining_tokens) == (1, 0, 0, 0, 30)
    busy = Interval(
        loads={ready.name: load}, done={ready.name: Done(40, 2.5, 7, 10)}, in_flight={ready.name: InFlight(3, 90)}
    )
    row = seen(ready, interval=busy).replicas[0]
    assert (row.waiting, row.decode_tokens, row.busy_s, row.prefill_tokens, row.steps) == (2, 40, 2.5, 7, 10)


def test_bounds_budget_and_the_users_word_are_told() -> None:
    told = seen(interval=Interval(queue=Work(1), arrived=Work(2), kept=1, broken=0, blind="no router reports"))
    assert (told.max_replicas, told.gpu_budget, told.cold_start_s, told.scale_down_delay_s) == (4, 4, 30.0, None)
    assert (told.queue, told.arrived, told.kept, told.blind) == (Work(1), Work(2), 1, "no router reports")
    assert (told.engine.tokens_per_s, told.unix_s) == (100.0, NOW_NS / 1e9)


def test_health_of_its_node_is_a_replicas_health() -> None:
    one = replica(1, ReplicaState.READY, 60.0, ready_s=30.0, node="nodes/a")
    row = seen(one, nodes={"nodes/a": NodeView("H100", 0.5, sick=True)}).replicas[0]
    assert (row.gpu_model, row.speed, row.sick) == ("H100", 0.5, True)


def test_each_start_is_told_once_and_what_nobody_wanted_any_more_has_not_failed() -> None:
    ready = replica(1, ReplicaState.READY, 60.0, ready_s=25.0)
    first = starts([ready], None)
    assert (first.took_s, first.known) == ((), {ready.name})  # of a process before us
    coming = replica(2, ReplicaState.STARTING, 20.0)
    broke = replica(3, ReplicaState.FAILED, 20.0, end_time_unix_ns=NOW_NS)
    useless = replica(4, ReplicaState.STOPPED, 20.0, end_time_unix_ns=NOW_NS, drain_time_unix_ns=NOW_NS)
    second = starts([ready, coming, broke, useless], first.known)
    assert (second.took_s, second.failed_s) == ((), (20.0,))
    came = replace(coming, state=ReplicaState.READY, ready_time_unix_ns=NOW_NS)
    third = starts([ready, came, broke, useless], second.known)
    assert (third.took_s, third.failed_s) == ((20.0,), ())
    assert starts([ready, came, broke, useless], third.known).took_s == ()
