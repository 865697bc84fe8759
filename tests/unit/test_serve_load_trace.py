"""Recorded requests as a load."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from switchgear.serve.load import LoadSettings, schedule
from switchgear.serve.load_trace import TOKENS_SPREAD, Row, fitted, read


def test_a_trace_is_read_with_or_without_gzip_whatever_else_it_has(tmp_path: Path) -> None:
    text = "t_s,input_tokens,output_tokens\n0,10,3\n1.5,20,0\n"
    (tmp_path / "plain.csv").write_text(text)
    (tmp_path / "small.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert read(tmp_path / "plain.csv") == read(tmp_path / "small.csv.gz") == [Row(0.0, 3), Row(1.5, 1)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "must begin with a line of columns"),
        ("t_s,output_tokens\n0,1\nx,2\n", "line 3: t_s must be a number"),
        ("t_s,output_tokens\n2,1\n1,2\n", "line 3: requests must be in the order"),
        ("t_s,output_tokens\nnan,1\n", "line 2: requests must be in the order"),
        ("t_s,output_tokens\n", "has no requests at different times"),
    ],
)
def test_what_is_no_trace_is_named(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        read(tmp_path / "t.csv")


def test_it_is_pressed_thinned_and_shortened_in_proportion() -> None:
    rows = [Row(float(at), 100 + at % 3 * 100) for at in range(10_001)]
    small = fitted(rows, seconds=100.0, requests_per_second=5.0, tokens_mean=20.0, seed=1)
    assert small == fitted(rows, seconds=100.0, requests_per_second=5.0, tokens_mean=20.0, seed=1)
    assert len(small) == pytest.approx(500, rel=0.2)
    assert small[-1].at_s <= 100.0
    assert {row.output_tokens for row in small} == {10, 20, 30}
    spiky = fitted(
        [Row(0.0, 1), *[Row(1.0, 1)] * 98, Row(2.0, 100_000)],
        seconds=1.0,
        requests_per_second=1e9,
        tokens_mean=20.0,
        seed=1,
    )
    assert max(row.output_tokens for row in spiky) == TOKENS_SPREAD * 20
    asked = schedule(LoadSettings(url="", model="chat", phases=(), trace=small))
    assert [(one.at_s, one.tokens) for one in asked] == [(row.at_s, row.output_tokens) for row in small]
