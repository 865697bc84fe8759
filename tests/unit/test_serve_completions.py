from __future__ import annotations

import json

import pytest

from switchgear.core.errors import Invalid
from switchgear.serve.completions import CompletionRequest, Envelope, parse, read_envelope
from switchgear.serve.load import Arrival, LoadSettings, Outcome, Phase, Report, compared, profile, schedule


def body(**fields: object) -> bytes:
    return json.dumps({"model": "chat", "prompt": "Once", **fields}).encode()


def test_what_is_left_out_has_the_defaults_of_openai() -> None:
    for left_out in (body(), body(max_tokens=None, seed=None, stream=None, stop=None)):
        assert parse(left_out, max_tokens_max=64) == CompletionRequest("chat", "Once", 16, 1.0, None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stream": True}, "streaming is not served"),
        ({"max_tokens": 65}, "at most 64"),
        ({"max_tokens": 0}, "at least 1"),
        ({"max_tokens": True}, "integer"),
        ({"temperature": 2.5}, "between 0 and 2"),
        ({"temperature": "hot"}, "must be a number"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"n": 2}, "n must be 1"),
        ({"prompt": ""}, "prompt must be a text"),
        ({"prompt": [1, 2]}, "prompt must be a text"),
        ({"model": 3}, "model must be a text"),
        ({"logprobs": 5}, "'logprobs' is not supported here; leave it out"),
    ],
)
def test_a_wrong_request_is_refused_with_what_is_wrong(fields: dict[str, object], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        parse(body(**fields), max_tokens_max=64)


@pytest.mark.parametrize("text", [b"", b"[1]", b"{", b'"x"', b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(text: bytes) -> None:
    for read in (read_envelope, lambda data: parse(data, max_tokens_max=1)):
        with pytest.raises(Invalid):
            read(text)


def test_a_router_estimates_tokens_and_leaves_the_rest_to_the_engine() -> None:
    assert read_envelope(body(prompt="x" * 41, max_tokens=5, logprobs=3)) == Envelope("chat", 11, 16)
    assert read_envelope(body(prompt=[1, 2, 3])) == Envelope("chat", 3, 19)


def test_arrivals_follow_the_profile_and_the_seed() -> None:
    settings = LoadSettings(url="", model="chat", phases=profile("100x2,50x0,100x8"))
    arrivals = schedule(settings)
    assert arrivals == schedule(settings)
    counts = [sum(arrival.phase == phase for arrival in arrivals) for phase in range(3)]
    assert counts[1] == 0
    assert counts[0] == pytest.approx(200, abs=50)
    assert counts[2] == pytest.approx(800, abs=100)
    assert [arrival.at_s for arrival in arrivals] == sorted(arrival.at_s for arrival in arrivals)


def test_a_profile_that_is_none_says_how_one_looks() -> None:
    assert profile("30x2") == [Phase(30, 2)]
    for text in ("", "30", "x", "1x2x3", "0x3", "1x-1", "nanx1"):
        with pytest.raises(ValueError, match=r"SECONDSxRATE|seconds must be positive"):
            profile(text)


def test_an_answer_that_differs_from_the_others_is_lost() -> None:
    arrival = Arrival(0.0, 0, "Once", 8)
    report = Report(compared([Outcome(arrival, "", 0.1, text) for text in ("good", "good", "bad", "good")]))
    assert (report.lost, report.failures()) == (1, {"the answer differs from the others to the same question": 1})
    assert report.latency_s(0.5) == 0.1
