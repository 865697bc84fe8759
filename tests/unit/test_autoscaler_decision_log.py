"""The decision log as text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from switchgear.autoscaler.decision_log import Head, Record, head_line, read, record_line
from switchgear.autoscaler.observation import (
    Decision,
    Engine,
    Observation,
    Phase,
    ReplicaRow,
    Slo,
    Work,
)
from switchgear.core.errors import Invalid

seconds = st.floats(0, 1e9)
counts = st.integers(0, 2**53)
fractions = st.floats(0, 1)


def maybe(strategy: st.SearchStrategy[float]) -> st.SearchStrategy[float | None]:
    return st.none() | strategy


works = st.builds(Work, counts, maybe(counts), maybe(counts), maybe(seconds))
samples = st.lists(st.tuples(seconds, counts), max_size=3).map(tuple)
rows = st.builds(
    ReplicaRow, st.text(max_size=8), st.sampled_from(Phase), seconds, maybe(seconds), st.text(max_size=4), maybe(fractions),
    st.booleans(), maybe(counts), maybe(counts), maybe(fractions), maybe(counts), maybe(counts), maybe(seconds), maybe(counts),
    maybe(counts),
)  # fmt: skip
slos = st.builds(Slo, fractions, maybe(seconds), st.floats(0, 10), maybe(seconds), maybe(seconds), maybe(seconds))
observations = st.builds(
    Observation, seconds, counts, st.lists(rows, max_size=3).map(tuple), slo=slos, queue=st.none() | works,
    arrived=st.none() | works, completed=st.none() | works, kept=maybe(counts), ttft_s=samples, tpot_s=samples, e2e_s=samples,
    wait_s=samples, cold_starts_s=st.lists(seconds, max_size=3).map(tuple), engine=st.builds(Engine, st.text(max_size=4)),
    gpu_budget=maybe(counts), unix_s=maybe(seconds), blind=st.text(max_size=8),
)  # fmt: skip
decisions = st.builds(
    Decision, counts, st.text(max_size=8), st.text(max_size=20), st.dictionaries(st.text(max_size=4), seconds | counts, max_size=3)
)  # fmt: skip
records = st.builds(Record, seconds, observations, decisions, st.sampled_from(["ACT", "ADVISE"]), st.none() | decisions)


@settings(max_examples=50)
@given(st.lists(records, max_size=3))
def test_what_is_written_is_read_again_to_the_last_bit(written: list[Record]) -> None:
    head = Head("inferenceServices/chat", "switchgear", {"level": 0.1 + 0.2, "starts_s": [1.5, None]}, "hpa:8")
    assert [head, *written] == list(read([head_line(head), *map(record_line, written)], "a log"))


def test_fields_of_a_newer_version_are_passed_over_and_defaults_are_left_out() -> None:
    line = record_line(Record(1.0, Observation(5.0, 2, ()), Decision(2, "FITS", "stays at 2")))
    assert line == '{"now_s":1.0,"seen":{"interval_s":5.0,"desired":2,"replicas":[]},"decision":{"replicas":2,"cause":"FITS","text":"stays at 2"}}'  # fmt: skip
    newer = line.replace('"desired":2', '"desired":2,"moon_phase":0.5')
    _, record = read([head_line(Head("s", "p")), newer], "a log")
    assert isinstance(record, Record)
    assert record.seen.desired == 2


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "line 1: it is empty"),
        (['{"t_s": 1}'], "line 1: it does not begin with"),
        (['{"log": 9, "service": "s", "policy": "p"}'], "of version 9 of decision logs, and version 1 is read"),
        (["[1]"], "line 1: the line is no JSON object"),
        ([head_line(Head("s", "p")), "", '{"now_s": 1}'], "line 3: seen: Field required"),
    ],
)
def test_what_is_no_decision_log_is_named_with_its_line(lines: list[str], said: str) -> None:
    with pytest.raises(Invalid, match=said):
        list(read(lines, "requests.csv"))


def test_a_number_that_is_none_is_refused_when_it_is_written() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        record_line(Record(float("nan"), Observation(5.0, 2, ()), Decision(2, "FITS", "")))
