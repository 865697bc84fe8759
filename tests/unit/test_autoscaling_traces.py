"""Traces: each format as it is read, drawn ones, and what is said about files that are wrong."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest

from switchgear.autoscaler.decision_log import Head, Record, head_line, record_line
from switchgear.autoscaler.observation import Decision, Observation, Work
from switchgear.autoscaler.simulate import trace as reading
from switchgear.autoscaler.simulate.rates import arrivals, sample
from switchgear.autoscaler.simulate.synthetic import KINDS, synthetic
from switchgear.autoscaler.simulate.trace import Rates, Trace, read, read_lines
from switchgear.core.errors import Invalid

CSV = "t_s,input_tokens,output_tokens\n0.5,100,20\n0.0,200,0\n3,50,7\n"
MOONCAKE = (
    '{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}\n'
    '{"timestamp": 1500, "input_length": 12, "output_length": 1, "hash_ids": []}\n'
)
RATES = "t_s,rate_rps,rate_weighted_cv\n0,2,1\n600,0,1\n1200,4,3\n"


def of(text: str) -> Trace:
    found = read_lines(iter(text.splitlines(keepends=True)), "some.csv")
    assert isinstance(found, Trace)
    return found


def rows(trace: Trace) -> list[tuple[float, int, int]]:
    return [(one.arrival_s, one.input_tokens, one.output_tokens) for one in trace.requests()]


def test_rows_are_requests_by_arrival_each_with_one_token_at_least() -> None:
    assert rows(of(CSV)) == [(0.0, 200, 1), (0.5, 100, 20), (3.0, 50, 7)]


def test_columns_may_be_in_any_order_and_others_are_ignored() -> None:
    assert rows(of("model,output_tokens,t_s,input_tokens\nm,7,3,50\n\n")) == [(3.0, 50, 7)]


def test_service_seconds_are_of_a_model_without_tokens() -> None:
    trace = of("t_s,service_s\n0,2.5\n9,0.1\n")
    assert trace.in_seconds
    assert rows(trace) == [(0.0, 1, 2500), (9.0, 1, 100)]


def test_rates_at_unix_times_give_the_trace_a_date() -> None:
    rates = read_lines(iter(["t_s,rate_rps\n", "1700000000,1\n", "1700000600,1\n"]), "rates")
    assert isinstance(rates, Rates)
    trace = sample(rates, 1.0, 0)
    assert trace.start_unix_s == 1_700_000_000
    assert 0 <= trace.arrival_s[0] < trace.arrival_s[-1] < 1200


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("t_s,input_tokens,output_tokens\n1700000000000,1,1\n", "line 2: t_s .* from 0 to 1e.11"),
        ("t_s,service_s\n0,1e308\n", "line 2: service_s .* from 0 to 100000"),
        ("t_s,rate_rps\n0,1e308\n600,1\n", "line 2: rate_rps .* from 0 to 1e.06"),
        ("t_s,rate_rps,rate_weighted_cv\n0,1,1e300\n600,1,1\n", "line 2: rate_weighted_cv .* from 0 to 100"),
        ('{"timestamp":' + "[" * 100_000 + "\n", "line 1: no JSON object"),
    ],
)
def test_values_beyond_all_measure_are_refused(text: str, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        of(text)


def test_mooncake_has_milliseconds() -> None:
    assert rows(of(MOONCAKE)) == [(0.0, 6758, 500), (1.5, 12, 1)]


def test_unix_times_begin_at_the_first_request_and_give_the_trace_a_date() -> None:
    trace = of("t_s,input_tokens,output_tokens\n1700000010.5,1,1\n1700000000,2,2\n")
    assert rows(trace) == [(0.0, 2, 2), (10.5, 1, 1)]
    assert trace.start_unix_s == 1_700_000_000


@pytest.mark.parametrize("pack", [False, True])
def test_a_file_may_be_packed_whatever_its_name(tmp_path: Path, pack: bool) -> None:
    path = tmp_path / "requests.txt"
    path.write_bytes(gzip.compress(CSV.encode()) if pack else CSV.encode())
    trace = read(path)
    assert isinstance(trace, Trace)
    assert (len(trace), trace.name) == (3, "requests.txt")


def test_a_part_begins_at_its_start_and_may_be_faster() -> None:
    trace = of("t_s,input_tokens,output_tokens\n0,1,1\n100,2,2\n150,3,3\n300,4,4\n")
    assert rows(trace.part(100, 100, 2)) == [(0.0, 2, 2), (25.0, 3, 3)]
    with pytest.raises(Invalid, match="from 0 s to 300 s"):
        trace.part(400)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "line 1: columns"),
        ("time,tokens\n1,2\n", "line 1: columns t_s,input_tokens,output_tokens or"),
        (CSV + "4,x,5\n", 'line 5: input_tokens "x"'),
        (CSV + "-1,1,5\n", 'line 5: t_s "-1"'),
        (CSV + "nan,1,5\n", 'line 5: t_s "nan"'),
        (CSV + "4,1,1e12\n", 'line 5: output_tokens "1e12"'),
        (CSV + "4,1\n", "line 5: 2 cells, and the header has 3; give one for each column"),
        ("t_s,input_tokens,output_tokens\n", "no request"),
        (MOONCAKE + "[1]\n", "line 3: no JSON object"),
        (MOONCAKE + '{"timestamp": 1, "input_length": 1}\n', "line 3: no output_length"),
        ("t_s,rate_rps\n0,1\n600,1\n900,1\n", "same step"),
        ('{"log":1,"service":"s","policy":"p"}\n', "no request that came"),
    ],
)
def test_what_is_wrong_is_told_with_its_file_and_line(text: str, told: str) -> None:
    with pytest.raises(Invalid, match=f"^some.csv.*{told}"):
        read_lines(iter(text.splitlines(keepends=True)), "some.csv")


def test_a_file_that_is_no_text_or_cut_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress((CSV + "".join(f"{at},{at * 7919 % 977},{at}\n" for at in range(9000))).encode())
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 0xFF
    quoted = CSV + '"' + "1,1,1\n" * 40_000
    files = {"a": b"\xff\xfe\x00", "b": whole[:-20], "c": bytes(broken), "d": quoted.encode()}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Invalid, match=r"no whole text file|cells, and"):
            read(tmp_path / name)


def test_a_trace_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reading, "REQUESTS_MAX", 2)
    with pytest.raises(Invalid, match=r"^some\.csv has more than 2 requests"):
        of(CSV)
    (tmp_path / "long").write_text("x" * (reading.LINE_CHARS_MAX + 1))
    with pytest.raises(Invalid, match=r"^long, line 1: .* characters; give CSV"):
        read(tmp_path / "long")


def test_rates_become_as_many_requests_as_bursty_as_they_say() -> None:
    rates = read_lines(iter(RATES.splitlines(keepends=True)), "rates.csv")
    assert isinstance(rates, Rates)
    trace = sample(rates, 5.0, seed=1)
    assert rows(trace) == rows(sample(rates, 5.0, seed=1))
    assert rows(trace) != rows(sample(rates, 5.0, seed=2))
    counts, _ = np.histogram(trace.arrival_s, [0, 600, 1200, 1800])
    assert counts[0] == pytest.approx(6000, rel=0.1)
    assert counts[1] == 0
    assert counts[2] == pytest.approx(12000, rel=0.2)
    gaps = np.diff(arrivals(np.random.default_rng(1), 50.0, 3.0, 600.0))
    assert gaps.std() / gaps.mean() == pytest.approx(3.0, rel=0.15)
    lent = sample(rates, 1.0, seed=1, lengths=of(CSV))
    assert set(lent.input_tokens.tolist()) == {50, 100, 200}
    with pytest.raises(Invalid, match="--scale 1e-06 makes 0 requests"):
        sample(rates, 1e-6, seed=1)


@pytest.mark.parametrize("name", KINDS)
def test_a_synthetic_trace_is_the_same_for_the_same_seed(name: str) -> None:
    trace = synthetic(f"synthetic:{name}")
    assert 1000 < len(trace) < 120_000
    assert (np.diff(trace.arrival_s) >= 0).all()
    again = synthetic(f"synthetic:{name}:0")
    assert (trace.arrival_s == again.arrival_s).all()
    assert (trace.output_tokens == again.output_tokens).all()
    assert len(trace) != len(synthetic(f"synthetic:{name}:1"))


def test_synthetic_traces_are_as_hard_as_they_say() -> None:
    code = synthetic("synthetic:bursty-code")
    inside_100ms, _ = np.histogram(code.arrival_s, np.arange(0, code.arrival_s[-1], 0.1))
    assert inside_100ms.max() * 10 > 20 * len(code) / code.arrival_s[-1]
    ramp, _ = np.histogram(synthetic("synthetic:tenfold-ramp").arrival_s, np.arange(0, 2 * 86401, 3600))
    assert 7 < ramp.max() / ramp.min() < 15
    gaps_s = np.diff(synthetic("synthetic:rare-images").arrival_s)
    assert gaps_s.max() > 2 * 3600
    assert math.isclose(np.median(gaps_s), 350, rel_tol=0.2)


@pytest.mark.parametrize("text", ["synthetic:none", "synthetic:", "synthetic:step:x"])
def test_a_synthetic_trace_that_is_none_is_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(Invalid, match="synthetic:bursty-code"):
        synthetic(text)


def test_a_decision_log_is_a_trace_of_what_arrived() -> None:
    first = Observation(
        10.0, 1, (), arrived=Work(3, 90), arrivals=((8.0, 1, 30), (2.0, 2, 60)), completed=Work(2, 60, 50), unix_s=5e8
    )
    second = Observation(10.0, 1, (), arrived=Work(2, 10), completed=Work(3, 60, 75))
    lines = [head_line(Head("inferenceServices/chat", "switchgear"))]
    lines += [record_line(Record(at, seen, Decision(1, "", ""))) for at, seen in ((1000.0, first), (1010.0, second))]
    trace = of("\n".join(lines))
    assert rows(trace) == [(2.0, 30, 25), (5.0, 30, 25), (8.0, 30, 25), (15.0, 5, 25), (20.0, 5, 25)]
    assert trace.start_unix_s == 5e8 - 10
