from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from switchgear.core.errors import Unavailable
from switchgear.serve.batching import Batch, FinishReason
from switchgear.serve.model import Sequence


def sequence(number: int, max_tokens: int = 3) -> Sequence:
    return Sequence(number, (1, 2, 3), max_tokens, 0.0, 0)


def numbers(sequences: list[Sequence]) -> list[int]:
    return [sequence.number for sequence in sequences]


def test_a_request_joins_between_two_iterations_and_takes_the_place_of_one_that_ended() -> None:
    batch = Batch(running_max=2, waiting_max=8)
    for number, max_tokens in ((1, 1), (2, 3), (3, 2)):
        batch.add(sequence(number, max_tokens))
    first = batch.next()
    assert (numbers(first), batch.waiting) == ([1, 2], 1)
    ended = batch.advance(first, [7, 7], None)
    assert [(end.sequence.number, end.reason) for end in ended] == [(1, FinishReason.LENGTH)]
    assert numbers(batch.next()) == [2, 3]


def test_the_end_token_ends_an_answer_and_is_no_part_of_it() -> None:
    batch = Batch(running_max=1, waiting_max=1)
    batch.add(sequence(1))
    batch.advance(batch.next(), [5], 9)
    (end,) = batch.advance(batch.next(), [9], 9)
    assert (end.reason, end.sequence.generated) == (FinishReason.STOP, [5])


def test_a_full_queue_refuses_and_says_so() -> None:
    batch = Batch(running_max=1, waiting_max=2)
    for number in (1, 2):
        batch.add(sequence(number))
    with pytest.raises(Unavailable, match="2 requests wait"):
        batch.add(sequence(3))


def test_a_request_cancelled_during_an_iteration_gets_no_token_and_leaves_room() -> None:
    batch = Batch(running_max=1, waiting_max=2)
    for number in (1, 2):
        batch.add(sequence(number, max_tokens=1))
    running = batch.next()
    assert batch.cancel(1)
    assert batch.advance(running, [4], None) == []
    assert running[0].generated == []
    assert numbers(batch.next()) == [2]
    assert not batch.cancel(1)


def test_what_the_model_reads_is_the_end_of_prompt_and_answer() -> None:
    one = Sequence(1, (1, 2, 3), 9, 0.0, 0, generated=[4, 5])
    assert [one.tokens(last) for last in (1, 2, 4, 9)] == [[5], [4, 5], [2, 3, 4, 5], [1, 2, 3, 4, 5]]


def test_a_draw_depends_on_the_seed_and_the_place_alone() -> None:
    draws = {
        (seed, place): Sequence(number, (1,), 9, 1.0, seed, generated=[0] * place).uniform()
        for number, seed in ((1, 7), (2, 8))
        for place in (0, 1)
    }
    assert len(set(draws.values())) == 4
    assert Sequence(9, (5, 6), 3, 0.5, 7, generated=[3]).uniform() == draws[7, 1]


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=30), st.integers(1, 4))
def test_every_request_ends_once_with_its_tokens_or_was_cancelled(
    requests: list[tuple[int, bool]], running_max: int
) -> None:
    batch = Batch(running_max=running_max, waiting_max=30)
    cancelled, ended = set[int](), dict[int, int]()
    for number, (max_tokens, cancel) in enumerate(requests):
        batch.add(sequence(number, max_tokens))
        if cancel and batch.cancel(number):
            cancelled.add(number)
    while running := batch.next():
        assert len(running) <= running_max
        for end in batch.advance(running, [1] * len(running), None):
            assert end.sequence.number not in ended
            ended[end.sequence.number] = len(end.sequence.generated)
    wanted = {number: tokens for number, (tokens, _) in enumerate(requests) if number not in cancelled}
    assert (ended, batch.running, batch.waiting) == (wanted, 0, 0)
