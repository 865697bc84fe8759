"""Pages of inference servers, read into quantities. The pages in tests/pages are hand-made after each server's own names."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest

from switchgear.autoscaler.adapters.model import COST, Kind, Quantity
from switchgear.autoscaler.adapters.page import BYTES_MAX, SAMPLES_MAX, PageUnusable, ServerUnknown
from switchgear.autoscaler.adapters.scrape import Reading, read
from switchgear.autoscaler.adapters.table import SERVERS
from switchgear.core import metrics
from switchgear.core.errors import Invalid
from switchgear.serve.router_metrics import RouterMetrics

PAGES = Path(__file__).parents[1] / "pages"
Q = Quantity

#: page: (server, gauges, totals, count and mean seconds of latencies)
EXPECTED: dict[str, tuple[str, dict[Quantity, float], dict[Quantity, float], dict[Quantity, tuple[float, float]]]] = {
    "vllm": (
        "vllm",
        {Q.WAITING: 3, Q.RUNNING: 6, Q.KV_USE: 0.4, Q.KV_TOKENS: 16_000, Q.AWAKE: 0.5},
        {Q.COMPLETED: 35, Q.FAILED: 3, Q.PROMPT_TOKENS: 12_000, Q.GENERATED_TOKENS: 3500, Q.REQUEST_INPUT: 11_000, Q.REQUEST_OUTPUT: 3200, Q.STEPS: 900},
        {Q.TTFT: (35, 25 / 35), Q.TPOT: (35, 1.2 / 35), Q.E2E: (35, 110 / 35), Q.QUEUE_TIME: (35, 9 / 35)},
    ),
    "vllm_old": (
        "vllm",
        {Q.WAITING: 1, Q.RUNNING: 6, Q.KV_USE: 0.25},
        {Q.COMPLETED: 7, Q.FAILED: 1, Q.PROMPT_TOKENS: 500, Q.GENERATED_TOKENS: 700},
        {Q.TTFT: (8, 0.25), Q.TPOT: (692, 20 / 692), Q.E2E: (8, 2.75)},
    ),
    "ray_vllm": (
        "ray-vllm",
        {Q.WAITING: 2, Q.RUNNING: 4, Q.KV_USE: 0.4},
        {Q.COMPLETED: 9, Q.PROMPT_TOKENS: 900, Q.GENERATED_TOKENS: 90},
        {Q.TTFT: (9, 0.5)},
    ),
    "sglang": (
        "sglang",
        {Q.WAITING: 3, Q.RUNNING: 16, Q.KV_USE: 0.28, Q.KV_TOKENS: 400_000},
        {Q.COMPLETED: 9, Q.FAILED: 1, Q.PROMPT_TOKENS: 1000, Q.GENERATED_TOKENS: 450, Q.REQUEST_INPUT: 900, Q.REQUEST_OUTPUT: 400},
        {Q.TTFT: (8, 0.25), Q.TPOT: (392, 12 / 392), Q.E2E: (9, 15 / 9), Q.QUEUE_TIME: (9, 0.5 / 9)},
    ),
    "tgi": (
        "tgi",
        {Q.WAITING: 1, Q.RUNNING: 2},
        {Q.ARRIVED: 12, Q.COMPLETED: 9, Q.FAILED: 1, Q.PROMPT_TOKENS: 1200, Q.GENERATED_TOKENS: 180, Q.REQUEST_OUTPUT: 180, Q.STEPS: 200},
        {Q.TPOT: (9, 0.6 / 9), Q.E2E: (9, 12 / 9), Q.QUEUE_TIME: (9, 0.2 / 9)},
    ),
    "trtllm": (
        "trtllm",
        {Q.WAITING: 5, Q.RUNNING: 32, Q.KV_USE: 0.62, Q.SEQUENCES_MAX: 64},
        {Q.COMPLETED: 40, Q.FAILED: 1, Q.PROMPT_TOKENS: 8000, Q.GENERATED_TOKENS: 4000},
        {Q.TTFT: (40, 0.15), Q.TPOT: (40, 0.02), Q.E2E: (40, 2.25), Q.QUEUE_TIME: (40, 0.025)},
    ),
    "triton": (
        "triton",
        {Q.WAITING: 7},
        {Q.E2E: 5, Q.QUEUE_TIME: 1, Q.COMPLETED: 100, Q.FAILED: 4, Q.STEPS: 25},
        {Q.TTFT: (100, 0.04)},
    ),
    "triton_trtllm": (
        "triton-trtllm",
        {Q.WAITING: 4, Q.RUNNING: 9, Q.KV_USE: 0.4875, Q.SEQUENCES_MAX: 512},
        {Q.E2E: 20, Q.COMPLETED: 10},
        {},
    ),
    "torchserve": ("torchserve", {}, {Q.E2E: 2.903711, Q.QUEUE_TIME: 0.903711, Q.ARRIVED: 30}, {}),
    "tf_serving": ("tf-serving", {}, {Q.COMPLETED: 8, Q.FAILED: 1}, {Q.E2E: (8, 0.2), Q.QUEUE_TIME: (8, 0.05)}),
    "ray_serve": (
        "ray-serve",
        {Q.WAITING: 5, Q.RUNNING: 7},
        {Q.COMPLETED: 50},
        {Q.E2E: (30, 0.05), Q.QUEUE_TIME: (50, 0.002)},
    ),
    "bentoml": ("bentoml", {Q.RUNNING: 3}, {Q.COMPLETED: 20, Q.FAILED: 1}, {Q.E2E: (20, 0.06)}),
    "dynamo": (
        "dynamo",
        {Q.WAITING: 5, Q.RUNNING: 7},
        {Q.ARRIVED: 114, Q.COMPLETED: 100, Q.FAILED: 2, Q.PROMPT_TOKENS: 50_000, Q.GENERATED_TOKENS: 21_000, Q.REQUEST_INPUT: 50_000, Q.REQUEST_OUTPUT: 20_000},
        {Q.TTFT: (100, 0.3), Q.TPOT: (19_900, 400 / 19_900), Q.E2E: (100, 4.5)},
    ),
    "llama_cpp": (
        "llama.cpp",
        {Q.WAITING: 46, Q.RUNNING: 4},
        {Q.TPOT: 4, Q.PROMPT_TOKENS: 512, Q.GENERATED_TOKENS: 200, Q.STEPS: 150},
        {},
    ),
    "kserve": ("kserve", {}, {Q.COMPLETED: 3}, {Q.E2E: (3, 0.3)}),
    "llm_d": ("llm-d", {Q.WAITING: 6, Q.RUNNING: 11}, {Q.ARRIVED: 60, Q.COMPLETED: 50}, {Q.E2E: (50, 4)}),
    "openmetrics": ("vllm", {Q.WAITING: 1, Q.RUNNING: 2}, {Q.COMPLETED: 7}, {Q.TTFT: (7, 2 / 7)}),
}  # fmt: skip


def page(name: str) -> str:
    return (PAGES / f"{name}.txt").read_text()


def latencies(reading: Reading) -> dict[Quantity, tuple[float, float]]:
    return {
        quantity: (sum(one.count for one in parts.values()), sum(one.sum_s for one in parts.values()) / sum(one.count for one in parts.values()))
        for quantity, parts in reading.histograms.items()
    }  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_each_server_is_recognized_and_read_in_base_units(name: str) -> None:
    server, gauges, totals, means = EXPECTED[name]
    reading = read(page(name))
    assert reading.server.name == server
    assert dict(reading.gauges) == pytest.approx(gauges)
    assert {quantity: sum(parts.values()) for quantity, parts in reading.totals.items()} == pytest.approx(totals)
    assert {quantity: pair[0] for quantity, pair in latencies(reading).items()} == {q: n for q, (n, _) in means.items()}
    assert {quantity: pair[1] for quantity, pair in latencies(reading).items()} == pytest.approx({q: m for q, (_, m) in means.items()})  # fmt: skip
    assert reading.usable
    assert reading.rejected == {}
    assert [found.mismatch(quantity) for quantity, found in reading.found.items()] == [""] * len(reading.found)


def test_every_page_has_its_expectation_and_names_its_source() -> None:
    assert {path.stem for path in PAGES.glob("*.txt")} == EXPECTED.keys()
    assert all("Written by hand after" in path.read_text()[:200] for path in PAGES.glob("*.txt"))


def test_every_server_that_tells_anything_has_a_page_or_is_read_live() -> None:
    told = {server.name for server in SERVERS if server.series}
    assert told - {expected[0] for expected in EXPECTED.values()} == {"switchgear", "switchgear-router"}


def test_the_table_is_whole() -> None:
    assert COST.keys() == set(Quantity)
    for server in SERVERS:
        for quantity, choices in server.series.items():
            assert choices, (server.name, quantity)
            for series in choices:
                assert (series.kind is Kind.SUM) == (series.per is not None), series
                assert series.kind is not Kind.HISTOGRAM or not series.name.endswith(("_bucket", "_sum", "_count"))
                assert series.per is None or series.per in server.series


def test_the_version_is_what_the_page_says_or_what_its_names_tell() -> None:
    assert read(page("ray_serve")).version == "2.60.0"
    assert read(page("vllm")).version == "0.11 or newer"
    assert read(page("vllm_old")).version == "0.10 or older"
    assert read(page("sglang")).version == ""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<!DOCTYPE html><html></html>\n", "HTML"),
        ('{"iterLatencyMS": 3}\n', "/prometheus/metrics"),
        ('"# HELP llamacpp:prompt_tokens_total\\n"', "update"),
        ("not a page of metrics\n", "first line"),
        ("vllm:num_requests_waiting 3\nvllm:num_requests_running 1", "cut"),
        ("x" * (BYTES_MAX + 1), "more than"),
    ],
)
def test_what_is_no_page_of_metrics_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(PageUnusable, match=why):
        read(text)


def test_a_page_of_something_else_and_an_empty_one_are_no_servers_unless_somebody_says_which() -> None:
    for text in ("", "# TYPE node_load1 gauge\nnode_load1 0.5\n"):
        with pytest.raises(ServerUnknown, match="--engine"):
            read(text)
    idle = read("", "tgi")
    assert idle.server.name == "tgi"
    assert not idle.usable
    with pytest.raises(Invalid, match="known are"):
        read("", "nonsense")


def test_a_figure_that_cannot_be_is_unknown_not_zero() -> None:
    for value in ("NaN", "+Inf", "-3", "18446744073709551615", "1e308"):
        reading = read(
            page("vllm_old").replace('waiting{model_name="llama"} 1.0', f'waiting{{model_name="llama"}} {value}')
        )
        assert Q.WAITING not in reading.gauges
        assert Q.WAITING in reading.missing
        assert reading.rejected == {"no figure": 1}


def test_a_series_that_is_there_twice_counts_once() -> None:
    reading = read(page("vllm_old") + 'vllm:num_requests_waiting{model_name="llama"} 9\n')
    assert reading.gauges[Q.WAITING] == 9
    assert reading.rejected == {"duplicate": 1}


def test_lines_that_are_malformed_are_left_out_and_counted() -> None:
    text = page("vllm_old") + 'vllm:generation_tokens_total{model_name="b} 5\nvllm:num_requests_waiting{a="b"} many\n'
    assert read(text).rejected == {"malformed": 2}


def test_a_page_with_more_series_than_a_replica_can_have_is_refused() -> None:
    many = "".join(f'vllm:num_requests_waiting{{engine="{engine}"}} 1\n' for engine in range(SAMPLES_MAX + 1))
    with pytest.raises(PageUnusable, match="one by one"):
        read(many)


def test_a_type_or_a_unit_that_contradicts_the_table_is_said() -> None:
    text = page("torchserve").replace("latency_microseconds counter", "latency_microseconds gauge")
    found = read(text.replace("unit: Microseconds", "unit: Milliseconds")).found
    assert "a gauge on this page" in found[Q.E2E].mismatch(Q.E2E)
    units = read(page("torchserve").replace("unit: Microseconds", "unit: Milliseconds")).found
    assert "in milliseconds on this page, in microseconds in the table" in units[Q.E2E].mismatch(Q.E2E)


def test_buckets_that_fall_leave_the_mean_alone() -> None:
    reading = read(page("vllm_old").replace('seconds_bucket{le="1.0",model_name="llama"} 8.0', 'seconds_bucket{le="1.0",model_name="llama"} 9.0'))  # fmt: skip
    (ttft,) = reading.histograms[Q.TTFT].values()
    assert (ttft.bounds_s, ttft.count, ttft.sum_s) == ((), 8, 2)
    assert reading.rejected == {"histogram": 1}


def test_a_page_of_openmetrics_may_end_without_an_end_of_line() -> None:
    assert read(page("vllm_old") + "# EOF") == read(page("vllm_old"))


def test_a_bound_that_is_none_is_left_out() -> None:
    text = page("vllm_old").replace('seconds_bucket{le="1.0"', 'seconds_bucket{le="NaN"')
    for histogram in read(text).histograms[Q.TTFT].values():
        assert not any(map(math.isnan, histogram.bounds_s))


def test_when_the_process_began_is_told_by_a_page_of_one_process_alone() -> None:
    began = "process_start_time_seconds"
    assert read(page("vllm_old") + f"{began} 5\n").start_unix_s == 5
    assert read(page("vllm_old") + f"{began} NaN\n").start_unix_s is None
    assert read(page("vllm_old") + f'{began}{{pid="1"}} 5\n{began}{{pid="2"}} 6\n').start_unix_s is None


def test_bounds_come_in_seconds_whatever_the_server_counts_in() -> None:
    (latency,) = read(page("tf_serving")).histograms[Q.E2E].values()
    assert latency.bounds_s == pytest.approx((0.1, math.inf))
    (first,) = read(page("triton")).histograms[Q.TTFT].values()
    assert first.bounds_s == pytest.approx((0.1, math.inf))


@given(st.sampled_from(sorted(EXPECTED)), st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_a_page_is_cut_or_changed_to_it_is_read_or_refused(name: str, data: st.DataObject) -> None:
    text = page(name)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    try:
        reading = read(text[:start] + data.draw(st.text(max_size=20)) + text[end:])
    except PageUnusable:
        return
    assert all(math.isfinite(value) and value >= 0 for value in reading.gauges.values())
    assert all(math.isfinite(value) and value >= 0 for parts in reading.totals.values() for value in parts.values())


def test_our_router_is_told_from_our_replica() -> None:
    registry = metrics.new_registry("router")
    router = RouterMetrics(registry)
    router.keep(["inferenceServices/chat"])
    router.held.labels("inferenceServices/chat").set(3)
    router.answered("inferenceServices/chat", 200)
    router.answered("inferenceServices/chat", 503)
    reading = read(generate_latest(registry).decode())
    assert reading.server.name == "switchgear-router"
    assert reading.gauges[Q.WAITING] == 3
    assert (sum(reading.totals[Q.COMPLETED].values()), sum(reading.totals[Q.FAILED].values())) == (1, 1)
    assert reading.version
