"""What a request took, and whether that kept the promise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from switchgear.serve.promise import (
    BUCKET_GROWTH,
    BUCKET_MAX,
    FIRST_BUCKET_S,
    Promise,
    Tally,
    Took,
    bucket,
    keeps,
    took_from_header,
)

CHAT = Promise(ttft_s=2.0, ttft_prefill_factor=3.0, tpot_s=0.1, prefill_tokens_per_s=1000.0)


@pytest.mark.parametrize(
    ("promise", "took", "kept"),
    [
        (CHAT, Took(3.0, first_s=1.9, input_tokens=0, output_tokens=20), True),
        (CHAT, Took(3.0, first_s=2.1, input_tokens=0, output_tokens=20), False),
        (CHAT, Took(3.0, first_s=2.1, input_tokens=100, output_tokens=20), True),  # 2 s + 3 x 0.1 s
        (CHAT, Took(4.1, first_s=0.1, input_tokens=0, output_tokens=20), False),
        (CHAT, Took(90.0), True),  # a replica that tells nothing: what is not known is not judged
        (Promise(e2e_s=5.0), Took(5.1), False),
        (Promise(wait_s=1.0), Took(9.0, wait_s=0.9), True),
        (Promise(wait_s=1.0), Took(9.0, wait_s=1.1), False),
        (Promise(e2e_s=5.0, tpot_s=0.1), Took(4.9, output_tokens=1), True),
    ],
)
def test_a_request_keeps_the_promise_when_it_is_within_every_limit(promise: Promise, took: Took, kept: bool) -> None:
    assert keeps(promise, took) is kept


def test_what_a_replica_tells_is_counted_from_the_arrival_at_the_router() -> None:
    told = Took(1.5, 0.25, 0.5, 12, 40).header()
    took = took_from_header(told, 1.75).later(2.0, 3.75)
    assert took == Took(3.75, 2.25, 2.5, 12, 40)
    assert took.per_token_s == pytest.approx(1.25 / 39)


@pytest.mark.parametrize(
    "told", ["", "x", "1 2 3 4", "9.0 0.1 0.2 3 4", "1.0 0.5 0.2 3 4", "1.0 0.1 nan 3 4", "1.0 0.1 0.2 -3 4"]
)
def test_nonsense_from_a_replica_is_nothing_told(told: str) -> None:
    assert took_from_header(told, 2.0) == Took(2.0)


@given(st.floats(0, 400))
def test_a_time_is_known_to_a_tenth(seconds: float) -> None:
    number = bucket(seconds)
    upper_s = FIRST_BUCKET_S * BUCKET_GROWTH**number
    assert number == BUCKET_MAX or seconds <= upper_s * (1 + 1e-6)
    assert number == 0 or upper_s / BUCKET_GROWTH <= seconds * (1 + 1e-6)


def test_totals_are_of_what_is_known() -> None:
    tally = Tally()
    tally.answered(Took(3.0, 0.1, 1.0, 30, 21), CHAT, 9)
    tally.answered(Took(9.0), CHAT, 9)
    assert (tally.completed, tally.input_tokens, tally.estimated_tokens, tally.output_tokens) == (2, 30, 9, 21)
    assert (tally.kept, tally.broken) == (2, 0)
    assert (sum(tally.ttft.values()), sum(tally.e2e.values()), tally.tpot) == (1, 2, {bucket(0.1): 1})
