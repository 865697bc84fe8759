"""What a server did between two readings of its page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from switchgear.autoscaler.adapters.interval import between, row
from switchgear.autoscaler.adapters.model import Quantity
from switchgear.autoscaler.adapters.scrape import read

PAGES = Path(__file__).parents[1] / "pages"
Q = Quantity


def page(name: str, changes: Mapping[str, str] = MappingProxyType({})) -> str:
    """A page with some texts replaced: the part before the value stays. changes: the end of a name -> its new value."""
    lines = []
    for line in (PAGES / f"{name}.txt").read_text().splitlines():
        series, _, _ = line.rpartition(" ")
        value = next(
            (to for end, to in changes.items() if not line.startswith("#") and series.partition("{")[0].endswith(end)),
            None,
        )
        lines.append(line if value is None else f"{series} {value}")
    return "\n".join(lines) + "\n"


def test_counters_tell_their_growth_and_histograms_the_latencies_of_what_ended() -> None:
    before = read(page("vllm_old"))
    text = page(
        "vllm_old",
        {"generation_tokens_total": "800", "first_token_seconds_count": "11", "first_token_seconds_sum": "17"},
    )
    text = text.replace('first_token_seconds_bucket{le="1.0",model_name="llama"} 8.0', 'first_token_seconds_bucket{le="1.0",model_name="llama"} 10.0')  # fmt: skip
    text = text.replace('first_token_seconds_bucket{le="+Inf",model_name="llama"} 8.0', 'first_token_seconds_bucket{le="+Inf",model_name="llama"} 11.0')  # fmt: skip
    did = between(before, read(text))
    assert did.grown[Q.GENERATED_TOKENS] == 100
    assert did.grown[Q.COMPLETED] == 0
    # Two within 1 s; beyond the last bound, one that has what the sum leaves: 15 - 2 x 1.
    assert did.samples[Q.TTFT] == ((1.0, 2), (13.0, 1))
    assert did.samples[Q.E2E] == ()
    assert did.inside == 0


def test_time_that_only_a_counter_tells_is_a_mean_of_what_ended() -> None:
    did = between(
        read(page("triton")), read(page("triton", {"request_success": "110", "request_duration_us": "8000000"}))
    )
    assert did.samples[Q.E2E] == ((pytest.approx(0.3), 10),)
    assert did.seconds[Q.E2E] == pytest.approx(3.0)
    assert Q.E2E not in did.grown


def test_a_counter_that_fell_counts_from_zero() -> None:
    did = between(read(page("vllm_old")), read(page("vllm_old", {"generation_tokens_total": "30"})))
    assert did.grown[Q.GENERATED_TOKENS] == 30


def test_a_new_process_counts_from_zero_even_where_its_counters_are_ahead() -> None:
    did = between(read(page("vllm")), read(page("vllm", {"process_start_time_seconds": "1.8e+09"})))
    assert did.restarted
    assert did.grown[Q.GENERATED_TOKENS] == 3500
    assert did.inside == 9  # all that is in it came since


def test_a_time_of_start_that_is_told_no_more_is_no_new_process() -> None:
    without = "".join(line for line in page("vllm").splitlines(keepends=True) if "process_start_time" not in line)
    for before, after in ((page("vllm"), without), (without, page("vllm"))):
        did = between(read(before), read(after))
        assert (did.restarted, did.grown[Q.GENERATED_TOKENS]) == (False, 0)


def test_a_part_that_is_new_or_gone_leaves_the_others_alone() -> None:
    text = (
        page("ray_serve")
        + 'ray_serve_deployment_request_counter_total{WorkerId="w3",deployment="Echo",replica="c"} 7\n'
    )
    assert between(read(page("ray_serve")), read(text)).grown[Q.COMPLETED] == 7
    assert between(read(text), read(page("ray_serve"))).grown[Q.COMPLETED] == 0


def test_labels_that_somebody_changed_do_not_count_the_past_anew() -> None:
    """As a Prometheus does that relabels, while the engine goes on."""

    def relabelled(text: str) -> str:
        return text.replace('model_name="', 'pod="p",model_name="')

    for name in ("vllm", "vllm_old"):
        did = between(read(page(name)), read(relabelled(page(name))))
        assert set(did.grown.values()) == {0}
        assert set(did.samples.values()) == {()}
    more = {"generation_tokens_total": "705", "time_to_first_token_seconds_count": "9"}
    did = between(read(page("vllm_old")), read(relabelled(page("vllm_old", more))))
    assert did.grown[Q.GENERATED_TOKENS] == 5
    anew = between(read(page("vllm_old")), read(relabelled(page("vllm_old", {"generation_tokens_total": "1"}))))
    assert anew.grown[Q.GENERATED_TOKENS] == 1


def test_a_name_that_changed_makes_its_quantity_unknown_once_and_no_other() -> None:
    old, new = page("vllm"), page("vllm").replace("request_time_per_output_token_seconds", "renamed")
    did = between(read(old), read(new))
    assert Q.TPOT not in did.samples  # inter_token_latency_seconds is read now, and counts from another time
    assert Q.TTFT in did.samples
    again = between(read(new), read(new))
    assert again.samples[Q.TPOT] == ()


def test_a_series_that_begins_with_its_first_request_counts_it() -> None:
    idle = read("", "tgi")
    assert between(idle, read(page("tgi"))).grown[Q.COMPLETED] == 9
    assert (
        Q.COMPLETED not in between(idle, read(page("tgi")), gone=[Q.COMPLETED]).grown
    )  # it was there before: how much is new?


def test_bounds_that_changed_count_as_begun_anew() -> None:
    did = between(read(page("vllm_old").replace('le="1.0"', 'le="2.0"')), read(page("vllm_old")))
    assert did.samples[Q.TTFT] == ((1.0, 8),)


def test_a_server_that_runs_requests_and_gets_nowhere_stands_still() -> None:
    reading = read(page("vllm_old"))
    assert between(reading, reading).still
    assert not between(reading, read(page("vllm_old", {"generation_tokens_total": "701"}))).still
    assert not between(
        read(page("vllm_old", {"num_requests_running": "0"})), read(page("vllm_old", {"num_requests_running": "0"}))
    ).still


def test_a_row_has_what_is_now_and_what_was_done() -> None:
    before, after = read(page("vllm")), read(page("vllm", {"iteration_tokens_total_count": "910"}))
    one = row("r1", after, between(before, after), 10.0)
    assert (one.waiting, one.running, one.kv_use, one.speed) == (3, 6, pytest.approx(0.4), 0.5)
    assert (one.prefill_tokens, one.decode_tokens, one.steps, one.busy_s) == (0, 0, 10, 10.0)
    alone = row("r1", after, None, 0.0)
    assert (alone.running, alone.decode_tokens, alone.busy_s) == (6, None, None)


def test_a_row_tells_no_busy_time_where_the_readings_do_not_agree() -> None:
    idle = read(page("vllm_old", {"num_requests_running": "0", "num_requests_waiting": "0"}))
    assert row("r1", idle, between(idle, idle), 10.0).busy_s == 0.0
    worked = read(
        page("vllm_old", {"num_requests_running": "0", "num_requests_waiting": "0", "generation_tokens_total": "900"})
    )
    assert row("r1", worked, between(idle, worked), 10.0).busy_s is None


def test_speed_is_told_of_what_sleeps_alone() -> None:
    """One that is awake may be throttled, so that nothing is known of its speed."""
    awake = read(page("vllm").replace('engine="1",model_name="llama",sleep_state="awake"} 0.0', 'engine="1",model_name="llama",sleep_state="awake"} 1.0'))  # fmt: skip
    assert row("r1", awake, None, 0.0).speed is None
    assert row("r1", read(page("vllm_old")), None, 0.0).speed is None
