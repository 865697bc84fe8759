"""A simulated replica, against what can be computed by hand."""

from __future__ import annotations

import math
import random

import pytest

from switchgear.autoscaler.simulate.replica import Request, ServiceModel, SimReplica

#: An iteration: 20 ms, 1 ms for each sequence, and 128 ms for a chunk of a prompt.
MODEL = ServiceModel(
    prefill_s_per_token=0.25e-3,
    chunk_tokens=512,
    step_s=0.02,
    step_s_per_sequence=1e-3,
    sequences_max=4,
    kv_tokens=4000,
)


def served(replica: SimReplica, *, until_s: float = 1e6) -> list[Request]:
    """What ends, from event to event."""
    ended: list[Request] = []
    while (next_s := replica.next_event_s()) <= until_s:
        ended += replica.advance(next_s)
    return ended


def test_a_lone_request_reads_its_prompt_in_chunks_then_gains_a_token_an_iteration() -> None:
    replica, request = SimReplica(MODEL, 0.0), Request(0, 0.0, 1024, 11)
    replica.add(request)
    assert served(replica) == [request]
    assert request.begun_s == 0.0
    assert request.first_s == pytest.approx(2 * 0.148)
    assert request.end_s == pytest.approx(2 * 0.148 + 10 * 0.021)
    assert MODEL.prefill_s(1024) == pytest.approx(2 * 0.148)


def test_a_prompt_that_is_read_slows_the_answer_of_another_down() -> None:
    replica, first, second = SimReplica(MODEL, 0.0), Request(0, 0.0, 512, 3), Request(1, 0.0, 512, 3)
    replica.add(first)
    replica.add(second)
    served(replica)
    assert first.first_s == pytest.approx(0.148)
    assert second.first_s == pytest.approx(0.148 + 0.149)
    assert first.end_s == pytest.approx(0.297 + 0.022)
    assert second.end_s == pytest.approx(0.319 + 0.021)


def test_work_is_conserved_and_ends_with_nothing_left() -> None:
    replica = SimReplica(MODEL, 0.0)
    requests = [Request(number, 0.0, 100 + 90 * number, 1 + 7 * number) for number in range(8)]
    for request in requests:
        replica.add(request)
    assert sorted(one.number for one in served(replica)) == list(range(8))
    assert replica.prefill_tokens == pytest.approx(sum(one.input_tokens for one in requests))
    assert replica.decode_tokens == pytest.approx(sum(one.output_tokens for one in requests))
    assert replica.idle
    assert (replica.kv_use, replica.remaining_tokens, replica.running, replica.waiting) == (0.0, 0, 0, 0)
    assert replica.busy_s == pytest.approx(max(one.end_s for one in requests))


def test_no_more_sequences_run_than_the_batch_and_the_cache_hold() -> None:
    replica = SimReplica(MODEL, 0.0)
    for number in range(9):
        replica.add(Request(number, 0.0, 900, 200))
    while replica.running < 3 and replica.next_event_s() < 10:
        replica.advance(replica.next_event_s())
    replica.advance(replica.next_event_s())
    # Three times 1,100 tokens fit into 4,000; a fourth does not.
    assert (replica.running, replica.waiting) == (3, 6)
    assert replica.kv_use == pytest.approx(3300 / 4000)


def test_a_request_larger_than_the_cache_runs_alone() -> None:
    replica, large = SimReplica(MODEL, 0.0), Request(0, 0.0, 9000, 5)
    replica.add(large)
    assert served(replica) == [large]


def test_a_throttled_replica_takes_twice_as_long_and_a_dead_one_for_ever() -> None:
    slow, request = SimReplica(MODEL, 0.0), Request(0, 0.0, 512, 2)
    slow.speed = 0.5
    slow.add(request)
    served(slow)
    assert request.end_s == pytest.approx(2 * (0.148 + 0.021))
    dead = SimReplica(MODEL, 0.0)
    dead.speed = 0.0
    dead.add(Request(1, 0.0, 512, 2))
    assert math.isinf(dead.next_event_s())
    assert dead.advance(100.0) == []


def test_a_model_without_tokens_works_on_as_many_requests_as_it_has_slots() -> None:
    replica = SimReplica(ServiceModel.of_slots(2), 0.0)
    requests = [Request(number, 0.0, 1, 5000) for number in range(3)]
    for request in requests:
        replica.add(request)
    served(replica)
    assert [round(one.end_s, 2) for one in requests] == [5.0, 5.0, 10.0]
    assert requests[2].begun_s == pytest.approx(5.0, abs=0.01)


def iterated(requests: list[Request], model: ServiceModel) -> float:
    """The same engine one iteration after the other, whole chunks and whole tokens; returns when all have ended. Writes the times."""
    now_s, waiting, running = 0.0, [*requests], dict[int, int]()
    reading: Request | None = None
    left = 0
    while waiting or running or reading:
        if reading is None and waiting and waiting[0].arrival_s <= now_s and len(running) < model.sequences_max:
            reading = waiting.pop(0)
            left = reading.input_tokens
        if reading is None and not running:
            now_s = waiting[0].arrival_s
            continue
        chunk = min(left, model.chunk_tokens) if reading else 0
        now_s += model.step_s + model.step_s_per_sequence * len(running) + chunk * model.prefill_s_per_token
        left -= chunk
        for number in [*running]:
            running[number] -= 1
            if not running[number]:
                requests[number].end_s = now_s
                del running[number]
        if reading and not left:
            reading.first_s, running[reading.number] = now_s, reading.output_tokens - 1
            reading = None
    return now_s


def test_the_fluid_agrees_with_an_engine_iteration_by_iteration() -> None:
    draw = random.Random(1)
    model = ServiceModel(sequences_max=16)
    arrivals = sorted(draw.uniform(0, 120) for _ in range(240))
    sizes = [(512 * draw.randint(1, 5), draw.randint(2, 120)) for _ in arrivals]
    fluid, exact = (
        [Request(at, time_s, *size) for at, (time_s, size) in enumerate(zip(arrivals, sizes, strict=True))]
        for _ in range(2)
    )
    replica = SimReplica(model, 0.0)
    for request in fluid:
        served(replica, until_s=request.arrival_s)
        replica.advance(request.arrival_s)
        replica.add(request)
    served(replica)
    end_s = iterated(exact, model)
    assert max(one.end_s for one in fluid) == pytest.approx(end_s, rel=0.01)
    for one, other in zip(fluid, exact, strict=True):
        # An iteration that is under way when a request comes is what the fluid does not know.
        assert one.first_s == pytest.approx(other.first_s, rel=0, abs=0.3)
        assert one.end_s == pytest.approx(other.end_s, rel=0, abs=0.3)
