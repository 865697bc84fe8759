from __future__ import annotations

import pytest

from switchgear.collector.export.answer import Answer, Verdict, backoff_s, of_http

NOW_S = 1_795_000_000.0


@pytest.mark.parametrize(
    ("code", "verdict"),
    [(200, "SENT"), (204, "SENT"), (301, "REFUSED"), (400, "REFUSED"), (401, "REFUSED"), (404, "REFUSED"), (413, "REFUSED"),
     (429, "RETRY"), (500, "RETRY"), (503, "RETRY")],
)  # fmt: skip
def test_only_what_may_be_taken_later_is_sent_again(code: int, verdict: str) -> None:
    assert of_http(code, "", {}, NOW_S).verdict is Verdict[verdict]


def test_a_store_that_does_not_say_what_it_wrote_knows_no_remote_write_2() -> None:
    answer = of_http(204, "", {}, NOW_S, confirmed=True)
    assert (answer.verdict, answer.in_doubt, answer.divisible) == (Verdict.REFUSED, True, False)
    assert 'protocol = "1.0"' in answer.text
    written = {"x-prometheus-remote-write-samples-written": "4"}
    assert of_http(204, "", written, NOW_S, confirmed=True).verdict is Verdict.SENT


def test_what_a_server_in_trouble_took_is_in_doubt_but_not_what_it_said_it_did_not() -> None:
    answers = {code: of_http(code, "", {}, NOW_S).in_doubt for code in (204, 400, 429, 500, 502, 504)}
    assert answers == {204: False, 400: False, 429: False, 500: True, 502: True, 504: True}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("out of order sample", "out_of_order"),
        ("err-mimir-sample-out-of-order", "out_of_order"),
        ("out of bounds", "too_old"),
        ("the sample has been rejected because its timestamp is too old", "too_old"),
        ("duplicate sample for timestamp", "duplicate"),
        ("no", "refused"),
    ],
)
def test_a_refusal_is_counted_by_what_the_store_says(text: str, reason: str) -> None:
    assert of_http(400, text, {}, NOW_S).reason == reason


def test_waits_grow_up_to_half_a_minute_and_are_not_all_the_same() -> None:
    assert [backoff_s(tries, 0, 1.0) for tries in (1, 2, 3, 20, 5000)] == [0.1, 0.2, 0.4, 30.0, 30.0]
    assert backoff_s(3, 0, 0.0) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [("7", 7.0), ("Wed, 18 Nov 2026 11:06:50 GMT", 10.0), ("99999999", 300.0), ("soon", 0.1), ("-3", 0.1), ("", 0.1)],
)
def test_a_target_may_ask_for_time_but_not_for_ever(header: str, wait_s: float) -> None:
    answer = of_http(503, "", {"retry-after": header}, NOW_S)
    assert backoff_s(1, answer.retry_after_s, 1.0) == pytest.approx(wait_s)


def test_a_refusal_of_credentials_is_not_divided() -> None:
    assert not of_http(401, "", {}, NOW_S).divisible
    assert of_http(400, "", {}, NOW_S).divisible
    assert not of_http(400, "", {"x-prometheus-remote-write-samples-written": "3"}, NOW_S).divisible
    assert of_http(413, "", {}, NOW_S).divisible


def test_a_redirect_says_where_the_target_is() -> None:
    assert of_http(308, "", {"location": "https://b/"}, NOW_S).text == "it is elsewhere: https://b/"


def test_a_long_message_is_cut() -> None:
    assert len(of_http(400, "x" * 5000, {}, NOW_S).text) == 200
    assert Answer(Verdict.SENT, "200").rejected == 0
